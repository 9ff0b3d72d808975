"""Numbers of things, as they are said."""


def count(number: int, noun: str, plural: str = "") -> str:
    """A number and what it is of.

    Args:
      number: how many there are.
      noun: what one of them is called.
      plural: what several are called, where that is not the noun with an s.

    Example:
      >>> count(1, "step"), count(1200, "step"), count(2, "process", "processes")
      ('1 step', '1,200 steps', '2 processes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"

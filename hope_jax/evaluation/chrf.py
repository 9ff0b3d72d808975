"""chrF, how much of a translation's characters is right (Popovic, 2015)."""

from collections import Counter

ORDER, BETA = 6, 2.0


def chrf(said: str, answer: str) -> float:
    """F-score of character n-grams, n = 1 to 6, spaces left out; recall weighs twice.

    `(1 + 4) P R / (4 P + R)`, of precision P and recall R, each the mean over all n of which both texts
    have n-grams. From 0 to 1.

    Args:
      said: the translation.
      answer: what it should be.

    Example:
      >>> chrf("tavo mi", "tavo mi"), chrf("xyz", "tavo mi")
      (1.0, 0.0)
    """
    said, answer = ("".join(text.split()) for text in (said, answer))
    precisions, recalls = [], []
    for size in range(1, min(ORDER, len(said), len(answer)) + 1):
        mine, wanted = _grams(said, size), _grams(answer, size)
        both = (mine & wanted).total()
        precisions.append(both / mine.total())
        recalls.append(both / wanted.total())
    if not sum(precisions):
        return 0.0
    precision, recall = (sum(shares) / len(shares) for shares in (precisions, recalls))
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def _grams(text: str, size: int) -> Counter[str]:
    return Counter(text[place : place + size] for place in range(len(text) - size + 1))

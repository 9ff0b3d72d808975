"""The formal languages by their definitions: which strings they have, what is told at each position."""

import itertools
import re

LETTERS = {"counter-2": "ab", "counter-3": "abc"}


def contains(name: str, text: str) -> bool:
    """Whether a string is one of the language's."""
    if name == "parity":
        return bool(re.fullmatch("[01]+", text)) and text.count("1") in range(0, len(text) + 1, 2)
    if name in ("aa-star", "abab-star"):
        return bool(re.fullmatch({"aa-star": "(aa)*", "abab-star": "(abab)*"}[name], text))
    if name in LETTERS:
        n = len(text) // len(LETTERS[name])
        return text == "".join(n * letter for letter in LETTERS[name])
    return all(is_balanced(text, *kind) for kind in ("()", "[]")) and not set(text) - set("()[]")


def is_balanced(text: str, opened: str, closed: str) -> bool:
    """Whether one kind of brackets is, by taking away pairs next to each other."""
    rest = "".join(symbol for symbol in text if symbol in (opened, closed))
    while opened + closed in rest:
        rest = rest.replace(opened + closed, "")
    return not rest


def told(name: str, text: str) -> list[object]:
    """What is to be told after each symbol: True or False, what may follow, or which kinds are open."""
    parts = [text[:end] for end in range(1, len(text) + 1)]
    if name in ("parity", "aa-star", "abab-star"):
        return [contains(name, part) for part in parts]
    if name in LETTERS:
        return [may_follow(name, part) for part in parts]
    return [tuple(part.count(o) != part.count(c) for o, c in ("()", "[]")) for part in parts]


def may_follow(name: str, part: str) -> frozenset[str]:
    """What follows a beginning in some string of the language, found by looking at all of them."""
    words = ["".join(n * letter for letter in LETTERS[name]) for n in range(1, len(part) + 2)]
    return frozenset(word[len(part) :][:1] or "end" for word in words if word.startswith(part))


def all_strings(name: str, symbols: str, length: int) -> set[str]:
    """Every string of a length, found by looking at all of those symbols."""
    texts = map("".join, itertools.product(symbols, repeat=length))
    return {text for text in texts if contains(name, text)}


# What the classes of the package mean.
MEANING: dict[str, list[object]] = {
    "parity": [False, True],
    "aa-star": [False, True],
    "abab-star": [False, True],
    "counter-2": [frozenset("ab"), frozenset("b"), frozenset({"end"})],
    "counter-3": [frozenset("ab"), frozenset("b"), frozenset("c"), frozenset({"end"})],
    "shuffle-2": [(False, False), (True, False), (False, True), (True, True)],
}

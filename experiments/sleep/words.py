"""A tokenizer for worlds of facts: syllables of names, values, and what lies between.

python experiments/sleep/words.py runs/facts/words.json
python experiments/sleep/words.py runs/facts/friends.json --friends  # and those of friends
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from hope_jax.data.tokenizers import Tokenizer as Vocabulary
from hope_jax.evaluation.world import KINDS, SYLLABLES

USED = ("home", "work", "food", "pet")  # whose values are single tokens


def make_tokenizer(friends: bool = False) -> Tokenizer:
    """Each syllable, value and piece of a phrasing is a token, as is each letter that is in none.

    Args:
      friends: whether there are also those of friends. Other tokens keep their numbers.
    """
    pieces = {"\n", ".", *(syllable.upper() for syllable in SYLLABLES)}
    for name in USED:
        pieces.update(f" {value}" for value in KINDS[name].values)
        pieces.update(_between(name))
    kind = KINDS["friend"]
    # The space before a friend is of the piece, so that a name's tokens are the same everywhere.
    before = {re.split(r"{name}|{value}", way)[-2] for way in kind.told}
    before |= {f"{way.split('{name}')[1]} " for way in kind.asked}
    more = {"the friend of ", *(way.split("{name}")[0] for way in (*kind.told, *kind.asked))}
    more = (more | before) - pieces - {""} if friends else set()
    ordered = [*_longest_first(pieces), *_longest_first(more)]
    ends = {
        piece: "(?![A-Z]?[a-z])" if piece in before else "(?:(?<= )|(?![a-z]))" for piece in ordered
    }
    pattern = "|".join(re.escape(piece) + ends[piece] for piece in _longest_first(ordered))
    return _tokens(ordered, pattern)


def tokenizer_of(whole: Iterable[str], parts: Iterable[str] = ()) -> Tokenizer:
    """Each piece is a token: whole ones where no small letter follows, and where none is, parts."""
    kinds = [_longest_first(set(kind)) for kind in (whole, parts)]
    first, *rest = ("|".join(map(re.escape, kind)) for kind in kinds if kind)
    return _tokens([*kinds[0], *kinds[1]], "|".join([f"(?:{first})(?![a-z])", *rest]))


def _tokens(pieces: Iterable[str], pattern: str) -> Tokenizer:
    """Each piece is a token, where a pattern finds it first; and each letter that is in none."""
    ids = {piece: number for number, piece in enumerate(["<unknown>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def knows_friends(tokenizer: Vocabulary) -> bool:
    """Whether a tokenizer was made with friends."""
    return 0 not in tokenizer.encode("the friend of ")  # the number of what is unknown


def _between(name: str) -> set[str]:
    """What lies between names and values of a kind."""
    kind = KINDS[name]
    # The space before a value is of the value's token, that before a name of the piece.
    parts = [re.split(r"\{name\}| \{value\}\.", way) for way in (*kind.told, *kind.asked)]
    return {part for way in parts for part in way if part}


def _longest_first(pieces: Iterable[str]) -> list[str]:
    return sorted(pieces, key=lambda piece: (-len(piece), piece))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--friends", action="store_true", help="tokens of friends, too")
    given = parser.parse_args()
    given.path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(given.friends)
    tokenizer.save(str(given.path))
    print(f"{tokenizer.get_vocab_size()} tokens in {given.path}")


if __name__ == "__main__":
    main()

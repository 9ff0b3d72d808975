"""A tokenizer for worlds of facts: syllables of names, values, and what lies between.

python experiments/sleep/words.py runs/facts/words.json
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from hope_jax.evaluation.world import KINDS, SYLLABLES

USED = ("home", "work", "food", "pet")  # whose values are single tokens


def make_tokenizer() -> Tokenizer:
    """Each syllable, value and piece of a phrasing is a token, as is each letter that is in none."""
    pieces = {"\n", ".", *(syllable.upper() for syllable in SYLLABLES)}
    for name in USED:
        kind = KINDS[name]
        pieces.update(f" {value}" for value in kind.values)
        for phrasing in (*kind.told, *kind.asked):
            # The space before a value is of the value's token, that before a name of the piece.
            parts = re.split(r"\{name\}| \{value\}\.", phrasing)
            pieces.update(part for part in parts if part)
    return tokenizer_of(pieces)


def tokenizer_of(whole: Iterable[str], parts: Iterable[str] = ()) -> Tokenizer:
    """Each piece is a token: whole ones where no small letter follows, and where none is, parts."""
    kinds = [sorted(set(kind), key=lambda piece: (-len(piece), piece)) for kind in (whole, parts)]
    ids = {piece: number for number, piece in enumerate(["<unknown>", *kinds[0], *kinds[1]])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    # The longest that fits is taken.
    first, *rest = ("|".join(map(re.escape, kind)) for kind in kinds if kind)
    pattern = "|".join([f"(?:{first})(?![a-z])", *rest])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("path", type=Path, help="file to write")
    given = parser.parse_args()
    given.path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(given.path))
    print(f"{tokenizer.get_vocab_size()} tokens in {given.path}")


if __name__ == "__main__":
    main()

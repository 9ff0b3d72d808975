"""A tokenizer whose tokens are the words of streams, and syllables of words that are made up.

    python experiments/continual/words.py runs/continual/words.json

A stream of classes has a quarter of the tokens that it has as bytes, so that a small model reads all of
it at one time.
"""

import argparse
import collections
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from hope_jax.evaluation.streams import STREAMS, documents

# "Text:" and "Label:"; words with the space before; all else by itself.
PIECES = r"[A-Z][a-z]+:| ?[A-Za-z]+|[^A-Za-z]"
OFTEN = 0.05  # of streams that have a word in them: made-up ones are in far fewer


def make_tokenizer(streams: int = 400) -> Tokenizer:
    """Words that are in many of so many streams of each kind; all others are cut into syllables."""
    seen: collections.Counter[str] = collections.Counter()
    letters = set()
    for name in STREAMS:
        for text in documents(name, count=streams):
            seen.update(set(re.findall(PIECES, text)))
            letters.update(text)
    words = sorted(word for word, count in seen.items() if count > OFTEN * streams)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    pieces = [*sorted(letters), *syllables, *(" " + one for one in syllables), *words]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(["<unknown>", *pieces]))}
    # The longest that fits is taken, again and again.
    tokenizer = Tokenizer(
        models.WordPiece(ids, unk_token="<unknown>", continuing_subword_prefix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
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

"""Numbers said once in a long document, asked for at its end.

    python experiments/retrofit/needle.py --run=runs/retrofit/as_it_stands --rows=runs/rows.jsonl \
        --needles=runs/needles.jsonl

Sentences such as "The secret number of Paris is 4821." stand at several distances before the end of a
reporting document. Then each is asked for, from the same state: how many nats likelier is the number that
was said than one that was not? 0 is nothing kept, log 10,000 = 9.2 all of it. Steps are those that
measure.py has chosen; a line of --needles is one document, and what is there is not read again.
"""

import argparse
from pathlib import Path

import numpy as np
from documents import REPORTING, text_of
from measure import SEGMENT, SETTINGS, Rows, Trained, choose_step, learns, set_up

from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.inference.sampling import score_segment

CITIES = ("Paris", "London", "Berlin", "Madrid", "Vienna", "Dublin", "Moscow", "Boston")


def make_text(
    tokenizer: Tokenizer, document: str, length: int, distances: list[int]
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """A document with numbers in it, and questions.

    Args:
      tokenizer: of the model.
      document: its name.
      length: tokens of the text before its last, the sentences included.
      distances: tokens from the end of each sentence to the end of the text, longest first.

    Returns:
      Ids of the text. For each distance the question with the answer that is right, and with one that is
      not, as ids of the same number; the last four are the number's.
    """
    encode = lambda text: np.asarray(tokenizer.encode(text), np.int32)
    random = np.random.default_rng(list(document.encode()))
    said, other = random.permutation(np.arange(1000, 10_000))[: 2 * len(distances)].reshape(2, -1)
    cities = random.permutation(CITIES)
    sentences = [
        encode(f"\nThe secret number of {city} is {number}.\n")
        for city, number in zip(cities, said, strict=False)
    ]
    size = length + 1 - sum(map(len, sentences))
    hay, parts = encode(text_of(document))[: max(0, size)], []
    for sentence, distance in zip(sentences[::-1], distances[::-1], strict=True):
        after = distance - sum(map(len, parts))
        if not 0 <= after <= len(hay):
            raise ValueError(f"distances {distances} do not fit into {length} tokens")
        parts = [sentence, hay[len(hay) - after :], *parts]
        hay = hay[: len(hay) - after]
    questions = [
        [encode(f"\nThe secret number of {city} is {number}") for number in pair]
        for city, *pair in zip(cities, said, other, strict=False)
    ]
    return np.concatenate([hay, *parts]), questions


def ask(trained: Trained, setting: str, step: float | None, document: str, length: int) -> list:
    """Distance, and nats of the right number and of another, for each sentence."""
    distances = [d for d in (3584, 2048, 1024, 512, 128) if d < length]
    distances = [length * 7 // 8] * (length > 4096) + distances
    ids, questions = make_text(trained.tokenizer, document, length, distances)
    model, params = set_up(trained, setting, step, length)
    state = None
    for start in range(0, length, SEGMENT):
        part = ids[None, start : min(start + SEGMENT, length) + 1]
        _, state = score_segment(model, params, part[:, :-1], part[:, 1:], state)
    answers = []
    for distance, pair in zip(distances, questions, strict=True):
        # The text's last token has not been read: it stands before the question.
        asked = [np.concatenate([ids[-1:], question])[None] for question in pair]
        nats = [
            float(score_segment(model, params, q[:, :-1], q[:, 1:], state)[0][0, -4:].sum())
            for q in asked
        ]
        answers.append([distance, *(round(loss, 4) for loss in nats)])
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--rows", type=Path, required=True, help="readings of measure.py")
    parser.add_argument("--needles", type=Path, required=True, help="file of the answers")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME", required=True)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a document")
    parser.add_argument("--tuned_at", type=int, default=4096, help="tokens of measure.py's tuning")
    given = parser.parse_args()
    trained = Trained(Path(given.run).name, *load_model(given.run))
    rows, needles = Rows(given.rows), Rows(given.needles)
    tokens = {name: len(trained.tokenizer.encode(text_of(name))) for name in REPORTING}
    documents = [name for name in REPORTING if tokens[name] > given.length]
    for setting in given.settings:
        step = choose_step(trained, rows, setting, given.tuned_at) if learns(setting) else None
        for document in documents:
            key = {
                "run": trained.name,
                "setting": setting,
                "step": step,
                "document": document,
                "length": given.length,
            }
            if needles.get(**key) is None:
                answers = ask(trained, setting, step, document, given.length)
                needles.add({**key, "answers": answers})
                print(f"{setting}, {document}: {answers}", flush=True)


if __name__ == "__main__":
    main()

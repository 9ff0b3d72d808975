"""What a night is given in files: openings, questions, a text that should not change."""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from hope_jax.commands.evaluate import read_text
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.given_answers import Answers, answers_of
from hope_jax.sleep.samples import in_rows


def windows(
    ids: Int[np.ndarray, " T"], length: int = 257, most: int = 16
) -> Int[np.ndarray, "N C"]:
    """The beginning of a text in parts of equal length.

    Example:
      >>> windows(np.arange(7), length=3).tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    length = min(length, len(ids))
    count = min(most, len(ids) // length)
    return ids[: count * length].reshape(count, length)


def windows_of(
    text: str, given: str, tokenizer: Tokenizer, length: int = 257, most: int = 16
) -> Int[np.ndarray, "N C"]:
    """The beginning of a text in parts of equal length.

    Raises:
      ValueError: naming what gave it, if it has fewer than two tokens.
    """
    ids = np.asarray([*tokenizer.before, *tokenizer.encode(text)], np.int32)
    if ids.size < 2:
        raise ValueError(f"{given} has fewer than two tokens")
    return windows(ids, length, most)


def read_prompts(
    path: str, tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "N P"], Int[np.ndarray, " N"]]:
    """The ids of a file's lines, of which each opens a sample of the teacher.

    Returns:
      Rows, filled up at their ends, and how many tokens of each count.

    Raises:
      ValueError: if there are none.
    """
    lines = [line for line in read_text(path, "--prompts").splitlines() if line]
    rows = [[*tokenizer.before, *tokenizer.encode(line)] for line in lines]
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError(f"--prompts={path} has no line with a token")
    return in_rows(rows)


def read_questions(path: str, tokenizer: Tokenizer, opening: Sequence[int]) -> Answers:
    """The questions of a file, of which each line is `{"prompt": ..., "answer": ...}`.

    Args:
      path: of the file.
      tokenizer: of the model.
      opening: ids before each prompt.

    Raises:
      ValueError: naming the first line that is none.
    """
    prompts, answers = [], []
    lines = read_text(path, "--questions").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, answer = row["prompt"], row["answer"]
        except (ValueError, TypeError, KeyError):
            prompt = answer = None
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise ValueError(
                f"--questions={path}: line {number} must be JSON with two texts, such as "
                f'{{"prompt": "Where is it?", "answer": " Here."}}'
            )
        prompts.append(prompt)
        answers.append(answer)
    try:
        return answers_of(tokenizer, prompts, answers, opening)
    except ValueError as error:
        raise ValueError(f"--questions={path}: {error}") from error

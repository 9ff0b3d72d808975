"""Loss by position of a pre-trained model whose upper MLPs learn while it reads, beside the same without.

    hope convert --from_llama=runs/smollm2 --workdir=runs/retrofit/as_it_stands \
        --config=experiments/retrofit/continued.py
    python experiments/retrofit/measure.py --run=runs/retrofit/as_it_stands --rows=runs/rows.jsonl

Each setting (see SETTINGS) reads long documents in memory that does not grow with them. Where something
learns, its step size is the best on the tuning documents, of a grid that is followed until both
neighbours are worse; the reporting documents are then read with it. Each reading is a line of --rows;
what is there is not read again, so that a command that was stopped goes on where it was. The table
and the figure are report.py's.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from documents import PARTS, text_of

from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.grid import climb
from hope_jax.inference.sampling import score_segment
from hope_jax.models import LanguageModel

WINDOW, SEGMENT, BIN = 256, 4096, 256
# Of the model; step sizes come on top. "as trained" is the run's own config.
SETTINGS: dict[str, dict[str, Any] | None] = {
    "window": {"in_context": None},
    "window, sink": {"in_context": None, "attention_sinks": 1},
    "window, 4 sinks": {"in_context": None, "attention_sinks": 4},
    "window 512": {"in_context": None, "attention_window": 512},
    "window 1024": {"in_context": None, "attention_window": 1024},
    "full": {"in_context": None, "attention_window": 0},  # the whole of what is read
    "8 blocks, 64": {"in_context": {"blocks": 8, "chunks": (64,)}},
    "8 blocks, 256": {"in_context": {"blocks": 8, "chunks": (256,)}},
    "8 blocks, 1024": {"in_context": {"blocks": 8, "chunks": (1024,)}},
    "8 blocks, 64 512": {"in_context": {"blocks": 8, "chunks": (64, 512)}},
    "8 blocks, 64 256 1024": {"in_context": {"blocks": 8, "chunks": (64, 256, 1024)}},
    "2 blocks, 64": {"in_context": {"blocks": 2, "chunks": (64,)}},
    "16 blocks, 64": {"in_context": {"blocks": 16, "chunks": (64,)}},
    "30 blocks, 64": {"in_context": {"blocks": 30, "chunks": (64,)}},
    "8 blocks, 64, unbounded": {
        "in_context": {"blocks": 8, "chunks": (64,), "largest_change": None}
    },
    "8 blocks, 64, momentum": {
        "in_context": {"blocks": 8, "chunks": (64,), "optimizer": "momentum"}
    },
    "8 blocks, 64, dgd": {"in_context": {"blocks": 8, "chunks": (64,), "optimizer": "dgd"}},
    "8 blocks, 64, decay": {"in_context": {"blocks": 8, "chunks": (64,), "decay": 0.02}},
    "8 blocks, 64, sink": {"in_context": {"blocks": 8, "chunks": (64,)}, "attention_sinks": 1},
    "8 blocks, 64, unbounded, sink": {
        "in_context": {"blocks": 8, "chunks": (64,), "largest_change": None},
        "attention_sinks": 1,
    },
    "30 blocks, 64, sink": {"in_context": {"blocks": 30, "chunks": (64,)}, "attention_sinks": 1},
    "as trained": None,
}
LARGEST_CHANGE = 3e-4  # of 1e-4, 3e-4 and 1e-3, by the tuning documents
STEPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FIRST_STEP = 0.03


class Trained(NamedTuple):
    """A run's model.

    Attributes:
      name: of the run's folder.
      model: with the run's own config.
      params: of the model.
      tokenizer: of the model.
    """

    name: str
    model: LanguageModel
    params: Any
    tokenizer: Tokenizer


def set_up(
    trained: Trained, setting: str, step: float | None, length: int
) -> tuple[LanguageModel, Any]:
    """The model of a setting, and its parameters.

    The step is a parameter, not a setting, so that all steps share one compiled program.
    """
    changes = SETTINGS[setting]
    if changes is None:
        return trained.model, trained.params
    changes = {"attention_window": WINDOW, "attention_sinks": 0, **changes}
    changes["attention_window"] = changes["attention_window"] or length
    params = {name: w for name, w in trained.params.items() if name != "log_step"}
    if changes["in_context"] is not None:
        learning = {"largest_change": LARGEST_CHANGE, **changes["in_context"]}
        changes["in_context"] = {**learning, "step_size": 1.0}
    config = dataclasses.replace(trained.model.config, **changes)
    if config.in_context is not None:
        shape = (config.adapting_blocks, config.cms_levels)
        params["log_step"] = jnp.full(shape, math.log(step), jnp.float32)
    return LanguageModel(config), params


def read_losses(model: LanguageModel, params: Any, ids: np.ndarray) -> np.ndarray:
    """Losses in nats of all tokens but the first, read in segments.

    Args:
      model: that reads.
      params: of the model.
      ids: of one document, (T + 1).

    Returns:
      Losses, (T,).
    """
    losses, state = [], None
    for start in range(0, len(ids) - 1, SEGMENT):
        part = ids[None, start : start + SEGMENT + 1]
        loss, state = score_segment(model, params, part[:, :-1], part[:, 1:], state)
        losses.append(np.asarray(loss)[0])
    return np.concatenate(losses)


class Rows:
    """Readings in a file, one JSON object a line.

    Args:
      path: of the file; it is made when the first reading is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[dict[str, Any]] = []
        if path.is_file():
            # A line that was cut off as its writer was killed is read again.
            for line in path.read_text().splitlines():
                try:
                    self.found.append(json.loads(line))
                except json.JSONDecodeError:
                    print(f"{path}: left out a line that is no JSON: {line[:40]!r}", flush=True)

    def get(self, **key: Any) -> dict[str, Any] | None:
        """The reading with these entries, if there is one."""
        fits = lambda row: all(row.get(name) == value for name, value in key.items())
        return next(filter(fits, self.found), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a reading."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        add_json_line(self.path, row)
        self.found.append(row)


def read_part(
    trained: Trained, rows: Rows, setting: str, step: float | None, part: str, length: int
) -> float:
    """Reads what is not there yet of a part's documents of at least `length` tokens.

    Returns:
      Mean loss.
    """
    means = []
    for document in PARTS[part]:
        key = {
            "run": trained.name,
            "setting": setting,
            "step": step,
            "document": document,
            "length": length,
        }
        row = rows.get(**key)
        if row is None:
            ids = np.asarray(trained.tokenizer.encode(text_of(document)), np.int32)
            if len(ids) <= length:
                continue
            began = time.perf_counter()
            losses = read_losses(*set_up(trained, setting, step, length), ids[: length + 1]).astype(
                np.float64
            )
            row = {
                **key,
                "part": part,
                "losses": losses.reshape(-1, BIN).mean(1).round(5).tolist(),
                "seconds": round(time.perf_counter() - began, 1),
            }
            rows.add(row)
            shown = f"{setting}, step {step}, {document}: {losses.mean():.4f}"
            print(f"{shown} ({row['seconds']} s)", flush=True)
        means.append(np.mean(row["losses"]))
    if not means:
        raise ValueError(f"no document of the part {part!r} has more than {length} tokens")
    return float(np.mean(means))


def choose_step(trained: Trained, rows: Rows, setting: str, length: int) -> float:
    """The step with the lowest mean loss on the tuning documents, both neighbours read too."""
    loss = lambda step: read_part(trained, rows, setting, step, "tuning", length)
    return climb(STEPS, FIRST_STEP, lambda step: -loss(step))[0]


def learns(setting: str) -> bool:
    """Whether a setting has a step to choose."""
    changes = SETTINGS[setting]
    return changes is not None and changes["in_context"] is not None


def measure(
    trained: Trained, rows: Rows, settings: Sequence[str], length: int, tuned_at: int
) -> None:
    """Reads the reporting documents with every setting, its step chosen before."""
    for setting in settings:
        step = choose_step(trained, rows, setting, tuned_at) if learns(setting) else None
        loss = read_part(trained, rows, setting, step, "reporting", length)
        print(f"== {setting}, step {step}: {loss:.4f} over {length} tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--rows", type=Path, required=True, help="file of the readings")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a document")
    parser.add_argument("--tuned_at", type=int, help="tokens by which steps are chosen")
    given = parser.parse_args()
    for name in ("length", "tuned_at"):
        if (value := getattr(given, name)) is not None and (value < BIN or value % BIN):
            parser.error(f"--{name}={value} must be a multiple of {BIN}")
    trained = Trained(Path(given.run).name, *load_model(given.run))
    settings = given.settings or [name for name in SETTINGS if SETTINGS[name] is not None]
    measure(trained, Rows(given.rows), settings, given.length, given.tuned_at or given.length)


if __name__ == "__main__":
    main()

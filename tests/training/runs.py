"""A tiny run for the tests of training, what it has lost, and a way to disturb it."""

import pathlib

from ml_collections import ConfigDict

from hope_jax.runs.config_file import load_config_file
from hope_jax.runs.metrics import read_metrics
from hope_jax.training import feed

QUICKSTART = pathlib.Path(__file__).parents[2] / "experiments" / "quickstart.py"


def load_config(variant: str = "transformer") -> ConfigDict:
    """The quickstart's config, whole."""
    return load_config_file(QUICKSTART).get_config(variant)


def tiny_config(folder: pathlib.Path, **changes) -> ConfigDict:
    """A config that trains in seconds on text written to the folder; changes are dotted keys.

    The pattern of files is relative, for a file's name decides whether it is held out: run it from
    within the folder.
    """
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for index in range(10):
        words = " ".join(f"{index * 7 + n} green bottles" for n in range(40))
        (text / f"{index}.txt").write_text(words)
    config = load_config()
    config.model.update(width=16, num_layers=1, num_heads=2, mlp_width=16, attention_window=16)
    config.data.update(
        files="text/*.txt", sequence_length=16, batch_size=8, validation_fraction=0.2
    )
    config.optimizer.update(name="adamw", warmup_steps=1, learning_rate=0.01)
    config.steps = 6
    config.checkpoint.every = 2
    config.evaluate.update(every=3, batches=1, ngram_orders=(3,), sample_tokens=4)
    config.log.every = 1
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    return config


def losses(workdir):
    """Steps and training losses that a run has written."""
    return [(line["step"], line["loss"]) for line in read_metrics(workdir) if "loss" in line]


def change_batch(monkeypatch, count, action):
    """Does something to the run when it asks for batch number `count + 1`."""
    real = feed.put_batch
    calls = []

    def put(batch, mesh):
        calls.append(None)
        if len(calls) == count + 1:
            batch = action(batch) or batch
        return real(batch, mesh)

    monkeypatch.setattr(feed, "put_batch", put)

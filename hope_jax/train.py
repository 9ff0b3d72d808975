"""Trains a language model.

    python -m hope_jax.train --config=experiments/quickstart.py --workdir=runs/quickstart
    python -m hope_jax.train --config=experiments/quickstart.py:transformer --workdir=runs/t \
        --config.steps=500 --config.data.files='corpus/**/*.txt'

Run it again on the same folder and it goes on where it stopped; --config can then be left out.
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags


def main(arguments: list[str]) -> None:
    """Runs the command."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected {arguments[1]!r}; settings look like --config.steps=500")
    # Orbax says a dozen lines a checkpoint at the level of information.
    logging.getLogger("absl").setLevel(logging.WARNING)
    from hope_jax.training.checkpoint import load_config
    from hope_jax.training.loop import NonFiniteLossError, train

    try:
        config = flags.FLAGS.config
        if config is None:
            config = load_config(flags.FLAGS.workdir)
        train(config, flags.FLAGS.workdir)
    except (ValueError, NonFiniteLossError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    # Here, not above: the other command has a --workdir too, and both can be imported.
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.mark_flags_as_required(["workdir"])
    app.run(main)

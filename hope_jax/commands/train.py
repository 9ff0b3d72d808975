"""Trains a language model.

    hope train --config=experiments/quickstart.py --workdir=runs/quickstart
    hope train --config=experiments/quickstart.py:transformer --workdir=runs/t \
        --config.steps=500 --config.data.files='corpus/**/*.txt'

Run it again on the same folder and it goes on where it stopped; --config can then be left out.
"""

from absl import flags
from ml_collections import config_flags

from hope_jax.commands.exit_codes import SAVED

UNEXPECTED = "settings look like --config.steps=500"


def define_flags() -> None:
    """Defines the command's flags."""
    config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


def run() -> int | None:
    """Runs the command; the exit code where that is not 0."""
    from hope_jax.runs.run_config import load_config
    from hope_jax.training.loop import train

    given = flags.FLAGS
    config = load_config(given.workdir) if given.config is None else given.config
    return SAVED if train(config, given.workdir) is None else None

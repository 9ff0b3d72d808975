r"""Trains a language model.

    hope train --config=experiments/quickstart.py --workdir=runs/quickstart
    hope train --config=experiments/quickstart.py:transformer --workdir=runs/t \
        --config.steps=500 --config.data.files='corpus/**/*.txt'

Run it again on the same folder and it goes on where it stopped; --config can then be left out.
"""

from pathlib import Path

from absl import flags

from hope_jax.commands.config import change_settings, config_table, define_config_flags, read_config
from hope_jax.commands.exit_codes import SAVED
from hope_jax.data.whole_folder import check_writable

UNEXPECTED = "settings look like --config.steps=500"


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_bool("print_config", False, "Show all settings, and end.")


def run() -> int | None:
    """Runs the command; the exit code where that is not 0."""
    from hope_jax.commands.trained_model import load_run_config
    from hope_jax.training.config import RunConfig, whole_config

    given = flags.FLAGS
    if given.workdir is None and not (given.print_config and given.config):
        raise ValueError("--workdir=FOLDER is missing: where the run lies, or is to lie")
    config = load_run_config(given.workdir) if given.config is None else read_config(given.config)
    config = change_settings(RunConfig, config, given.set)
    if given.print_config:
        print(config_table(RunConfig, whole_config(config)), end="")
        return None
    config = whole_config(config, note=print)
    check_writable(Path(given.workdir) / "config.json", "--workdir")

    from hope_jax.training.loop import train

    return SAVED if train(config, given.workdir) is None else None

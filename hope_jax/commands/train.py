r"""Trains a language model.

    hope train --config=experiments/quickstart.py --workdir=runs/quickstart
    hope train --config=experiments/quickstart.py:transformer --workdir=runs/t \
        --config.steps=500 --config.data.files='corpus/**/*.txt'

Run it again on the same folder and it goes on where it stopped; --config can then be left out, and
what is to change from there on is given alone:

    hope train --workdir=runs/quickstart --config.steps=2000 --config.optimizer.learning_rate=1e-3

The folder can lie in a bucket: the run is then written to a disk of this machine, and kept there, too.

    hope train --config=experiments/quickstart.py --workdir=gs://BUCKET/runs/quickstart

A new run can begin with the weights of another one:

    hope train --workdir=runs/next --from_run=runs/quickstart --config.data.files='more/**/*.txt'
"""

from pathlib import Path

from absl import flags

from hope_jax.commands.config import change_settings, config_table, define_config_flags, read_config
from hope_jax.data.bucket import is_address
from hope_jax.data.whole_folder import check_writable
from hope_jax.exit_codes import SAVED

UNEXPECTED = "settings look like --config.steps=500"


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run, here or in a bucket.")
    flags.DEFINE_string("from_run", None, "Folder of another run, to begin with its weights.")
    flags.DEFINE_bool("with_optimizer", False, "Begin with its optimiser's state, too.")
    flags.DEFINE_bool(
        "quiet", False, "Print the line of the result, and warnings and errors alone."
    )
    flags.DEFINE_bool("print_config", False, "Show all settings, and end.")


def run() -> int | None:
    """Runs the command; the exit code where that is not 0."""
    from hope_jax.commands.trained_model import load_run_config
    from hope_jax.runs.fetch import fetch_run, holds_run
    from hope_jax.runs.run_config import RATES
    from hope_jax.training.config import RunConfig, whole_config

    given = flags.FLAGS
    if given.workdir is None and not (given.print_config and given.config):
        raise ValueError("--workdir=FOLDER is missing: where the run lies, or is to lie")
    if given.with_optimizer and given.from_run is None:
        raise ValueError("--with_optimizer needs --from_run=FOLDER, the run whose state it is")
    if given.config is not None:
        config = read_config(given.config)
    elif given.from_run is not None and not holds_run(given.workdir):
        config = load_run_config(fetch_run(given.from_run, (), "--from_run"), "--from_run")
    else:
        config = load_run_config(fetch_run(given.workdir, ()))
    config = change_settings(RunConfig, config, given.set)
    if given.print_config:
        print(config_table(RunConfig, whole_config(config)), end="")
        return None
    config = whole_config(config, note=None if given.quiet else print)
    if not is_address(given.workdir):
        check_writable(Path(given.workdir) / "config.json", "--workdir")

    from hope_jax.training.loop import train

    result = train(
        config,
        given.workdir,
        # With --config, other rates than the run's are rather a forgotten --workdir.
        may_change=("steps",) if given.config is not None else ("steps", *RATES),
        from_run=given.from_run,
        with_optimizer=given.with_optimizer,
        quiet=given.quiet,
    )
    return SAVED if result is None else None

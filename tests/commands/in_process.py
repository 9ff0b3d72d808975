"""A command of `hope` run in this process, where nothing has to be imported again."""

import sys

from absl import flags

from hope_jax.commands.main import main


def hope(*arguments: str) -> int:
    """Runs the command and returns its exit code; what it prints goes where the test's own goes."""
    before = set(flags.FLAGS)
    try:
        main(arguments)
    except SystemExit as ended:
        return 0 if ended.code is None else int(ended.code)
    finally:
        sys.stdout.flush()
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    raise AssertionError("the command has not ended the process")

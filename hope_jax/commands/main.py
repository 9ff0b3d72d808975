"""The command `hope`: the table of commands, and what all of them do alike.

hope
hope train --help
hope train --config=experiments/quickstart.py --workdir=runs/a
"""

import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from hope_jax.commands.exit_codes import BAD_INPUT, FAILED

# What each command does, and an example of it without the command's name.
COMMANDS = {
    "train": (
        "train a language model, or go on with a run",
        "--config=experiments/quickstart.py --workdir=runs/a",
    ),
    "generate": ("sample from a trained model", '--workdir=runs/a --prompt="def "'),
    "evaluate": ("measure a text under a trained model", "--workdir=runs/a --text=FILE"),
    "inspect": ("show what levels learn while they read", "--workdir=runs/a --text=FILE"),
    "convert": (
        "make a run of a Llama checkpoint, or such a checkpoint of a run",
        "--workdir=runs/a --to_llama=FOLDER",
    ),
    "tokenize": (
        "make text of any size into token files",
        "--files='corpus/**/*.txt' --output=tokens",
    ),
    "compare": (
        "train variants of a config, and table them",
        "--config=experiments/ablations.py:hope,no_dgd --workdir=runs/ablations",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `hope COMMAND ARGUMENTS` and ends the process.

    It ends with code 0 where all is done, 2 for input that cannot be used, 1 for a run that failed,
    and 75 for one that was asked to stop and has saved: run the same command again.

    Args:
      arguments: without the program's name; those of the process if not given.
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("", "-h", "--help"):
        print(overview(), end="")
        sys.exit(0)
    if name not in COMMANDS:
        end(BAD_INPUT, f"hope: there is no command {name!r}; there are {', '.join(COMMANDS)}")
    command = importlib.import_module(f"hope_jax.commands.{name}")
    command.define_flags()
    given = [dashes_to_underscores(argument) for argument in rest[:-1]]
    if any(argument in ("-h", "--help") for argument in given):
        print(help_of(name, command), end="")
        sys.exit(0)
    try:
        left = flags.FLAGS([f"hope {name}", *given])[1:]
    except flags.Error as error:
        end(BAD_INPUT, f"hope {name}: {one_line(error)}; see hope {name} --help")
    if left:
        end(BAD_INPUT, f"hope {name}: unexpected {left[0]!r}; {command.UNEXPECTED}")
    # Orbax says a dozen lines a checkpoint at the level of information.
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        code = command.run()
    except (ValueError, OSError) as error:
        if not explains_itself(error):
            raise
        end(BAD_INPUT, f"hope {name}: {one_line(error)}")
    except RuntimeError as error:
        if not explains_itself(error):
            raise
        end(FAILED, f"hope {name}: {one_line(error)}")
    sys.exit(code)


def overview() -> str:
    """One line for each command, with an example."""
    lines = ["Nested Learning in JAX: models that keep learning while they read.", ""]
    for name, (what, example) in COMMANDS.items():
        lines += [f"hope {name:<9} {what}", f"  hope {name} {example}"]
    return "\n".join([*lines, "", "hope COMMAND --help says more.", ""])


def help_of(name: str, command: object) -> str:
    """What a command does, and its flags."""
    texts = [(command.__doc__ or "").rstrip(), "", "Flags:"]
    for flag in flags.FLAGS.get_flags_for_module(command.__name__):  # type: ignore[attr-defined]
        # Those that a config file brings along are its keys, not the command's.
        if "." not in flag.name and not flag.name.startswith("config_"):
            default = "" if flag.default in (None, [], "") else f" (default: {flag.default})"
            texts.append(f"  --{flag.name:<20} {flag.help}{default}")
    return "\n".join(texts) + "\n"


def dashes_to_underscores(argument: str) -> str:
    """Either spelling of a flag's name: --state-in or --state_in."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name[:2] == "--" else argument


def explains_itself(error: BaseException) -> bool:
    """Whether this package has raised the error, to say what is wrong with its input.

    One that a library has raised is a fault of ours: its traceback belongs on the screen.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


def end(code: int, message: str) -> None:
    """Ends the process with a line on standard error."""
    print(message, file=sys.stderr)
    sys.exit(code)

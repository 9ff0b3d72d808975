"""The command `hope`: the table of commands, and what all of them do alike.

hope
hope train --help
hope train --config=experiments/quickstart.py --workdir=runs/a
"""

import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags

from hope_jax.absent_tpus import skip_absent_tpus
from hope_jax.exit_codes import BAD_INPUT, FAILED, INTERRUPTED, OUTPUT_CLOSED
from hope_jax.named import look_in

_PACKAGE = Path(__file__).parents[1]

# What each command does, and an example of it without the command's name.
COMMANDS = {
    "train": (
        "train a language model, or go on with a run",
        "--config=experiments/quickstart.py --workdir=runs/a",
    ),
    "generate": ("sample from a trained model", '--workdir=runs/a --prompt="def "'),
    "evaluate": (
        "measure a text under a trained model, or ask it a suite's questions",
        "--workdir=runs/a --text=FILE",
    ),
    "inspect": ("show what levels learn while they read", "--workdir=runs/a --text=FILE"),
    "sleep": (
        "move what a reader's fast levels have learned into slower ones",
        "--workdir=runs/a --state-in=alice.msgpack --state-out=alice.msgpack",
    ),
    "live": (
        "read a stream of text, and sleep where that is due",
        "--workdir=runs/a --files='stream/**/*.txt'",
    ),
    "convert": (
        "make a run of a Llama checkpoint, or such a checkpoint of a run",
        "--workdir=runs/a --to_llama=FOLDER",
    ),
    "tokenize": (
        "make text of any size into token files",
        "--files='corpus/**/*.txt' --output=tokens",
    ),
    "plan": (
        "tell what a run needs on chips that are not there, before it is paid for",
        "--config=experiments/language_model.py:hope-60m --topology=v5p:2x2x1",
    ),
    "compare": (
        "train variants of a config, and table them",
        "--config=experiments/ablations.py:hope,no_dgd --workdir=runs/ablations",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `hope COMMAND ARGUMENTS` and ends the process.

    It ends with code 0 where all is done, and else with one of `hope_jax.exit_codes`.

    Args:
      arguments: without the program's name; those of the process if not given.
    """
    try:
        try:
            code = _run([*(sys.argv[1:] if arguments is None else arguments)])
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        end(INTERRUPTED, "hope: interrupted")
    except BrokenPipeError as error:
        if not explains_itself(error):  # not what is printed, but a library's own
            raise
        # Whoever read has enough, as head has. What is left goes nowhere, also when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OUTPUT_CLOSED
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int | None:
    look_in(os.getcwd())  # where a program of a package's own does not look
    name, *rest = arguments or [""]
    if name in ("", "-h", "--help"):
        print(overview(), end="")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS)
        there = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(COMMANDS)}"
        end(BAD_INPUT, f"hope: there is no command {name!r}; {there}")
    # Orbax says a dozen lines a checkpoint at the level of information, and JAX which chips it does
    # not find.
    for logger in ("absl", "jax._src.xla_bridge"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    skip_absent_tpus()
    try:
        command = importlib.import_module(f"hope_jax.commands.{name}")
        from hope_jax.commands.config import as_changes
    except ModuleNotFoundError as error:
        end(BAD_INPUT, f"hope {name} needs {error.name}: pip install 'hope_jax[train]'")
    command.define_flags()
    given = as_changes([dashes_to_underscores(argument) for argument in rest])
    if any(argument in ("-h", "--help") for argument in given):
        print(help_of(name, command), end="")
        return 0
    try:
        left = flags.FLAGS([f"hope {name}", *given])[1:]
    except flags.Error as error:
        end(BAD_INPUT, f"hope {name}: {one_line(error)}; see hope {name} --help")
    if left:
        end(BAD_INPUT, f"hope {name}: unexpected {left[0]!r}; {command.UNEXPECTED}")
    try:
        return command.run()
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if explains_itself(error):
            end(BAD_INPUT, f"hope {name}: {one_line(error)}")
        if not isinstance(error, OSError) or not is_of_a_given_file(error):
            raise
        end(BAD_INPUT, f"hope {name}: {error.filename}: {error.strerror}; give another path")
    except RuntimeError as error:
        if not explains_itself(error):
            raise
        end(getattr(error, "exit_code", FAILED), f"hope {name}: {one_line(error)}")


def overview() -> str:
    """One line for each command, with an example."""
    lines = ["Nested Learning in JAX: models that keep learning while they read.", ""]
    for name, (what, example) in COMMANDS.items():
        lines += [f"hope {name:<9} {what}", f"  hope {name} {example}"]
    return "\n".join([*lines, "", "hope COMMAND --help says more.", ""])


def help_of(name: str, command: object) -> str:
    """What a command does, and its flags."""
    usage = f"Usage: hope {name} {COMMANDS[name][1]}"
    texts = [usage, "", (command.__doc__ or "").rstrip(), "", "Flags:"]
    known = flags.FLAGS.flags_by_module_dict()
    here = [flag for module in known if module.startswith("hope_jax.") for flag in known[module]]
    for flag in here:
        default = "" if flag.default in (None, [], "", False) else f" (default: {flag.default})"
        texts.append(f"  --{flag.name:<20} {one_line(flag.help)}{default}")
    if "config" in flags.FLAGS:
        texts += ["", "All settings, with their meaning and range:"]
        teller = name if "print_config" in flags.FLAGS else "train"
        texts.append(f"  hope {teller} --config=FILE.py --print_config")
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
    return Path(frames[-1].filename).is_relative_to(_PACKAGE)


def is_of_a_given_file(error: OSError) -> bool:
    """Whether the system refuses a file that is neither Python's nor a library's: one of the user's."""
    if not isinstance(error.filename, str):
        return False
    path = Path(error.filename).absolute()
    owned = (sys.prefix, sys.base_prefix, str(_PACKAGE))
    return not any(path.is_relative_to(folder) for folder in owned)


def one_line(said: object) -> str:
    """What an error or a text says, in one line."""
    return " ".join(str(said).split())


def end(code: int, message: str) -> NoReturn:
    """Ends the process with a line on standard error."""
    print(message, file=sys.stderr)
    sys.exit(code)

"""Long documents that every Python brings: its library's sources and its language reference.

Three parts that share no file: some choose settings, others are reported, and the rest is trained on.
"""

import pydoc_data.topics
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hope_jax.data.corpus import named_paths

# Each is files of the library, or topics of the reference, one after the other.
TUNING = ("debugger", "inspect.py dis.py", "turtle.py")
REPORTING = (
    "specialnames compound types assignment",
    "formatstrings",
    "string-methods",
    "_pydecimal.py",
    "typing.py functools.py",
    "tarfile.py shutil.py",
    "argparse.py optparse.py",
    "pickletools.py pickle.py",
)
PARTS = {"tuning": TUNING, "reporting": REPORTING}


def text_of(name: str) -> str:
    """The text of a document, whole."""
    return "\n".join(_part(part) for part in name.split())


def _part(name: str) -> str:
    if name.endswith(".py"):
        return (Path(sysconfig.get_paths()["stdlib"]) / name).read_text("utf-8")
    return pydoc_data.topics.topics[name]


def training(least: int = 8192) -> Iterator[bytes]:
    """Sources of at least so many bytes that are in neither part; `data.source` of a run."""
    held_out = set(" ".join(TUNING + REPORTING).split()) | {"pydoc_data/topics.py"}
    for name, path in named_paths():
        if name not in held_out and len(text := Path(path).read_bytes()) >= least:
            yield text

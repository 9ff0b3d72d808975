"""The tokenizer in a run's folder, so that the run can be moved, and its tokenizer cannot be another."""

import shutil
from pathlib import Path

from hope_jax.data.tokenizers import copy_tokenizer, tokenizer_file
from hope_jax.data.whole_folder import whole_folder

_FOLDER = "tokenizer"
# Where runs that were made of a Llama checkpoint had theirs, by absolute path.
_IMPORTED = "llama"


def tokenizer_of(workdir: str | Path, name: str) -> str:
    """The tokenizer to load for a run: the copy in its folder or, in older runs, the one it names.

    Args:
      workdir: folder of the run.
      name: `data.tokenizer` in the run's config.
    """
    own = own_tokenizer(workdir, name)
    return name if own is None else str(own)


def own_tokenizer(workdir: str | Path, name: str) -> Path | None:
    """The file of the tokenizer in a run's folder; None if there is none, as for bytes."""
    folder = Path(workdir) / _FOLDER
    try:
        return tokenizer_file(folder)
    except ValueError:
        imported = Path(workdir) / _IMPORTED / Path(name).name
        return imported if Path(name).parent.name == _IMPORTED and imported.is_file() else None


def check_tokenizer(workdir: str | Path, own: Path, name: str) -> None:
    """Raises a ValueError if `name` is there, and is not the tokenizer that the run keeps."""
    if name == "bytes" or (Path(name).is_file() and Path(name).read_bytes() != own.read_bytes()):
        raise ValueError(
            f"data.tokenizer={name!r} is not the tokenizer that the run in {workdir} was begun with, "
            f"which is {own}; leave out --config to go on with that one, or give another --workdir"
        )


def keep_tokenizer(workdir: str | Path, name: str) -> None:
    """Copies a tokenizer, with what beside it says more of it, into a run's folder, if it has none.

    Args:
      workdir: folder of the run.
      name: `bytes`, which needs no copy, or the path of a file.
    """
    folder = Path(workdir) / _FOLDER
    if name == "bytes" or any(folder.glob("tokenizer.*")):
        return
    with whole_folder(folder, "--workdir") as aside:
        copy_tokenizer(name, aside)
        config = Path(name).parent / "config.json"  # of a checkpoint, which may name the end's ids
        if config.is_file():
            shutil.copyfile(config, aside / config.name)

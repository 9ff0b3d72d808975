"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path

UNFINISHED = ".unfinished"


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Writes a file in one move, in the place of one that is there.

    Whoever reads meanwhile, or after a kill or a full disk, finds the old file or the new one. Until
    then it has a name that cannot be guessed, so that nobody can have put a link there.

    Args:
      path: of the file; its folder is there.
      content: of the file; text becomes UTF-8.

    Raises:
      OSError: if it cannot be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_whole(f"{folder}/a", "text")
      ...     os.listdir(folder)
      ['a']
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(handle)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise

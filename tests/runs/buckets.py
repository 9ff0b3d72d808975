"""A bucket in memory, whose operations can be made to fail, or to do something else first."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hope_jax.data import bucket as bucket_file
from hope_jax.runs import mirror


class Flaky(MemoryFileSystem):
    """Calls `before(operation, path)` before each operation."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    before: ClassVar[Callable[[str, str], None]] = lambda operation, path: None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("flaky://", "memory://"))

    def find(self, path, *args, **kwargs):
        type(self).before("list", path)
        return super().find(path, *args, **kwargs)

    def cat_file(self, path, *args, **kwargs):
        type(self).before("read", path)
        return super().cat_file(path, *args, **kwargs)

    def get_file(self, path, *args, **kwargs):
        type(self).before("get", path)
        return super().get_file(path, *args, **kwargs)

    def pipe_file(self, path, *args, **kwargs):
        type(self).before("write", path)
        return super().pipe_file(path, *args, **kwargs)

    def put_file(self, source, path, *args, **kwargs):
        type(self).before("put", path)
        return super().put_file(source, path, *args, **kwargs)

    def rm_file(self, path):
        type(self).before("delete", path)
        return super().rm_file(path)


fsspec.register_implementation("flaky", Flaky, clobber=True)
RUN = "flaky://bucket/runs/a"


@pytest.fixture
def flaky(monkeypatch, tmp_path):
    """An empty bucket, an empty cache, and nothing that waits for long."""
    monkeypatch.setattr(Flaky, "store", {})
    monkeypatch.setattr(Flaky, "pseudo_dirs", [""])
    monkeypatch.setattr(Flaky, "before", staticmethod(lambda operation, path: None))
    monkeypatch.setattr(bucket_file, "_PAUSES", ())
    monkeypatch.setattr(mirror, "_PAUSE", 0.05)
    monkeypatch.setattr(mirror, "_PATIENCE", 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda action: monkeypatch.setattr(Flaky, "before", staticmethod(action))


def lose_machine(tmp_path: Path) -> None:
    """What was on this machine's disk is gone."""
    shutil.rmtree(tmp_path / "cache")

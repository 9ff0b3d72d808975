"""A machine without TPUs is not asked for them, whatever libtpu is there for."""

import os

from hope_jax.absent_tpus import skip_absent_tpus

NAMES = ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE")


def test_a_machine_without_tpus_is_not_asked_for_them(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name in ("accel0", "vfio/0"):
        here = tmp_path / f"machine_{name[:4]}"
        (here / name).parent.mkdir(parents=True)
        (here / name).touch()
        skip_absent_tpus(here)
        assert not set(NAMES) & set(os.environ)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # of a machine with virtual devices alone
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    skip_absent_tpus(tmp_path)
    assert [os.environ[name] for name in NAMES] == ["1", "mine", "v5p-8"]

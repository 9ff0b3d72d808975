"""What libtpu is told on a machine without TPUs, where it is there for its compiler alone."""

import os
from pathlib import Path


def skip_absent_tpus(devices: Path = Path("/dev")) -> None:
    """Keeps libtpu from asking a cloud for TPUs, which takes time and says several lines of errors.

    It has to be told before JAX is imported. What is set already stays.

    Args:
      devices: folder of the machine's devices, among which TPUs are files.
    """
    if [*devices.glob("accel*"), *devices.glob("vfio/[0-9]*")]:
        return
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")  # any: a topology's own counts

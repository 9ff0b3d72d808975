"""What a device can do at most, and the memory that is in use."""

import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import jax

# Dense bfloat16 FLOPs a second of one device, by its maker's data sheet. The first name that a device's
# kind begins with counts: an H100 with PCIe has other clocks than one with SXM.
_PEAKS = (
    ("TPU v4 lite", None),  # an inference chip
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA B200", 2250e12),
)


def peak_flops(kind: str) -> float | None:
    """bfloat16 FLOPs a second of a device of some kind, as JAX names it; None if it is not known.

    Example:
      >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
      (197000000000000.0, None)
    """
    return next((peak for name, peak in _PEAKS if kind.lower().startswith(name.lower())), None)


def memory_in_use(devices: Iterable[jax.Device]) -> int:
    """Bytes of the fullest device at its fullest or, where the devices do not tell, of this process."""
    told = [stats for device in devices if (stats := device.memory_stats())]
    peaks = [stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats]
    return max(peaks) if peaks else _resident()


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # no Linux: at its fullest, then
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""Settings that every test shares: a CPU that looks like eight devices, and quick compilation."""

import gc
import importlib.metadata
import os
import pathlib

# Compiled programs outlive the checkout; commands that tests start find them too.
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "hope_jax" / "programs"))
# The smallest too: of some 12,000 that the suite asks for, most are single operations, and many the same.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test here is compilation, of code that runs for milliseconds: a third less of it without
# LLVM's optimisations, a fifth of the rest where a program is one module of LLVM's and not up to 32, and
# a third of the rest where fusions need no MLIR, which newer JAX always takes.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
# Tracing makes many objects, few of them in circles: looking for those took a seventh of its time.
gc.set_threshold(100_000, 50, 100)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# Scripts, which find each other as neighbours.
collect_ignore = ["break_on_purpose.py", "faults_on_purpose.py"]


MAPPINGS = pathlib.Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Frees compiled programs between modules before the process runs out of mappings, of 65,530."""
    yield
    if not MAPPINGS.exists() or MAPPINGS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Runs a test with float64 arrays."""
    with jax.enable_x64(True):
        yield

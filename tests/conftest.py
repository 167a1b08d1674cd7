"""Strict JAX settings for every test, and float64 where a test asks for it."""

import gc
import os
from pathlib import Path

# Compilation is most of a test's time: programs are shared by the workers and by the processes that
# tests start, and kept for the next run. Set before JAX is imported, which reads it then.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Leave the quick part one case of every parametrised test: the others are slow."""
    seen = set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function in seen:
            item.add_marker("slow")
        elif not item.get_closest_marker("slow"):
            seen.add(function)


@pytest.fixture
def x64():
    """Run one test with float64 as the default dtype."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Forget compiled programs before the process has too many.

    Each maps some regions of memory. Linux allows a process 65530, beyond which XLA's compiler
    ends it with a segmentation fault.
    """
    yield
    regions = Path("/proc/self/maps")
    if regions.exists() and regions.read_text().count("\n") > 30_000:
        jax.clear_caches()
        gc.collect()

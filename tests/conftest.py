"""Strict JAX settings for every test, and float64 where a test asks for it."""

import gc
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


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

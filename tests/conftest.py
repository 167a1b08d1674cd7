"""Strict JAX settings for every test, and float64 where a test asks for it."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Run one test with float64 as the default dtype."""
    with jax.enable_x64(True):
        yield

"""Starts far from the mass are brought to it, each chain by a step size of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.samplers import UniformStart
from driftbridge.samplers.approach import Approach
from driftbridge.samplers.loop import over_chains

CHAINS, DIM = 16, 5


def two_scales(x, scale):
    """In every coordinate normal of this scale where `x > 0`, of a hundredth of it elsewhere."""
    return -0.5 * jnp.sum((x / jnp.where(x > 0, scale, scale / 100)) ** 2)


def starts(initial, target, dtype=jnp.float32):
    like = jnp.zeros(DIM, dtype)
    keys = jax.random.split(jax.random.key(0), CHAINS)
    return jax.jit(over_chains(lambda key: initial.propose(target, key, like), CHAINS))(keys)


@pytest.mark.slow
def test_every_chain_reaches_the_bulk():
    # Steps that suit x > 0 are never accepted where x < 0, from whose far end (2 / 1e-4 = 2e4
    # standard deviations) half of the coordinates start.
    target = db.from_density(two_scales, np.zeros(DIM, np.float32), 0.01)
    before = np.asarray(jax.vmap(target.potential)(starts(UniformStart(2.0), target)))
    after = np.asarray(jax.vmap(target.potential)(starts(Approach(), target)))
    assert before.min() > 1e3
    # Twice the potential is chi-square of 5 degrees at stationarity: beyond 60 with probability
    # 1e-11 (of 2000 chains the largest was 20).
    assert 2 * after.max() < 60


@pytest.mark.slow
def test_dtype_and_shape_are_those_of_the_position(x64):
    target = db.from_density(two_scales, np.zeros(DIM), 0.01)
    for dtype in (jnp.float32, jnp.float64):
        positions = starts(Approach(num_steps=2), target, dtype)
        assert positions.shape == (CHAINS, DIM)
        assert positions.dtype == dtype


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        Approach(num_steps=0)

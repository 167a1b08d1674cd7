"""Keys and noise: what is drawn has its law, and nothing is drawn twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftbridge.runtime.keys import as_key, chain_keys, streams
from driftbridge.samplers.noise import normals_and_uniforms


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_streams_differ():
    parts = [data(key).tolist() for key in streams(as_key(0))]
    assert len({tuple(part) for part in parts}) == 3


def test_chains_have_their_own_keys_whatever_others_there_are():
    key = as_key(1)
    many = data(chain_keys(key, jnp.arange(100)))
    assert len(np.unique(many, axis=0)) == 100
    np.testing.assert_array_equal(data(chain_keys(key, jnp.asarray([7, 3]))), many[[7, 3]])


@pytest.mark.slow
def test_normals_and_uniforms_are_independent():
    keys = jax.random.split(as_key(2), 20_000)
    normals, uniforms = jax.vmap(lambda key: normals_and_uniforms(key, (2,), jnp.float32, (2,)))(
        keys
    )
    standard = np.concatenate([normals, stats.norm.ppf(np.clip(uniforms, 1e-7, 1 - 1e-7))], axis=1)
    # A correlation of n independent pairs has standard deviation 1/sqrt(n): five sigma.
    correlation = np.corrcoef(standard.T) - np.eye(4)
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(len(keys))
    # Distances below this have probability 1 - 1e-5 each (Kolmogorov).
    for column in standard.T:
        assert stats.kstest(column, "norm").pvalue > 1e-5

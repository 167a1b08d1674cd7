"""Small networks: what their architectures promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.transport.networks import ACTIVATIONS, MLP, InputConvex, ResidualMLP, network_for

KEY = jax.random.key(0)


def points(n=40, dim=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [MLP(8, 2), ResidualMLP(8, 2)])
def test_a_network_begins_as_zero_and_takes_one_time_or_many(x64, architecture):
    network = architecture.build(KEY, 3, 2, np.float64)
    x = points()
    np.testing.assert_array_equal(network(jnp.asarray(0.3), x), np.zeros((40, 2)))
    leaves, structure = jax.tree.flatten(network)
    moved = jax.tree.unflatten(structure, [leaf + 0.1 for leaf in leaves])
    many = moved(jnp.full(40, 0.3), x)
    # The same numbers in another order of sums.
    np.testing.assert_allclose(moved(jnp.asarray(0.3), x), many, rtol=1e-12)
    assert np.abs(many - moved(jnp.full(40, 0.4), x)).max() > 0


def test_a_condition_is_seen(x64):
    network = network_for(MLP(8, 2), KEY, 3, 3, np.float64, num_conditions=1)
    leaves, structure = jax.tree.flatten(network)
    moved = jax.tree.unflatten(structure, [leaf + 0.1 for leaf in leaves])
    zero, one = (moved(jnp.asarray(0.5), points(), jnp.full((40, 1), c)) for c in (0.0, 1.0))
    assert np.abs(zero - one).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_an_input_convex_network_is_convex_at_every_time(x64, strength):
    network = InputConvex(16, 2, strength=strength).build(KEY, 3, 1, np.float64)
    x, y = points(seed=1), 3 * points(seed=2)
    for t in (0.0, 0.7):
        at = [network(jnp.asarray(t), p)[:, 0] for p in (x, y, (x + y) / 2)]
        # Between two points it lies below the chord, by the strength's share at least.
        gap = (at[0] + at[1]) / 2 - at[2] - strength * jnp.sum((x - y) ** 2, axis=1) / 8
        assert gap.min() > -1e-12 and gap.max() > 1e-4
    with pytest.raises(ValueError, match="takes no condition"):
        network(jnp.asarray(0.0), x, points())


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n not in ("selu", "relu")])
def test_activations_of_potentials_have_two_derivatives(x64, name):
    second = jax.vmap(jax.grad(jax.grad(ACTIVATIONS[name])))
    near = second(jnp.asarray([-1e-7, 1e-7]))
    # Continuous at zero, where those of relu and selu jump.
    np.testing.assert_allclose(near[0], near[1], atol=1e-5)


def test_wrong_networks_are_named():
    with pytest.raises(
        ValueError, match=r"must return \(n, 2\) for n points; .* returned \(2, 3\)"
    ):
        network_for(MLP(4, 1).build(KEY, 2, 3, np.float32), KEY, 2, 2, np.float32)
    with pytest.raises(ValueError, match="does not take times"):
        network_for(MLP(4, 1).build(KEY, 3, 2, np.float32), KEY, 2, 2, np.float32)
    with pytest.raises(ValueError, match="activation must be one of"):
        MLP(activation="sine").build(KEY, 2, 2, np.float32)

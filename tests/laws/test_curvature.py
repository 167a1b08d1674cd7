"""Curvature of paths, and pairs that are learned to have none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.training import Training
from driftbridge.transport import energy_distance
from driftbridge.transport.base import Fit
from driftbridge.transport.batch_distances import squared_energy_distance
from driftbridge.transport.couplings import Independent
from driftbridge.transport.curvature import (
    MinimalCurvature,
    curvature,
)
from driftbridge.transport.flow import Flow
from driftbridge.transport.flow_map import FlowMap


class Regression(eqx.Module):
    """The velocity of straight lines between independent N(0, 1) and N(0, 9)."""

    def __call__(self, t, x, condition=None):
        return x * (9 * t - (1 - t)) / ((1 - t) ** 2 + 9 * t**2)


def test_curvature_of_independent_lines_is_the_closed_form(x64):
    """Path energy 5.28761, `W2^2 = 4`, curvature their difference."""
    found = FlowMap(Fit("by hand"), Regression(), jnp.zeros(1), 200)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 1))
    # Both are quadratic in x: their mean over points of unit second moment is that of the law.
    x /= np.sqrt(np.mean(x**2))
    np.testing.assert_allclose(found(x), 3 * x, atol=1e-7)
    # The published five digits.
    assert curvature(found, x) == pytest.approx(1.28761, abs=1e-5)


@pytest.mark.slow
def test_the_penalty_is_without_bias(x64):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(300, 4, 2))), jnp.asarray(rng.normal(size=(300, 4, 2)))
    both = jax.jit(jax.vmap(lambda x, y: jnp.stack([
        squared_energy_distance(x, y), squared_energy_distance(x, y + 1)
    ])))(x, y)  # fmt: skip
    # Four points of one law: 0 in the mean, to four standard errors.
    error = np.std(both[:, 0]) / np.sqrt(300)
    assert abs(np.mean(both[:, 0])) < 4 * error < 0.25
    # Against the V-statistic of many points, whose bias is (1 / n + 1 / m) E|x - x'|.
    many = rng.normal(size=(2, 2000, 2))
    exact = energy_distance(many[0], many[1] + 1) ** 2 - 2 / 2000 * np.sqrt(np.pi)
    # 300 batches and 2000 points know it to about .06.
    assert np.mean(both[:, 1]) == pytest.approx(exact, abs=0.2)
    gradient = jax.grad(lambda x: squared_energy_distance(x, x))(x[0])
    assert np.all(np.isfinite(gradient))


def independent(x, y, key=0, source_weights=None, target_weights=None):
    return Independent(x, y, source_weights, target_weights)


def clouds(n=1500):
    """Two crossed lines, and four corners, blurred."""
    rng = np.random.default_rng(0)
    scales = np.where((np.arange(n) % 2)[:, None] == 1, [[2.0, 0.3]], [[0.3, 2.0]])
    x = rng.normal(size=(n, 2)) * scales
    y = 2.0 * rng.choice([-1, 1], size=(n, 2)) + 0.3 * rng.normal(size=(n, 2))
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.slow
def test_learned_pairs_have_straighter_paths_and_the_source_is_held():
    x, y = clouds()
    training = Training(num_steps=800, learning_rate=5e-3, averaging=0.99)
    plain = db.fit_map(x, y, Flow(coupling=independent, training=training, num_steps=10))
    found, free = (
        db.fit_map(x, y, MinimalCurvature(training=training, penalty=penalty, num_steps=10))
        for penalty in (20.0, 0.0)
    )
    assert curvature(found, x) < 0.25 * curvature(plain, x)
    numbers, loose = (dict(f.fit.numbers) for f in (found, free))
    # Held: no farther from the source than two samples of it are, up to a half.
    assert numbers["encoder_distance"] < 2 * numbers["encoder_floor"]
    # Not held, the encoder moves it: straight paths of a law that is not the source's.
    assert loose["encoder_distance"] > 2 * numbers["encoder_distance"]
    # Squared, 1500 points of one law have about 2 / 1500 * 2.8, a root of .06.
    assert energy_distance(np.asarray(found(x)), y) < 0.2
    compilations = Compilations()
    db.fit_map(y, x, MinimalCurvature(training=training, penalty=5.0, num_steps=10), 1)
    assert compilations.programs == 0


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"penalty must be finite and at least 0; got -1"):
        MinimalCurvature(penalty=-1.0)

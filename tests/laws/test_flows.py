"""Flows against closed forms: the affine map's field, and what networks learn on top of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.training import Training
from driftbridge.transport.affine import bures
from driftbridge.transport.couplings import (
    GlobalSinkhorn,
    Independent,
    Pooled,
    SemidiscreteCoupling,
)
from driftbridge.transport.flow import Flow
from driftbridge.transport.flow_map import FlowMap, Residual, Still, divergence
from driftbridge.transport.integration import Euler, Heun, RungeKutta4, integrate
from driftbridge.transport.maximum_mean_discrepancy import energy_distance
from driftbridge.transport.mccann import mccann
from driftbridge.transport.measures import Moments
from driftbridge.transport.minibatch import MinibatchOT
from driftbridge.transport.networks import MLP
from driftbridge.transport.refinement import HierarchicalRefinement

SOURCE = Moments(np.array([1.0, -1.0]), np.array([[1.0, 0.3], [0.3, 0.5]]))
TARGET = Moments(np.array([0.0, 2.0]), np.array([[2.0, -0.8], [-0.8, 1.5]]))
QUICK = Training(num_steps=1500, batch_size=128, validate_every=300)


def gaussian_flow():
    base = mccann(SOURCE, TARGET, np.float64)
    field = Residual(base, Still(), jnp.float64(1.0))
    return FlowMap(db.transport.base.Fit("flow"), field, base.shift)


def mixture(n, seed):
    """A standard normal and two clusters at (+-3, 0), of which the optimal map is known.

    The optimal map between product laws acts on each coordinate: on the second as the identity.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = np.stack(
        [3 * rng.choice([-1, 1], size=n) + 0.5 * rng.normal(size=n), rng.normal(size=n)], 1
    )
    return x.astype(np.float32), y.astype(np.float32)


@pytest.fixture(scope="module")
def learned():
    return db.fit_map(*mixture(3000, 0), Flow(training=QUICK), 1)


@pytest.mark.slow
def test_the_flow_between_gaussians_is_their_affine_map(x64):
    fitted, x = gaussian_flow(), np.random.default_rng(0).normal(size=(30, 2))
    matrix = bures(SOURCE.covariance, TARGET.covariance).matrix
    # Paths are straight and their speed is constant: every scheme is exact up to rounding.
    expected = TARGET.mean + (x - SOURCE.mean) @ matrix
    np.testing.assert_allclose(fitted(x), expected, atol=1e-12)
    np.testing.assert_allclose(fitted.inverse(expected), x, atol=1e-12)
    # The divergence along a path is sum (s - 1) / (1 - t + t s), whose integral is sum log s:
    # 20 steps of order 4 leave (slope / 20)^4.
    np.testing.assert_allclose(fitted.log_det(x), np.linalg.slogdet(matrix)[1], atol=1e-5)
    middle = np.asarray(fitted.trajectory(x, [0.0, 0.25, 1.0]))
    np.testing.assert_allclose(middle[1], 0.75 * x + 0.25 * expected, atol=1e-12)


def test_densities_are_carried(x64):
    fitted = gaussian_flow()

    def density(moments):
        def log_prob(x):
            z = np.linalg.solve(np.linalg.cholesky(moments.covariance), (x - moments.mean).T)
            log_det = np.linalg.slogdet(2 * np.pi * moments.covariance)[1]
            return -np.sum(z**2, axis=0) / 2 - log_det / 2

        return log_prob

    y = np.random.default_rng(1).normal(size=(20, 2))
    np.testing.assert_allclose(fitted.log_prob(y, density(SOURCE)), density(TARGET)(y), atol=1e-5)


@pytest.mark.parametrize(("scheme", "order"), [(Euler(), 1), (Heun(), 2), (RungeKutta4(), 4)])
def test_errors_fall_with_the_order_of_the_scheme(x64, scheme, order):
    # x' = cos(t) x: x(1) = x(0) exp(sin 1).
    start = jnp.asarray([[1.0], [2.0]])

    def error(steps):
        found = integrate(lambda t, x: jnp.cos(t) * x, start, 0.0, 1.0, steps, scheme)
        return float(jnp.max(jnp.abs(found - start * np.exp(np.sin(1.0)))))

    # The next order of the error leaves a tenth of a unit at these steps.
    assert abs(np.log2(error(16) / error(32)) - order) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("dim", [3, 40])
def test_divergence_is_the_trace(x64, dim):
    rng = np.random.default_rng(0)
    matrix, x = jnp.asarray(rng.normal(size=(dim, dim))), jnp.asarray(rng.normal(size=(5, dim)))
    value, found = divergence(lambda x: x @ matrix, x)
    np.testing.assert_allclose(value, x @ matrix, rtol=1e-12)
    # Hutchinson's estimate has the variance 2 |symmetric part off the diagonal|^2 / 8.
    symmetric = (matrix + matrix.T) / 2
    off = symmetric - jnp.diag(jnp.diag(symmetric))
    spread = float(np.sqrt(2 * jnp.sum(off**2) / 8))
    np.testing.assert_allclose(found, jnp.trace(matrix), atol=1e-10 if dim == 3 else 4 * spread)


@pytest.mark.slow
def test_a_learned_flow_carries_the_law(learned):
    x, y = mixture(1000, 5)
    compared = db.transport.compare(np.asarray(learned(x)), y, "energy", num_permutations=99)
    affine = db.fit_map(*mixture(3000, 0), "affine")
    before = db.transport.compare(np.asarray(affine(x)), y, "energy", num_permutations=0)
    # Twice the floor is what a map off by a tenth of a cluster's width would show.
    assert compared.value < 2 * compared.floor < before.value


@pytest.mark.slow
def test_a_learned_flow_keeps_the_coordinate_that_needs_no_move(learned):
    x, _ = mixture(1000, 6)
    moved = np.asarray(learned(x) - x)
    # Batches of 256 pair the second coordinate up to their own noise, some .1.
    assert np.mean(moved[:, 1] ** 2) < 0.1 * np.mean(moved[:, 0] ** 2)
    # Energy of a path is at least the squared distance it covers, and near it where it is straight.
    places = np.asarray(learned.trajectory(x, np.linspace(0, 1, 21)))
    energy = 20 * np.sum((places[1:] - places[:-1]) ** 2, axis=(0, 2)).mean()
    assert 1 <= energy / np.mean(np.sum(moved**2, axis=1)) < 1.1


def test_round_trip(learned):
    x, _ = mixture(200, 7)
    # Steps of order 4 through a field that turns fast between two clusters.
    np.testing.assert_allclose(learned.inverse(learned(x)), x, atol=5e-3)


@pytest.mark.slow
def test_gaussians_leave_the_affine_map():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 3)), rng.normal(size=(400, 3)) @ np.diag([2.0, 1.0, 0.5]) + 1
    x, y = x.astype(np.float32), y.astype(np.float32)
    found = [db.fit_map(x, y, Flow(training=QUICK), seed) for seed in range(2)]
    affine = db.fit_map(x, y, "affine")
    for fitted in found:
        distance = np.mean(np.sum((np.asarray(fitted(x)) - np.asarray(affine(x))) ** 2, axis=1))
        # What is learned of noise: the sampling error of 400 points is of the order of 3 / 400 of
        # the variance of 5.25; ten times that would be a map of its own.
        assert distance < 10 * 3 / 400 * 5.25


def test_a_saved_flow_is_the_same(learned, tmp_path):
    x, _ = mixture(50, 8)
    again = db.load(learned.save(tmp_path / "flow.npz"))
    np.testing.assert_array_equal(again(x), learned(x))
    assert again.fit.numbers == learned.fit.numbers


def test_the_losses_of_the_training_are_kept(learned, tmp_path):
    for fit in (learned.fit, db.load(learned.save(tmp_path / "flow.npz")).fit):
        ((name, curve),) = fit.curves
        assert name == "flow"
        assert len(curve.steps) == len(curve.losses) == len(curve.held_out)
        assert curve.held_out[-1] < curve.held_out[0]


COUPLINGS = {
    "independent": lambda x, y: Independent(x, y),
    "minibatch": lambda x, y: MinibatchOT(x, y, batch_size=64, pool=40),
    "minibatch, entropic": lambda x, y: MinibatchOT(x, y, 64, 0.1, pool=20),
    "sinkhorn": lambda x, y: Pooled(GlobalSinkhorn(x, y, 0.1), 2000),
    "semidiscrete": lambda x, y: Pooled(SemidiscreteCoupling(x, y, 0.1), 2000),
    "refined": lambda x, y: HierarchicalRefinement(x, y),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUPLINGS)
def test_every_coupling_makes_a_flow_to_the_target(name):
    x, y = mixture(1024, 0)

    def coupling(x, y, key=0, **weights):
        return COUPLINGS[name](x, y)

    fitted = db.fit_map(x, y, Flow(coupling=coupling, held_out=0.0, training=QUICK))
    z, there = mixture(1000, 7)
    # Between samples of 1000 it is .04 to .16; of the affine map's image .51.
    assert energy_distance(np.asarray(fitted(z)), there) < 0.2


@pytest.mark.slow
def test_the_affine_map_is_compared_with_on_weighted_points():
    """Where all weight is on a ring, and most points are not, the flow to the ring is kept."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 400)
    ring = 3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    y = np.concatenate([ring, 0.1 * rng.normal(size=(1200, 2))])
    weights = np.repeat([0.99 / 400, 0.01 / 1200], [400, 1200])
    fitted = db.fit_map(rng.normal(size=(400, 2)), y, Flow(training=QUICK), target_weights=weights)
    assert not fitted.fit.messages
    radius = np.linalg.norm(fitted(rng.normal(size=(500, 2))), axis=1)
    # The affine map leaves a normal law of this deviation, whose radius is 2.7 +- 1.4.
    assert radius.std() < 0.5


@pytest.mark.slow
def test_a_map_is_a_function_inside_jit(learned):
    x = jnp.asarray(mixture(20, 9)[0])
    np.testing.assert_allclose(jax.jit(lambda x: learned(x))(x), learned(x), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(learned(x) ** 2))(x)
    assert np.all(np.isfinite(gradient))


@pytest.mark.slow
def test_another_fit_of_the_same_shapes_compiles_nothing(learned):
    from driftbridge.runtime.compilations import Compilations

    x, y = mixture(3000, 11)
    learned(x[:1000])
    watch = Compilations()
    fitted = db.fit_map(x, y, Flow(training=dataclasses.replace(QUICK, learning_rate=1e-3)), 2)
    fitted(x[:1000])
    assert watch.programs == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Flow(held_out=1.0), "held_out must lie in"),
        (lambda: Flow(network=MLP(activation="sine")), "activation must be one of"),
        (lambda: Flow(network=MLP().build(jax.random.key(0), 3, 3, np.float32)), "network"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        db.fit_map(*mixture(60, 0), change())


def test_bad_times_are_named(learned):
    x, _ = mixture(10, 0)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1\]; got 1.5"):
        learned.velocity(1.5, x)
    with pytest.raises(ValueError, match="times must increase"):
        learned.trajectory(x, [0.5, 0.1])


def shifted(x, y, key=0, **weights):
    return Independent(x + 1, y)


def flat(x, y, key=0, **weights):
    return Independent(x[:, :1], y[:, :1])


@pytest.mark.parametrize(
    ("coupling", "message"),
    [
        (shifted, "not have the law of the source as its marginal"),
        (Independent(*mixture(500, 3)[::-1]), "not have the law of the source as its marginal"),
        (flat, "source points have 1 coordinates, those of the data 2"),
    ],
)
def test_a_coupling_that_breaks_the_marginals_is_named(coupling, message):
    with pytest.raises(ValueError, match=message):
        db.fit_map(*mixture(400, 0), Flow(coupling=coupling, training=QUICK))


@pytest.mark.slow
def test_a_coupling_of_other_draws_of_the_laws_is_taken():
    # 400 data and 1024 draws of 500 others: the bound is 3 (1 / 1024 + 1 / 400)^(1 / 2), .18, where
    # two samples of 400 and 500 differ by .05 to .1.
    none = dataclasses.replace(QUICK, num_steps=0)
    found = db.fit_map(
        *mixture(400, 0), Flow(coupling=Independent(*mixture(500, 3)), training=none)
    )
    assert found.fit.converged


@pytest.mark.slow
def test_a_coupling_is_given_weights_where_there_are_some():
    """A function of `(x, y, key=key)` is enough where points are alike."""
    given = []

    def plain(x, y, key):
        return Independent(x, y)

    def weighted(x, y, key, **weights):
        given.extend(weights)
        return Independent(x, y, **weights)

    short = Training(num_steps=2, validate_every=2)
    x, y = mixture(100, 0)
    db.fit_map(x, y, Flow(coupling=plain, training=short))
    heavy = np.arange(1.0, 101.0) / 5050
    db.fit_map(x, y, Flow(coupling=weighted, training=short), target_weights=heavy)
    assert set(given) == {"target_weights"}

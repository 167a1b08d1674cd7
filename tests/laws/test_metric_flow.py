"""Metric flow matching: straight in the flat metric, of lower energy in a curved one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.training import Training, train
from driftbridge.transport import Paired, wasserstein
from driftbridge.transport.affine import gaussians
from driftbridge.transport.bent_path import BentPath, MetricEnergy, Timeless
from driftbridge.transport.data_metric import (
    DiagonalMetric,
    FlatMetric,
    Land,
    RadialBasis,
)
from driftbridge.transport.flow import FlowMatching
from driftbridge.transport.mccann import mccann
from driftbridge.transport.metric_flow import BentMatching, MetricFlow
from driftbridge.transport.networks import MLP
from driftbridge.transport.points import Sample

RANDOM = np.random.default_rng(0)


def ring(n=400):
    """Points about a half circle."""
    angle = np.pi * RANDOM.random(n)
    return (1 + 0.05 * RANDOM.normal(size=n))[:, None] * np.stack(
        [np.cos(angle), np.sin(angle)], axis=1
    )


@pytest.mark.slow
def test_land_is_the_inverse_local_variance(x64):
    points, bandwidth, floor = ring(), 0.2, 1e-2
    metric = Land(bandwidth, floor).build(points, RANDOM)

    def local_variance(x):
        away = points[None] - x[:, None]
        weights = np.exp(-np.sum(away**2, axis=2) / (2 * bandwidth**2))
        return np.einsum("nm,nmd->nd", weights, away**2)

    x = RANDOM.normal(size=(30, 2))
    expected = 1 / (local_variance(x) / local_variance(points).mean() + floor)
    assert np.allclose(metric(jnp.asarray(x)), expected, rtol=1e-8)
    # Far from all data only the floor is left.
    assert np.allclose(metric(jnp.full((1, 2), 50.0)), 1 / floor, rtol=1e-9)
    # Left to itself, the bandwidth is as far as one in fifty of the points are.
    own = Land().build(points, RANDOM)
    away = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert np.allclose(own.bandwidth, np.median(np.sort(away, axis=1)[:, len(points) // 50]))
    # In other units of length, with the bandwidth in them too, it is the same.
    scaled = Land(3 * bandwidth, floor).build(3 * points + 1, RANDOM)
    assert np.allclose(scaled(jnp.asarray(3 * x + 1)), expected, rtol=1e-8)


@pytest.mark.slow
def test_radial_basis_is_near_one_on_the_data_alone(x64):
    points = ring()
    metric = RadialBasis(num_centres=30, floor=1e-2).build(points, np.random.default_rng(1))
    assert np.mean((np.asarray(metric(jnp.asarray(points))) - 1) ** 2) < 0.05
    assert np.allclose(metric(jnp.full((1, 2), 50.0)), 100)


@pytest.mark.slow
def test_the_velocity_of_a_path_is_its_derivative(x64):
    network = MLP(8, 2).build(as_key(0), 4, 2, np.float64)
    network = jax.tree.map(lambda leaf: leaf + 0.3 * RANDOM.normal(size=leaf.shape), network)
    path = BentPath(network, jnp.asarray([0.5, -1.0]), jnp.asarray(2.0))
    x, y = (jnp.asarray(RANDOM.normal(size=(20, 2))) for _ in range(2))
    t, h = jnp.asarray(RANDOM.random(20)), 1e-5
    place, velocity = path(t, x, y)
    ahead, behind = path(t + h, x, y)[0], path(t - h, x, y)[0]
    assert np.allclose(velocity, (ahead - behind) / (2 * h), atol=1e-8)
    assert np.allclose(path(jnp.zeros(20), x, y)[0], x) and np.allclose(
        path(jnp.ones(20), x, y)[0], y
    )
    assert np.abs(place - (1 - t[:, None]) * x - t[:, None] * y).max() > 0.1


QUICK = Training(num_steps=400, batch_size=128, validate_every=50)


@pytest.mark.slow
def test_in_the_flat_metric_no_path_is_below_the_straight_one(x64):
    """A straight line has the least energy, so bends of a random network only add to it."""
    x, y = ring(60), ring(60)
    path = BentPath(None, jnp.zeros(2), jnp.ones(()))
    objective = MetricEnergy(Paired(x, y), FlatMetric(), path, jnp.zeros(()))
    # On one grid of times for each pair the mean over times is the integral.
    times = np.repeat((np.arange(50) + 0.5) / 50, len(x))
    ends = np.tile(x, (50, 1)), np.tile(y, (50, 1))
    batch = tuple(jnp.asarray(part) for part in (times, *ends, np.zeros((len(times), 2))))
    straight = MLP(8, 2).build(as_key(0), 4, 2, np.float64)
    energy = float(objective.loss(straight, batch))
    assert energy == pytest.approx(np.mean(np.sum((y - x) ** 2, axis=1)), rel=1e-12)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        bent = jax.tree.map(lambda leaf, d=draw: leaf + 0.2 * d.normal(size=leaf.shape), straight)
        assert objective.loss(bent, batch) > energy


class Slope(DiagonalMetric):
    """`G(x) = exp(2 x)` on the line, in which `exp(x)` is the length."""

    def __call__(self, x):
        return jnp.exp(2 * x)


@pytest.mark.slow
def test_paths_on_a_line_reach_their_least_energy():
    """In one dimension it is the square of the length, `(exp(x1) - exp(x0))^2`."""
    rng = np.random.default_rng(3)
    x, y = (rng.uniform(*ends, size=(500, 1)).astype(np.float32) for ends in ((-1, 0), (1, 2)))
    path = BentPath(None, jnp.zeros(1, jnp.float32), jnp.ones((), jnp.float32))
    objective = MetricEnergy(Paired(x, y), Slope(), path, jnp.zeros((), jnp.float32))
    network = MLP(32, 2).build(as_key(0), 2, 1, np.float32)
    trained = train(objective, network, as_key(1), QUICK, objective)
    straight, reached = trained.curve.held_out[0], trained.curve.held_out[-1]
    least = float(np.mean((np.exp(y) - np.exp(x)) ** 2))
    # 4096 held-out rows of 500: pairs have a relative sd of about .7, which gives 1 %; the times
    # are even, and along a geodesic the energy does not depend on them.
    assert 0.95 * least < reached < 1.05 * least
    assert straight > 1.2 * least


@pytest.mark.slow
def test_along_straight_paths_it_is_flow_matching(x64):
    """With a path network of zero, and the same random numbers, the losses are one function."""
    x, y = ring(100), 3 * ring(100) + 1
    coupling, scale = Paired(x, y), jnp.asarray(1.3)
    equal = np.full(len(x), 0.01)
    base = mccann(*gaussians(Sample(x, equal), Sample(y, equal)), np.float64)
    straight = BentPath(MLP(8, 2).build(as_key(0), 4, 2, np.float64), jnp.zeros(2), scale)
    bent = BentMatching(coupling, straight, base, scale, jnp.zeros(()))
    plain = FlowMatching(coupling, base, scale)
    network = MLP(8, 2).build(as_key(1), 2, 2, np.float64)
    network = jax.tree.map(lambda leaf: leaf + RANDOM.normal(size=leaf.shape), network)
    losses = [float(each.loss(network, each.batch(as_key(2), 500))) for each in (bent, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.slow
def test_a_curved_metric_bends_the_flow():
    angle = np.abs(RANDOM.normal(0, 1 / (2 * np.pi), size=(2, 800))) * np.pi
    radius = 1 + 0.1 * RANDOM.normal(size=(2, 800))
    x, y = (
        (r[:, None] * np.stack([side * np.cos(a), np.sin(a)], axis=1)).astype(np.float32)
        for side, a, r in zip((-1, 1), angle, radius, strict=True)
    )
    small = MLP(32, 2)
    method = MetricFlow(Land(0.2), None, small, QUICK, Timeless(small), QUICK)
    curved = db.fit_map(x, y, method)
    numbers = dict(curved.fit.numbers)
    assert numbers["path_energy"] < 0.5 * numbers["straight_energy"]
    # Straight ways between the feet of the arch are at half the mean height of these, .2, and one
    # as high as the arch at 1.
    half = np.asarray(curved.trajectory(x, [0.5]))[0]
    assert np.median(half[:, 1]) > 0.6
    # The end is the target all the same.
    assert wasserstein(curved(x), y) < 0.25 * wasserstein(x, y)
    watch = Compilations()
    db.fit_map(2 * x, y + 1, method).trajectory(x, [0.5])
    assert watch.programs == 0


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"bandwidth must be positive; got 0\.0"):
        Land(0.0)
    with pytest.raises(ValueError, match=r"floor must be positive; got -1\.0"):
        Land(floor=-1.0)
    with pytest.raises(ValueError, match="noise must be at least 0"):
        MetricFlow(noise=-0.1)
    with pytest.raises(ValueError, match="num_centres must be at least 1"):
        RadialBasis(num_centres=0)

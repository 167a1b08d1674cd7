"""Rectified flows: closed forms between Gaussians, and what their losses do not tell."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.training import Training
from driftbridge.transport.affine import bures, gaussians
from driftbridge.transport.base import Fit
from driftbridge.transport.c_rectified import CRectified, FenchelYoung
from driftbridge.transport.convex_cost import HalfSquare, Power
from driftbridge.transport.couplings import Independent, Paired
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.gaussian_rectified import c_rectified_gaussians, rectified_gaussians
from driftbridge.transport.mccann import mccann
from driftbridge.transport.measures import Moments
from driftbridge.transport.optimality import optimality_gap
from driftbridge.transport.pairing import Parts
from driftbridge.transport.points import Sample
from driftbridge.transport.potential import GradientField, Potential, derivatives, laplacian
from driftbridge.transport.rectified import (
    Exchanged,
    Generated,
    Rectified,
    Rematched,
    reflowed,
    translation,
)

SOURCE, TARGET = np.diag([1.0, 0.2]), np.array([[1.0, 0.9], [0.9, 1.5]])
# Between these two; plain rectified flow stops at the other.
OPTIMAL, PLAIN = 0.8413520505, 0.9938839319
COSTS = {"half square": HalfSquare(), "1.5": Power(1.5), "3": Power(3.0)}


def fit_numbers(fitted):
    return dict(fitted.fit.numbers)


def test_plain_rounds_stop_above_the_optimal_cost():
    costs = [r.cost for r in rectified_gaussians(SOURCE, TARGET, 12)]
    # Fifty steps of order four leave 5e-9.
    np.testing.assert_allclose(costs, PLAIN, atol=1e-7)


def test_rounds_of_gradients_reach_the_optimal_map():
    rounds = c_rectified_gaussians(SOURCE, TARGET, 6)
    costs = np.array([r.cost for r in rounds])
    assert np.all(np.diff(costs) < 1e-9) and costs[0] > 0.8437
    assert costs[3] == pytest.approx(OPTIMAL, abs=1e-6)
    assert costs[5] == pytest.approx(OPTIMAL, abs=1e-9)
    # The maps approach the optimal one eight times nearer in each round.
    exact = bures(SOURCE, TARGET).matrix
    errors = [np.abs(r.matrix - exact).max() for r in rounds]
    assert np.all(np.array(errors[1:5]) < 0.2 * np.array(errors[:4]))
    for found in rounds:
        image = found.matrix @ SOURCE @ found.matrix.T
        np.testing.assert_allclose(image, TARGET, atol=1e-6)


@pytest.mark.parametrize("rounds", [rectified_gaussians, c_rectified_gaussians])
def test_commuting_covariances_are_exact_in_one_round(rounds):
    target = np.diag([3.0, 1.0])
    exact = np.diag(np.sqrt(np.diagonal(target) / np.diagonal(SOURCE)))
    # 200 steps of order four leave 6e-11.
    found = rounds(SOURCE, target, 1, num_steps=200)[0]
    np.testing.assert_allclose(found.matrix, exact, atol=1e-9)


def test_optimal_pairs_stay_as_they_are():
    exact = bures(SOURCE, TARGET).matrix
    for rounds in (rectified_gaussians, c_rectified_gaussians):
        found = rounds(SOURCE, TARGET, 1, cross=SOURCE @ exact.T, num_steps=200)[0]
        np.testing.assert_allclose(found.matrix, exact, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTS)
def test_costs_and_conjugates_are_a_pair(x64, name):
    cost, rng = COSTS[name], np.random.default_rng(0)
    d, p = (jnp.asarray(rng.normal(size=(200, 3))) for _ in range(2))
    # Fenchel and Young: never below, and equal at the gradient.
    assert np.all(cost.value(d) + cost.conjugate(p) - jnp.sum(d * p, axis=1) >= 0)
    p = cost.gradient(d)
    met = cost.value(d) + cost.conjugate(p) - jnp.sum(d * p, axis=1)
    np.testing.assert_allclose(met, 0, atol=1e-9)
    np.testing.assert_allclose(cost.conjugate_gradient(p), d, atol=1e-9)
    slopes = jax.grad(lambda d: jnp.sum(cost.value(d)))(d)
    np.testing.assert_allclose(slopes, cost.gradient(d), atol=1e-9)
    slopes = jax.grad(lambda p: jnp.sum(cost.conjugate(p)))(p)
    np.testing.assert_allclose(slopes, cost.conjugate_gradient(p), atol=1e-9)


def gaussian_base(dim=3, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, dim, dim))
    means = rng.normal(size=(2, dim))
    moments = [Moments(m, r @ r.T + 0.1 * np.eye(dim)) for m, r in zip(means, roots, strict=True)]
    return mccann(*moments, np.float64), moments


class Nothing(eqx.Module):
    def __call__(self, t, x, condition=None):
        return jnp.zeros((x.shape[0], 1), x.dtype)


@pytest.mark.slow
def test_the_affine_field_has_a_potential(x64):
    base, _ = gaussian_base()
    potential = Potential(base, Nothing(), *map(jnp.asarray, (1.0, 1.0, 0.0)))
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(50, 3)) * 3)
    for time in (0.0, 0.3, 1.0):
        t = jnp.full(50, time)
        at = eqx.filter_jit(derivatives)(potential, t, x)
        np.testing.assert_allclose(at.in_place, eqx.filter_jit(base)(t, x), atol=1e-12)
        # Straight lines at constant speed: Hamilton and Jacobi's equation, up to a function of
        # time, here |m1 - m0|^2 / 2 less what moves with the mean.
        left = at.in_time + jnp.sum(at.in_place**2, axis=1) / 2
        np.testing.assert_allclose(left, left[0], atol=1e-10)


def test_the_base_of_a_process_with_noise_adds_the_score(x64):
    base, (first, last) = gaussian_base()
    epsilon = 0.7
    plain, noisy = (
        GradientField(Potential(base, Nothing(), *map(jnp.asarray, (1.0, 1.0, e))))
        for e in (0.0, epsilon)
    )
    rng = np.random.default_rng(2)
    x, time = jnp.asarray(rng.normal(size=(20, 3))), 0.4
    t = jnp.full(20, time)
    matrix = (1 - time) * np.eye(3) + time * bures(first.covariance, last.covariance).matrix
    mean = (1 - time) * first.mean + time * last.mean
    score = -np.linalg.solve(matrix @ first.covariance @ matrix.T, (np.asarray(x) - mean).T).T
    found = eqx.filter_jit(lambda a, b: a(t, x) - b(t, x))(noisy, plain)
    np.testing.assert_allclose(found, epsilon / 2 * score, atol=1e-9)


def test_the_laplacian_is_the_mean_over_signs(x64):
    base, _ = gaussian_base()
    potential = Potential(base, Nothing(), *map(jnp.asarray, (1.0, 1.0, 0.3)))
    t, x = jnp.full(1, 0.5), jnp.ones((1, 3))
    signs = jnp.asarray([[[a, b, 1.0]] for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    along = jax.jit(jax.vmap(lambda s: laplacian(potential, t, x, s)[0]))
    hessian = jax.jit(jax.jacfwd(lambda p: GradientField(potential)(t, p[None])[0]))(x[0])
    found = np.mean(along(signs))
    assert found == pytest.approx(float(jnp.trace(hessian)), abs=1e-10)


class Turning(eqx.Module):
    """`-|x|^2 / (1 - 2 t)`, whose gradient is the velocity of `x1 = -x0`."""

    network: None = None

    def __call__(self, t, x, condition=None):
        return -jnp.sum(x**2, axis=1, keepdims=True) / jnp.reshape(1 - 2 * t, (-1, 1))


CENTRES = np.array([[0.0, 0.0], [2.0, 0.0]])
ENDS = np.array([[2.0, 1.0], [0.0, -1.0]])


class TwoModes(eqx.Module):
    """Constant velocity near each of two points that move past one another."""

    network: None = None

    def __call__(self, t, x, condition=None):
        t = jnp.reshape(t, (-1, 1, 1))
        at = (1 - t) * jnp.asarray(CENTRES)[None] + t * jnp.asarray(ENDS)[None]
        nearest = jnp.argmin(jnp.sum((x[:, None, :] - at) ** 2, axis=2), axis=1)
        speed = jnp.asarray(ENDS - CENTRES)[nearest]
        return jnp.sum(speed * x, axis=1, keepdims=True)


def loss_of(potential, x, y):
    """The loss of c-rectified flow on these pairs."""
    level = jnp.asarray(np.mean(np.sum((y - x) ** 2, axis=1)) / 2)
    objective = FenchelYoung(Paired(x, y), potential, HalfSquare(), level)
    batch = objective.batch(jax.random.key(0), 501)
    return float(eqx.filter_jit(lambda held, batch: held.loss(None, batch))(objective, batch))


@pytest.mark.slow
def test_a_loss_of_zero_is_no_optimality(x64):
    """Negative controls: losses are 0, and the exchange of images saves what the gap says."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    # Of 501 times the middle one is near 1/2, where the velocity is infinite but the pairs' own.
    assert loss_of(Turning(), x, -x) == pytest.approx(0, abs=1e-12)
    # E |x1 - x0|^2 = 4 d, where doing nothing costs 0; the sample's own least cost is small.
    assert np.mean(np.sum((2 * x) ** 2, axis=1)) == pytest.approx(8, rel=0.2)
    assert optimality_gap(x, -x) > 0.95
    assert optimality_gap(x, x @ np.diag([3.0, 0.5]) + 1) == 0

    mode = np.arange(400) % 2
    x = CENTRES[mode] + 0.05 * rng.normal(size=(400, 2))
    y = x + (ENDS - CENTRES)[mode]
    assert loss_of(TwoModes(), x, y) == pytest.approx(0, abs=1e-12)
    field = GradientField(TwoModes())
    # The flow of the field makes the same pairs again: no round would change them.
    again = FlowMap(Fit("by hand"), field, jnp.zeros(2), 20)(x)
    np.testing.assert_allclose(again, y, atol=1e-12)
    # Crossing costs (5 + 5) / 2 and going to the nearer end 1 for each point.
    assert optimality_gap(x, again) == pytest.approx(0.8, abs=0.03)


def test_the_gap_is_of_the_cost_that_is_asked(x64):
    # Three points on a line: a book is moved by one place each, or one of them by all.
    x = np.arange(3.0)[:, None]
    y = np.array([1.0, 2.0, 3.0])[:, None]
    over = np.array([3.0, 1.0, 2.0])[:, None]
    for cost in COSTS.values():
        assert optimality_gap(x, y, cost) == pytest.approx(0, abs=1e-9)
    # sum |d|^3 / 3 is 9 against 1, sum |d|^1.5 / 1.5 is 3^1.5 / 1.5 against 2.
    assert optimality_gap(x, over, COSTS["3"]) == pytest.approx(1 - 3 / 27)
    assert optimality_gap(x, over, COSTS["1.5"]) == pytest.approx(1 - 3 / 3**1.5)
    with pytest.raises(ValueError, match="must both be"):
        optimality_gap(x, x[:2])


def gaussian_points(covariance, n=2000, seed=0):
    z = np.random.default_rng(seed).normal(size=(n, 2))
    return (z @ np.linalg.cholesky(covariance).T).astype(np.float32)


def independent(x, y, key=0, source_weights=None, target_weights=None):
    return Independent(x, y, source_weights, target_weights)


QUICK = Training(num_steps=500, learning_rate=1e-2, averaging=0.99, validate_every=100)


def test_translation_knows_the_means_alone(x64):
    x, y = gaussian_points(SOURCE), gaussian_points(TARGET, seed=1) + np.float32(2)
    samples = [Sample(p, np.full(len(p), 1 / len(p))) for p in (x, y)]
    base = translation(*gaussians(*samples), np.float64)
    moved = base(jnp.float64(0.3), jnp.asarray(x, jnp.float64))
    np.testing.assert_allclose(moved, np.broadcast_to(base.shift, moved.shape), atol=1e-12)
    start = base.whitened(base.start_of(jnp.float64(0.0), jnp.asarray(x, jnp.float64)))
    # The ridge is 1e-6 of the variances.
    np.testing.assert_allclose(np.cov(start.T, ddof=0), np.eye(2), atol=1e-5)


@pytest.mark.slow
def test_learned_rounds_reach_what_exact_moments_reach():
    """A potential and a velocity from independent pairs, without the affine map."""
    x, y = gaussian_points(SOURCE), gaussian_points(TARGET, seed=1)
    settings = {"coupling": independent, "training": QUICK, "base": translation, "num_steps": 10}
    fitted = {
        method.name: db.fit_map(x, y, method)
        for method in (Rectified(**settings), CRectified(**settings))
    }
    # The affine map between the samples is near the optimal one, so that its cost is the bar; the
    # cost of 2000 points is known to 2 %, but both are of the same points.
    least = db.fit_map(x, y, "affine").cost(x).mean
    costs = {name: found.cost(x).mean for name, found in fitted.items()}
    # By exact moments 1.18 and 1.00 times the least cost; 5 % for 500 steps.
    assert costs["rectified"] > 1.1 * least
    assert costs["c_rectified"] < 1.06 * least
    for found in fitted.values():
        assert found.fit.converged
        # Of 200 held-out points the least cost is below that of an optimal map.
        assert 2 * fit_numbers(found)["cost_2"] == pytest.approx(found.cost(x).mean, rel=0.25)
        image = np.asarray(found(x))
        np.testing.assert_allclose(np.cov(image.T), TARGET, atol=0.15)
    gaps = {name: fit_numbers(found)["optimality_gap"] for name, found in fitted.items()}
    assert gaps["c_rectified"] < 0.01 < gaps["rectified"]
    compilations = Compilations()
    db.fit_map(y, x, CRectified(**settings), 1)
    assert compilations.programs == 0


@pytest.mark.slow
def test_rounds_keep_a_checkpoint_each(tmp_path):
    x, y = gaussian_points(SOURCE), gaussian_points(TARGET, seed=1)
    training = dataclasses.replace(QUICK, num_steps=20, checkpoint=str(tmp_path / "state"))
    method = CRectified(coupling=independent, training=training, base=translation, num_steps=10)
    fitted = db.fit_map(x, y, method)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.1", "state.2"]
    # Both rounds have ended and are read.
    np.testing.assert_array_equal(db.fit_map(x, y, method)(x), fitted(x))


@pytest.mark.slow
def test_power_costs_have_the_monotone_map_on_a_line():
    """In one dimension every convex cost has the same optimal map."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1)).astype(np.float32)
    y = (4 + 2 * rng.normal(size=(2000, 1))).astype(np.float32)
    method = CRectified(
        cost=Power(3.0), rounds=1, coupling=independent, training=QUICK, base=translation
    )
    fitted = db.fit_map(x, y, method)
    inside = np.linspace(-1.5, 1.5, 7)[:, None].astype(np.float32)
    # Quantiles of 2000 points are right to 2 * 1.3 / sqrt(2000) = .06, and training to .1.
    np.testing.assert_allclose(fitted(inside), 4 + 2 * inside, atol=0.25)
    assert fit_numbers(fitted)["optimality_gap"] < 0.01


def test_end_points_are_data_or_images(x64):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 2))
    target = Sample(points, np.full(60, 1 / 60))
    image = rng.permutation(points)[:50] + 1e-4
    found, rows = Rematched(batch_size=25).of(image, target, np.random.default_rng(1), 1)
    # Each end point is one of the data, none twice.
    np.testing.assert_array_equal(found, points[rows])
    assert len(set(rows)) == 50
    same, rows = Generated().of(image, target, np.random.default_rng(1), 1)
    assert same is image and np.all(rows == -1)
    # A fifth of the end points are exchanged after the first flow, a tenth after the second; all
    # are still there.
    for number, most in ((1, 10), (2, 5)):
        random = np.random.default_rng(1)
        exchanged, _ = Exchanged(0.2, Generated()).of(image, target, random, number)
        assert 0 < np.sum(np.any(exchanged != image, axis=1)) <= most
        np.testing.assert_array_equal(np.sort(exchanged, axis=0), np.sort(image, axis=0))
    whole, rows = Rematched(batch_size=60).of(
        points[::-1] + 1e-4, target, np.random.default_rng(1), 1
    )
    np.testing.assert_array_equal(whole, points[::-1])
    np.testing.assert_array_equal(rows, np.arange(60)[::-1])


@pytest.mark.slow
def test_what_is_held_out_is_in_no_pair_of_training():
    rng = np.random.default_rng(0)
    points = [rng.normal(size=(100, 2)).astype(np.float32) for _ in range(2)]
    samples = [Sample(p, np.full(100, 1 / 100)) for p in points]
    found = db.fit_map(*points, "affine")
    for share in (0.2, 0.0):
        source, target = (Parts.of(s, share, rng) for s in samples)
        pairs, held = reflowed(found, source, target, Rematched(), rng, 1)
        for side, part in ((pairs.x, source), (pairs.y, target)):
            seen = {tuple(row) for row in np.asarray(side).tolist()}
            assert not seen & {tuple(row) for row in part.held_out.points.tolist()}
            assert seen <= {tuple(row) for row in part.whole.points.tolist()}
        assert (held is None) == (share == 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::driftbridge.transport.pairs.DataWarning")
def test_exchanged_ends_leave_a_fixed_point_of_zero_loss():
    """Pairs that pass one another cost 2.5 where the best cost .5, and training keeps them."""
    rng = np.random.default_rng(0)
    mode = np.arange(2000) % 2
    x = (CENTRES[mode] + 0.05 * rng.normal(size=(2000, 2))).astype(np.float32)
    y = (x + (ENDS - CENTRES)[mode]).astype(np.float32)
    training = Training(num_steps=1500, learning_rate=5e-3, averaging=0.99)
    found = {}
    for endpoints in (Generated(), Exchanged(0.3)):
        method = CRectified(
            coupling=Paired(x, y), rounds=4, training=training, base=translation,
            endpoints=endpoints,
        )  # fmt: skip
        found[type(endpoints)] = fit_numbers(db.fit_map(x, rng.permutation(y), method))
    stays, leaves = found[Generated], found[Exchanged]
    assert stays["held_out_loss"] < 1e-3 and stays["cost_4"] == pytest.approx(2.5, abs=0.05)
    assert stays["optimality_gap"] > 0.6
    costs = [leaves[f"cost_{k}"] for k in range(1, 5)]
    assert np.all(np.diff(costs) < 0) and costs[3] < 1.9


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]; got 0"):
        Exchanged(0.0)
    with pytest.raises(ValueError, match=r"rounds must be at least 1; got 0"):
        Rectified(rounds=0)
    with pytest.raises(ValueError, match=r"p must be above 1 and finite; got 1.0"):
        Power(1.0)
    with pytest.raises(ValueError, match="covariances must be"):
        rectified_gaussians(np.eye(2), np.eye(3))
    with pytest.raises(ValueError, match=r"rounds and num_steps .* got 0, 50"):
        rectified_gaussians(np.eye(2), np.eye(2), 0)
    x = np.zeros((20, 2), np.float32) + np.arange(20, dtype=np.float32)[:, None]
    sample = Sample(x, np.full(20, 1 / 20))
    wide = dataclasses.replace(CRectified(), network=lambda t, x, condition: x)
    with pytest.raises(ValueError, match=r"must return \(n, 1\) .* returned \(2, 2\)"):
        wide.fit(sample, sample, jax.random.key(0))

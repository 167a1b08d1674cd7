"""Maps of few jumps: the flow maps of Gaussians, fixed points of their losses, trained ones."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.training import Training
from driftbridge.transport import Independent, NotSupported
from driftbridge.transport.batch_distances import distances
from driftbridge.transport.consistency import Consistency, ConsistencyFlow
from driftbridge.transport.few_step_map import FewStepMap, Jump, StraightJump
from driftbridge.transport.flow_map import Residual
from driftbridge.transport.mccann import mccann
from driftbridge.transport.measures import Moments
from driftbridge.transport.moment_matching import (
    InductiveMomentMatching,
    MomentMatching,
    discrepancy,
)
from driftbridge.transport.networks import MLP

VARIANCES = np.array([4.0, 0.25])
STANDARD = Moments(np.zeros(2), np.eye(2))


class OnTable(eqx.Module):
    """A linear field with a matrix for each of some times: `v = B_t x`, `B_t` diagonal."""

    times: jax.Array
    slopes: jax.Array

    def __call__(self, t, x, condition=None):
        t = jnp.broadcast_to(t, (x.shape[0],))
        row = jnp.argmin(jnp.abs(t[:, None] - self.times[None]), axis=1)
        return self.slopes[row] * x


class Exact(eqx.Module):
    """The jump `Sigma_t^{1/2} Sigma_s^{-1/2}`, off by a factor, as the network of a `Jump`."""

    factor: jax.Array

    def __call__(self, s, x, t):
        ratio = jnp.sqrt(spread(t) / spread(s[:, None])) * self.factor
        return (ratio - 1) * x / jnp.maximum(t - s[:, None], 1e-9)


def spread(t):
    """`Sigma_t` of `(1 - t) x0 + t x1`, drawn independently of `N(0, I)` and `N(0, C)`."""
    return (1 - t) ** 2 + t**2 * np.reshape(VARIANCES, (1, 2))


def exact_pairs(n=64):
    """Pairs whose second moments are those of `N(0, I) x N(0, C)` exactly."""
    z = np.random.default_rng(0).normal(size=(n, 4))
    z = z - z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T, ddof=0))).T
    return z[:, :2], z[:, 2:] * np.sqrt(VARIANCES)


def objective(gap=0.01, alpha=0.0):
    x, y = exact_pairs()
    numbers = (jnp.asarray(number) for number in (1.0, gap, alpha, 0.9))
    return Consistency(Independent(x, y), mccann(STANDARD, STANDARD, np.float64), *numbers, 1)


def regressions(t):
    """`E[x1 - x0 | x_t] = B_t x_t`, diagonal."""
    return (t * VARIANCES - (1 - t)) / spread(t)[0]


@pytest.mark.slow
def test_fixed_point_of_the_consistency_loss(x64):
    """`f_t = f_{t + gap} (I + gap B_t)`: a Euler step of the flow, then the rest of the segment.

    The loss of a linear field is a quadratic function of the pairs, so pairs of exact second
    moments give its exact mean at a time.
    """
    gap, t = 0.01, 0.3
    later = np.array([1.2, 0.8])
    now = later * (1 + gap * regressions(t))
    slopes = (np.stack([now, later]) - 1) / np.array([[1 - t], [1 - t - gap]])
    x, y = exact_pairs()
    batch = jnp.full(len(x), t), jnp.asarray(x), jnp.asarray(y)

    def gradient(slopes):
        field = OnTable(jnp.asarray([t, t + gap]), jnp.asarray(slopes))
        found = jax.grad(lambda f: objective(gap).loss(f, batch))(field).slopes
        assert np.all(found[1] == 0)  # nothing goes through the later time
        return np.abs(found[0]).max()

    assert gradient(slopes) < 1e-12
    assert gradient(slopes + np.array([[0.1], [0.0]])) > 1e-2


def test_fixed_points_tend_to_the_flow_map_of_gaussians():
    """`Sigma_1^{1/2} Sigma_t^{-1/2}`, off by a multiple of the gap."""

    def error(count):
        found = np.ones(2)
        for k in range(count, 0, -1):
            found = found * (1 + regressions((k - 1) / count) / count)
        return np.abs(found - np.sqrt(VARIANCES)).max()

    assert error(100) < 0.05
    assert error(200) == pytest.approx(error(100) / 2, rel=0.05)


def test_loss_is_the_difference_of_ends(x64):
    """Beside the formula without cancellation, `|f(t, x_t) - f(r, x_r)|^2` as it is defined."""
    gap, alpha = 0.05, 0.3
    x, y = exact_pairs()
    t = np.linspace(0.0, 0.999, len(x))
    slopes = np.array([0.4, -0.2])
    field = OnTable(jnp.zeros(1), jnp.asarray(slopes[None]))
    found = objective(gap, alpha).loss(field, tuple(jnp.asarray(part) for part in (t, x, y)))
    inside = (t < 0.9) & (t + gap < 1)
    r = np.where(inside, t + gap, 1.0)[:, None]
    t = t[:, None]
    at_t, at_r = (1 - t) * x + t * y, (1 - r) * x + r * y
    ends = at_t * (1 + (1 - t) * slopes) - at_r * (1 + (1 - r) * slopes)
    # The formula divides both fields by what is left of the segment, so v_r enters with it.
    still = np.sum(((at_t - at_r) * slopes) ** 2, axis=1) * inside
    direct = np.mean(np.sum(ends**2, axis=1) + alpha * still) / 2
    assert found == pytest.approx(direct, rel=1e-9)


@pytest.mark.slow
def test_jumps_of_a_network_of_zero_are_the_affine_map(x64):
    target = Moments(np.array([1.0, -2.0]), np.array([[2.0, -0.8], [-0.8, 1.5]]))
    base = mccann(STANDARD, target, np.float64)
    x = np.random.default_rng(1).normal(size=(40, 2))
    affine = np.asarray(x + base(jnp.zeros(()), jnp.asarray(x)))
    network = MLP(width=8).build(as_key(0), 3, 2, np.float64)
    plain = MLP(width=8).build(as_key(0), 2, 2, np.float64)
    one = jnp.ones(())
    for jump in (Jump(base, network, one), StraightJump(Residual(base, plain, one))):
        for steps in (1, 3):
            fitted = FewStepMap(db.transport.base.Fit("test"), jump, base.shift, steps)
            assert np.allclose(fitted(x), affine, atol=1e-12)


def matching(group, gap):
    draws = (
        lambda key, n: jax.random.normal(key, (n, 2)),
        lambda key, n: jax.random.normal(key, (n, 2)) * jnp.asarray(np.sqrt(VARIANCES))[None],
    )
    base = mccann(STANDARD, STANDARD, np.float64)
    return MomentMatching(Independent(*draws), base, jnp.ones(()), jnp.asarray(gap), group)


@pytest.mark.slow
def test_moments_match_at_the_flow_map_of_gaussians(x64):
    """There both sides have one law: what is left is that of a finite group.

    The estimate keeps pairs of a point with itself: its mean is `2 (1 - E k) / M <= 2 / M`, `k` of
    two images of one path.
    """
    far, near = matching(1024, 1.0), matching(1024, 0.01)
    batch = far.batch(as_key(0), 8 * 1024)
    loss = eqx.filter_jit(lambda objective, factor: objective.loss(Exact(factor), batch))
    one, wrong = jnp.ones(()), jnp.asarray(1.5)
    assert 0 < loss(far, one) < 2 / 1024 and 0 < loss(near, one) < 2 / 1024
    # With `r = t` the images are compared with the data.
    assert loss(far, wrong) > 5 * 2 / 1024
    # From a time close by they are compared with themselves, and jumps of a wrong law pass.
    assert loss(near, wrong) < 2 / 1024


@pytest.mark.slow
def test_discrepancy_vanishes_between_equal_groups_alone(x64):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 20, 2)))
    unit = jnp.ones(3)
    assert np.all(np.abs(discrepancy(x, x, unit)) < 1e-12)
    assert np.all(np.asarray(discrepancy(x, x + 0.5, unit)) > 0.01)
    # Of one point each it is a consistency loss.
    one, other = x[:, :1], x[:, 1:2]
    kernel = np.exp(-np.linalg.norm(np.asarray(one - other)[:, 0], axis=1))
    assert np.allclose(discrepancy(one, other, unit), 2 - 2 * kernel, atol=1e-9)


@pytest.mark.slow
def test_distances_have_a_gradient_where_points_meet():
    x = np.random.default_rng(3).normal(size=(30, 2)).astype(np.float32) + 100
    found = np.asarray(distances(jnp.asarray(x), jnp.asarray(x)))
    plain = np.linalg.norm(x[:, None] - x[None], axis=2)
    # Squares of the order of 1 are right to float32's rounding, their roots near 0 to its root.
    assert np.allclose(found, plain, atol=3e-3)
    assert np.all(np.isfinite(jax.grad(lambda x: distances(x, x).sum())(jnp.asarray(x))))


# Two modes, `N(-2, .5^2)` and `N(2, .5^2)`, and the map in one dimension that every flow is.
def two_modes(n=4000):
    u = (np.arange(n) + 0.5) / n
    grid = np.linspace(-6, 6, 20_001)
    cdf = (norm.cdf((grid + 2) / 0.5) + norm.cdf((grid - 2) / 0.5)) / 2
    return norm.ppf(u)[:, None].astype(np.float32), np.interp(u, cdf, grid)[:, None]


SHORT = Training(num_steps=800, batch_size=256, learning_rate=1e-2, validate_every=100)
FEW = {
    "consistency": ConsistencyFlow(network=MLP(32, 2), training=SHORT, gap=0.02),
    "moment_matching": InductiveMomentMatching(network=MLP(32, 2), training=SHORT, gap=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_trained_jumps_reach_the_only_monotone_map(name, tmp_path):
    x, y = two_modes()
    method = FEW[name]
    fitted = db.fit_map(x, y.astype(np.float32), method)
    # Between the modes the map is nearly vertical: there a small error of place is a large one of
    # value. Elsewhere its slope is at most 1, and 800 steps of a small network leave .03 and .09.
    inside = np.abs(x[:, 0]) > 0.2
    error, affine = (
        np.sqrt(np.mean((image - y)[inside] ** 2)) for image in (np.asarray(fitted(x)), x * y.std())
    )
    assert error < 0.2 < 0.4 * affine
    with pytest.raises(NotSupported, match="inverse"):
        _ = fitted.inverse
    loaded = db.load(fitted.save(tmp_path / "map"))
    assert np.array_equal(loaded(x[:50]), fitted(x[:50]))
    watch = Compilations()
    other = dataclasses.replace(method, gap=0.05)
    db.fit_map(x[::-1].copy(), 2 * y.astype(np.float32), other)(x)
    assert watch.programs == 0


@pytest.mark.slow
def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="multiple of num_segments; got 3 and 2"):
        ConsistencyFlow(num_steps=3)
    with pytest.raises(ValueError, match=r"positive multiple of 2, .* got 3"):
        FewStepMap(db.transport.base.Fit("test"), None, jnp.zeros(1), 3, 2)
    with pytest.raises(ValueError, match="gap must be in"):
        ConsistencyFlow(gap=1.5)
    with pytest.raises(ValueError, match="group at least 16; got 1 and 8"):
        InductiveMomentMatching(group=8)
    with pytest.raises(ValueError, match="multiple of group; got 100 and 16"):
        InductiveMomentMatching(training=Training(batch_size=100))
    x, y = two_modes(100)
    wide = MLP().build(as_key(0), 1, 3, np.float32)
    with pytest.raises(ValueError, match="must return"):
        db.fit_map(x, y.astype(np.float32), ConsistencyFlow(network=wide))

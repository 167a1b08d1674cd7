"""Wasserstein-Fisher-Rao: masses between points, plans between data, and flows of unequal mass."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.training import Training
from driftbridge.transport.couplings import Paired
from driftbridge.transport.flow import FlowMatching
from driftbridge.transport.mccann import mccann
from driftbridge.transport.measures import Moments
from driftbridge.transport.networks import MLP
from driftbridge.transport.wasserstein_fisher_rao import travelled, wfr_diracs
from driftbridge.transport.wasserstein_fisher_rao_flow import (
    Growing,
    GrowingMatch,
    TravellingMasses,
    WassersteinFisherRao,
)
from driftbridge.transport.wasserstein_fisher_rao_plan import drawn_pairs, reach_plan

DELTA = 0.8


def pairs_within_reach(n=40, seed=0):
    """Pairs at distances below `pi delta`, and masses."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    direction = rng.normal(size=(n, 2))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    y = x + direction * rng.uniform(0.05, 0.98 * np.pi * DELTA, size=(n, 1))
    return tuple(map(jnp.asarray, (x, y, rng.uniform(0.1, 2, n), rng.uniform(0.1, 2, n))))


def test_the_action_of_a_path_is_the_distance(x64):
    """`int (|v|^2 + delta^2 g^2) m / 2 dt` over the path against the closed form."""
    pairs = pairs_within_reach()
    nodes, weights = np.polynomial.legendre.leggauss(60)

    @jax.jit
    @jax.vmap
    def density(t):
        found = travelled(*pairs, jnp.full(len(pairs[0]), t), jnp.asarray(DELTA))
        moved = jnp.sum(found.velocity**2, axis=1)
        return found.mass * (moved + (DELTA * found.growth) ** 2) / 2

    action = weights / 2 @ np.asarray(density(jnp.asarray((nodes + 1) / 2)))
    # Smooth functions with poles no nearer than masses of .1 allow.
    np.testing.assert_allclose(action, wfr_diracs(*pairs, DELTA), rtol=1e-6)


def test_paths_begin_and_end_at_the_masses_and_have_their_own_rates(x64):
    x, y, first, last = pairs = pairs_within_reach()
    at = jax.jit(lambda t: travelled(*pairs, jnp.full(len(x), t), jnp.asarray(DELTA)))
    for t, place, mass in ((0.0, x, first), (1.0, y, last)):
        found = at(t)
        np.testing.assert_allclose(found.place, place, atol=1e-12)
        np.testing.assert_allclose(found.mass, mass, atol=1e-12)
    found, rates = jax.jvp(at, (0.37,), (1.0,))
    np.testing.assert_allclose(rates.place, found.velocity, atol=1e-12)
    np.testing.assert_allclose(rates.mass / found.mass, found.growth, atol=1e-12)


def test_no_other_path_is_shorter(x64):
    """Straight lines at constant speed with masses that grow evenly cost more."""
    x, y, first, last = pairs_within_reach()
    t = np.linspace(0, 1, 2001)[:, None]
    mass = first[None] * (last / first)[None] ** t
    moved, growth = np.sum((y - x) ** 2, axis=1), np.log(last / first)
    action = np.trapezoid(mass * (moved + DELTA**2 * growth**2)[None] / 2, t[:, 0], axis=0)
    assert np.all(action > np.asarray(wfr_diracs(x, y, first, last, DELTA)) - 1e-7)


def test_limits_of_the_distance():
    x, y = np.zeros(2), np.array([3.0, 4.0])
    # Long lengths of growth: transport, m |x - y|^2 / 2; the next term is (5 / 4000)^2 / 12 of it.
    assert wfr_diracs(x, y, 2.0, 2.0, 1e3) == pytest.approx(25, rel=1e-5)
    # No distance: growth alone; no reach: one fades and the other grows.
    assert wfr_diracs(x, x, 4.0, 1.0, 0.5) == pytest.approx(2 * 0.25 * (2 - 1) ** 2)
    assert wfr_diracs(x, y, 4.0, 1.0, 0.5) == pytest.approx(2 * 0.25 * 5)
    assert wfr_diracs(x, y, 4.0, 1.0, 5 / np.pi) == pytest.approx(2 * (5 / np.pi) ** 2 * 5)
    assert wfr_diracs(x, y, 0.0, 1.0, 3.0) == pytest.approx(2 * 9)


@pytest.mark.slow
def test_the_plan_has_the_distance_as_its_value(x64):
    """The static form between two points: mass `sqrt(m0 m1) cos a` in the plan."""
    x, y, ratio = np.zeros((1, 2)), np.array([[0.9, 0.4]]), 1.7
    plan = reach_plan(x, y, DELTA, ratio, 1e-5)
    angle = np.linalg.norm(y) / (2 * DELTA)
    assert plan.mass == pytest.approx(np.sqrt(ratio) * np.cos(angle), rel=2e-3)
    # The entropy adds at most epsilon times a few units.
    exact = wfr_diracs(x[0], y[0], 1.0, ratio, DELTA)
    assert 2 * DELTA**2 * plan.dual == pytest.approx(float(exact), abs=2e-4)


def test_the_paths_of_a_plan_are_the_shortest(x64):
    """Masses that travel as a plan says cost what the static problem does, and other plans more."""
    rng = np.random.default_rng(0)
    n, ratio = 60, 1.4
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 2)) + 1

    def action(plan):
        first = plan / plan.sum(axis=1, keepdims=True) / n
        second = plan / plan.sum(axis=0, keepdims=True) * ratio / n
        pairs = np.repeat(x, n, axis=0), np.tile(y, (n, 1)), first.ravel(), second.ravel()
        return float(np.sum(wfr_diracs(*pairs, DELTA)))

    plan = reach_plan(x, y, DELTA, ratio, 1e-3)
    matrix = np.asarray(plan.matrix())
    least = 2 * DELTA**2 * plan.dual
    # The regularised value is above the least one by up to epsilon times the entropy, log n = 4,
    # and the paths of the plan cost at least the least one.
    assert least - 4 * 2 * DELTA**2 * 1e-3 < action(matrix) < 1.01 * least
    assert action(np.asarray(reach_plan(x, y, DELTA, ratio, 0.1).matrix())) > 1.05 * least
    assert action(np.ones((n, n))) > 1.2 * least


def test_drawn_pairs_have_the_masses_of_both_sides():
    """Whatever the marginals of the plan are; also where a row of it is zero."""
    rng = np.random.default_rng(0)
    plan, ratio, count = rng.uniform(size=(7, 5)), 1.6, 200_000
    plan[3] = 0
    i, j, first, last = drawn_pairs(plan, ratio, count, rng)
    rows = np.bincount(i, first, minlength=7) / count
    columns = np.bincount(j, last, minlength=5) / count
    # Systematic draws are right to one draw of a cell: 7 of 200 000 with weights below 2.6.
    np.testing.assert_allclose(rows, 1 / 7, atol=1e-4)
    np.testing.assert_allclose(columns, ratio / 5, atol=1e-4)
    # The weights are bounded by the sum of the masses.
    assert max(first.max(), last.max()) <= 1 + ratio


@pytest.mark.slow
def test_long_lengths_of_growth_are_flow_matching(x64):
    """With equal masses the loss tends to that of `FlowMatching` on the same pairs."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(200, 2)) + shift) for shift in (0, 2))
    base = mccann(Moments(np.zeros(2), np.eye(2)), Moments(np.full(2, 2.0), np.eye(2)), np.float64)
    both, plain = (
        MLP(width=8, depth=1).build(jax.random.key(0), 2, width, np.float64) for width in (3, 2)
    )
    weights = both.layers.weights
    last = jnp.asarray(rng.normal(size=weights[-1].shape)).at[:, 2].set(0)
    both = eqx.tree_at(lambda n: n.layers.weights[-1], both, last)
    plain = eqx.tree_at(lambda n: n.layers.weights, plain, (*weights[:-1], last[:, :2]))
    scale, zero, delta = map(jnp.asarray, (1.3, 0.0, 1e4))
    ones = jnp.ones(200)
    path = TravellingMasses(x, y, ones, ones, delta)
    growing = GrowingMatch(path, Growing(base, None, scale, zero, delta))
    t = jnp.linspace(0, 1, 200)
    ours = growing.loss(both, (t, travelled(x, y, ones, ones, t, delta)))
    lines = t, x + t[:, None] * (y - x), y - x
    theirs = FlowMatching(Paired(x, y), base, scale).loss(plain, (lines, None))
    # The other loss is a mean over coordinates too; angles of 1e-4 are clipped at 1e-3.
    assert float(ours) == pytest.approx(2 * float(theirs), rel=1e-5)


@pytest.mark.slow
def test_two_groups_of_changed_size_grow_where_they_are():
    """Groups far apart for their length of growth: 50:50 becomes 20:80, and 1.5 times the mass."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(1500, 2)).astype(np.float32) * 0.5 for _ in range(2))
    x[:, 0] += np.where(np.arange(1500) < 750, -6, 6)
    y[:, 0] += np.where(np.arange(1500) < 300, -6, 6)
    y[:, 1] += 1
    training = Training(num_steps=1200, learning_rate=5e-3, averaging=0.99)
    method = WassersteinFisherRao(
        delta=1.0, mass_ratio=1.5, batch_size=256, training=training, num_steps=10
    )
    fitted = db.fit_map(x, y, method)
    assert fitted.fit.converged
    # Nothing crosses, and all move up: by 1 / (1 + v / delta^2) = .8 where Gaussians of variance v
    # move by 1, as growth does the rest.
    moved = np.asarray(fitted(x)) - x
    assert np.abs(moved[:, 0]).max() < 3
    np.testing.assert_allclose(moved.mean(axis=0), [0, 0.8], atol=0.08)
    weights = np.exp(np.asarray(fitted.log_weights(x)))
    # Batches of 256 have half of each group to 6 %, which a mean over 6 of them makes 3 %.
    assert weights.mean() == pytest.approx(1.5, rel=0.1)
    assert weights[x[:, 0] < 0].sum() / weights.sum() == pytest.approx(0.2, abs=0.04)
    again = fitted.resampled(0, x)
    assert np.mean(again[:, 0] < 0) == pytest.approx(0.2, abs=0.04)
    assert np.mean(again[:, 1]) == pytest.approx(1, abs=0.06)
    numbers = dict(fitted.fit.numbers)
    # Two weights, .6 and 2.4, of equally many points, each spread by exp(.8 z / delta^2) with z of
    # variance 1/4 on the way up.
    share = 1.5**2 / ((0.6**2 + 2.4**2) / 2) * np.exp(-(0.8**2) / 4)
    assert numbers["effective_share"] == pytest.approx(share, abs=0.06)
    assert "mass" in numbers and numbers["path_action"] > 0
    report = fitted.report(x[::3], y[::3])
    # The source drawn by its weights: with its own, the image would have 50 % on the left.
    assert report.energy_after.value < 0.1
    compilations = Compilations()
    db.fit_map(x + 1, y, WassersteinFisherRao(
        delta=1.2, mass_ratio=1.3, batch_size=256, training=training, num_steps=10
    ), 1)  # fmt: skip
    assert compilations.programs == 0


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"delta must be positive and finite; got -1"):
        WassersteinFisherRao(delta=-1.0)
    with pytest.raises(ValueError, match=r"mass_ratio must be positive .* got 0"):
        WassersteinFisherRao(mass_ratio=0.0)
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        WassersteinFisherRao(batch_size=1)
    with pytest.raises(ValueError, match=r"masses at least 0; .* masses -1"):
        wfr_diracs(np.zeros(2), np.ones(2), -1.0, 1.0, 1.0)

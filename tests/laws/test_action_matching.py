"""Action matching: its closed forms between Gaussians, and where its losses are least."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import driftbridge as db
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Training, train
from driftbridge.transport.action_matching import (
    ActionLoss,
    ActionMatching,
    EntropicActionLoss,
    falling,
    uniform,
)
from driftbridge.transport.diffusion_map import DiffusionMap
from driftbridge.transport.gaussian_action import gaussian_action
from driftbridge.transport.integration import Heun
from driftbridge.transport.marginal_path import MarginalPath
from driftbridge.transport.networks import MLP
from driftbridge.transport.potential import derivatives
from driftbridge.transport.unbalanced_action_matching import (
    UnbalancedActionLoss,
    UnbalancedActionMatching,
)
from driftbridge.transport.weighted_flow_map import WeightedFlowMap

CASES = {
    "plain": {},
    "noise": {"epsilon": 0.6},
    "growth": {"delta": 1.3},
    "both": {"epsilon": 0.6, "delta": 1.3},
}


@pytest.mark.parametrize("name", CASES)
def test_gaussian_potentials_solve_the_equation(x64, name):
    """`d rho/dt + div(rho grad s) - epsilon / 2 Laplace rho - s rho / delta^2 = 0` over `rho`."""
    settings, dim = CASES[name], 3
    epsilon, delta = settings.get("epsilon", 0.0), settings.get("delta", np.inf)
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, dim, dim))
    ends = [root @ root.T + 0.2 * np.eye(dim) for root in roots]
    shift, rate, time = rng.normal(size=dim), 0.4 if delta < np.inf else 0.0, 0.35

    def covariance(t):
        return (1 - t) * ends[0] + t * ends[1]

    def log_density(t, x):
        c = covariance(t)
        z = x - t * shift
        half = jnp.linalg.slogdet(c)[1] / 2
        return rate * t - half - z @ jnp.linalg.solve(c, z) / 2

    found = gaussian_action(covariance(time), ends[1] - ends[0], shift, rate, **settings)

    def potential(x):
        z = x - time * shift
        return found.constant + found.slope @ z + z @ found.matrix @ z / 2

    def residual(x):
        along, slope = jax.grad(log_density, argnums=(0, 1))(time, x)
        bend = jnp.trace(jax.hessian(log_density, argnums=1)(time, x))
        drift = jax.grad(potential)(x)
        spread = jnp.trace(jax.hessian(potential)(x))
        growth = potential(x) / delta**2
        return along + drift @ slope + spread - epsilon / 2 * (bend + slope @ slope) - growth

    x = jnp.asarray(rng.normal(size=(20, dim)) * 2)
    np.testing.assert_allclose(jax.jit(jax.vmap(residual))(x), 0, atol=1e-9)


def test_one_dimension_has_the_published_form():
    """`s = a + c (x - mu) + B (x - mu)^2 / 2` with `B = v' / (v (2 + v))`, and so on."""
    v, rate, mean, mass = 2.0, 0.7, 0.3, 0.4
    found = gaussian_action(v * np.eye(1), rate * np.eye(1), np.array([mean]), mass, delta=1.0)
    assert found.matrix[0, 0] == pytest.approx(rate / (v * (2 + v)))
    assert found.slope[0] == pytest.approx(mean / (1 + v))
    assert found.constant == pytest.approx(mass - rate / (2 * (2 + v)))


# One dimension: mean t, variance from 1 to 3, mass from 1 to 2; epsilon and delta of the losses.
VARIANCE, MEAN, LOG_RATIO, EPSILON, DELTA = (1.0, 3.0), 1.0, float(np.log(2)), 0.6, 1.2


class Line(MarginalPath):
    """`m_t N(t, v_t)` at quantiles that fill the plane of times and quantiles evenly."""

    log_ratio: float

    def at(self, key, t):
        golden = (jnp.arange(t.shape[0]) + 0.5) * 0.6180339887498949
        z = norm.ppf(golden % 1)
        spread = jnp.sqrt(VARIANCE[0] + t * (VARIANCE[1] - VARIANCE[0]))
        return (MEAN * t + spread * z)[:, None], jnp.exp(self.log_ratio * t)


class Exact(eqx.Module):
    """The closed form, and what the network adds to it."""

    network: None
    epsilon: float
    delta: float
    log_ratio: float

    def __call__(self, t, x, condition=None):
        rate = VARIANCE[1] - VARIANCE[0]
        v, z = VARIANCE[0] + t * rate, x[:, 0] - MEAN * t
        bend = (rate - self.epsilon) / (v * (2 + v / self.delta**2))
        slope = MEAN / (1 + v / self.delta**2)
        level = 0.0 if self.delta == np.inf else self.delta**2 * self.log_ratio - bend * v / 2
        exact = level + slope * z + bend * z**2 / 2
        return (exact + (0.0 if self.network is None else self.network(t, x[:, 0])))[:, None]


class Along(eqx.Module):
    """A multiple of a direction."""

    share: float
    direction: object = eqx.field(static=True)

    def __call__(self, t, x):
        return self.share * self.direction(t, x)


DIRECTIONS = {
    "level": lambda t, x: jnp.ones_like(x),
    "level in time": lambda t, x: t * (1 - t),
    "slope": lambda t, x: x,
    "bend": lambda t, x: t * x**2,
    "wave": lambda t, x: jnp.sin(2 * x + 3 * t),
}
LOSSES = {
    "plain": (ActionLoss, 0.0, np.inf, 0.0),
    "noise": (EntropicActionLoss, EPSILON, np.inf, 0.0),
    "growth": (UnbalancedActionLoss, 0.0, DELTA, LOG_RATIO),
}


def objective_of(name, weight):
    loss, epsilon, delta, log_ratio = LOSSES[name]
    form = Exact(None, epsilon, delta, log_ratio)
    more = {"delta": jnp.asarray(delta)} if loss is UnbalancedActionLoss else {}
    return loss(Line(log_ratio), form, jnp.asarray(1.0), weight, **more)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [uniform, falling])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_least_at_the_closed_form(x64, name, weight):
    """No direction has a slope there, and every one but a constant's a positive curvature.

    A constant of time alone moves nothing, and where nothing grows it costs nothing either.
    """
    objective = objective_of(name, weight)
    batch = objective.batch(fold_in(jax.random.key(0), 0), 20_000)

    @eqx.filter_jit
    def both(objective, batch, share):
        def loss(share, direction):
            return objective.loss(Along(share, direction), batch)

        found = []
        for direction in DIRECTIONS.values():
            slope = jax.grad(loss)
            found.append((slope(share, direction), slope(share + 1, direction)))
        return jnp.asarray(found)

    at, beyond = np.asarray(both(objective, batch, jnp.asarray(0.0))).T
    # 20 000 even points leave 1e-3 of the size of a slope; a dropped term (w' s, the growth's half,
    # the Laplacian) leaves .05 and more.
    assert np.all(np.abs(at) < 2e-3 * (1 + np.abs(beyond)))
    # The loss is quadratic in the potential, so that the slope a unit away is the curvature.
    for direction, curvature in zip(DIRECTIONS, beyond - at, strict=True):
        if name != "growth" and direction.startswith("level"):
            assert abs(curvature) < 1e-9
        else:
            assert curvature > 0.01


@pytest.mark.slow
def test_a_wrong_growth_is_no_minimum(x64):
    """The closed form without growth is no minimum of the loss with it."""
    wrong = eqx.tree_at(
        lambda o: o.form, objective_of("growth", uniform), objective_of("plain", uniform).form
    )
    batch = wrong.batch(jax.random.key(0), 20_000)
    slope = jax.grad(lambda s: wrong.loss(Along(s, DIRECTIONS["slope"]), batch))(0.0)
    assert abs(slope) > 0.1


class Free(eqx.Module):
    """A potential that is its network."""

    network: None = None

    def __call__(self, t, x, condition=None):
        return self.network(t, x, condition)


@pytest.mark.slow
def test_a_network_learns_the_potential_with_growth():
    """Trained from nothing on the path in one dimension, against its closed form."""
    objective = UnbalancedActionLoss(
        Scattered(LOG_RATIO), Free(), jnp.asarray(1.0), delta=jnp.asarray(DELTA)
    )
    network = MLP(width=32, depth=2).build(jax.random.key(1), 1, 1, jnp.float32)
    training = Training(num_steps=2500, batch_size=512, learning_rate=1e-2)
    trained = train(objective, network, jax.random.key(2), training)
    exact = Exact(None, 0.0, DELTA, LOG_RATIO)
    t = jnp.repeat(jnp.linspace(0.1, 0.9, 5), 9)
    z = jnp.tile(jnp.linspace(-1.5, 1.5, 9), 5)
    x = (MEAN * t + z * jnp.sqrt(VARIANCE[0] + 2 * t))[:, None]
    at, there = (eqx.filter_jit(derivatives)(p, t, x) for p in (Free(trained.model), exact))
    # The loss is flat at its minimum: with a noise of 1 / sqrt(512 * 1000), as long as the average
    # is, in units of the loss, potentials are right to the root of .0015 in the mean.
    error = np.sqrt(np.mean((at.in_place - there.in_place) ** 2))
    assert error < 0.08 < np.sqrt(np.mean(there.in_place**2)) / 3
    growth = np.sqrt(np.mean((at.value - there.value) ** 2)) / DELTA**2
    assert growth < 0.08 < np.std(there.value / DELTA**2) / 2


class Scattered(MarginalPath):
    """The path of `Line` with random points."""

    log_ratio: float

    def at(self, key, t):
        z = jax.random.normal(key, t.shape)
        spread = jnp.sqrt(VARIANCE[0] + t * (VARIANCE[1] - VARIANCE[0]))
        return (MEAN * t + spread * z)[:, None], jnp.exp(self.log_ratio * t)


def gaussians(n=1000):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2)) @ np.array([[1.0, 0.3], [0.0, 0.6]])
    y = 1 + rng.normal(size=(n, 2)) @ np.array([[0.5, -0.4], [0.2, 1.2]])
    return x.astype(np.float32), y.astype(np.float32)


NONE = Training(num_steps=0)


@pytest.mark.slow
def test_untrained_it_is_the_affine_map():
    x, y = gaussians()
    affine = db.fit_map(x, y, "affine")
    fitted = db.fit_map(x, y, ActionMatching(training=NONE, num_steps=50, scheme=Heun()))
    # Fitted to 900 of the 1000 points: their moments differ by 1 / sqrt(9 * 1000).
    assert np.sqrt(np.mean((np.asarray(fitted(x)) - np.asarray(affine(x))) ** 2)) < 0.05
    # Heun's error is that of the square of a step of 1/50, both ways.
    np.testing.assert_allclose(fitted.inverse(fitted(x)), x, atol=1e-2)


@pytest.mark.slow
def test_untrained_draws_of_a_process_with_noise_have_the_target_law():
    """Between Gaussians the base is exact: drift `v + epsilon / 2 grad log rho`."""
    x, y = gaussians(4000)
    fitted = db.fit_map(x, y, ActionMatching(training=NONE, epsilon=2.0, num_steps=40))
    assert isinstance(fitted, DiffusionMap)
    draws = np.asarray(fitted.sample(0, x, 2)).reshape(-1, 2)
    # 4000 points: standard errors of .02 in the means and .03 in the covariances of about 1.
    np.testing.assert_allclose(draws.mean(axis=0), y.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(y.T), atol=0.15)
    # The map is the mean of draws, and means lie closer together.
    means, many = np.asarray(fitted(x[:64])), np.asarray(fitted.sample(1, x[:64], 400)).mean(axis=1)
    # 400 draws leave 1.3 / 20 in each of 128 numbers, five of which are .3; 64 antithetic draws of
    # a nearly linear process leave less.
    np.testing.assert_allclose(means, many, atol=0.3)
    assert fitted.drift(0.5, x[:64]).shape == (64, 2)
    assert np.cov(means.T).trace() < 0.8 * np.cov(y.T).trace()
    # Rows have keys of their own: where they are cut into blocks changes nothing.
    again = np.asarray(fitted.sample(0, x[:64], 2)).reshape(-1, 2)
    np.testing.assert_allclose(draws[:128], again, atol=1e-5)


class Arc(MarginalPath):
    """A round cloud whose centre goes from (0, 0) to (0, 2) over (1, 1)."""

    def at(self, key, t):
        z = 0.3 * jax.random.normal(key, (t.shape[0], 2), t.dtype)
        angle = np.pi * t
        return z + jnp.stack([jnp.sin(angle), 1 - jnp.cos(angle)], axis=1), jnp.ones_like(t)


@pytest.mark.slow
def test_a_process_that_is_known_by_draws_is_followed():
    x, _ = Arc().at(jax.random.key(0), jnp.zeros(500))
    y, _ = Arc().at(jax.random.key(1), jnp.ones(500))
    training = Training(num_steps=1000, learning_rate=1e-2, averaging=0.99)
    fitted = db.fit_map(x, y, ActionMatching(path=Arc(), training=training, scheme=Heun()))
    places = np.asarray(fitted.trajectory(x, [0.5, 1.0])).mean(axis=1)
    # Velocities of size pi are learned to about a twentieth.
    np.testing.assert_allclose(places, [[1, 1], [0, 2]], atol=0.15)
    # The way of the cloud is half a circle, and its end two above its beginning.
    assert fitted.cost(x).mean == pytest.approx(4, rel=0.1)


@pytest.mark.slow
def test_weights_and_densities_have_the_mass(x64):
    """Untrained, on a line: Gaussian data, twice the mass, and a short length of growth."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 1)), 1.5 + 0.6 * rng.normal(size=(1000, 1))
    method = UnbalancedActionMatching(
        training=NONE, delta=1.0, mass_ratio=2.0, num_steps=40, scheme=Heun()
    )
    fitted = db.fit_map(x, y, method)
    assert isinstance(fitted, WeightedFlowMap)
    numbers = dict(fitted.fit.numbers)
    assert numbers["delta"] == 1.0 and numbers["effective_share"] < 1
    # The base is exact for a path of these moments; 100 held-out points have weights with a spread
    # of about 1, so that their mean is known to .2.
    assert fitted.mass(x) == pytest.approx(2, abs=0.2)
    grid = np.linspace(-8, 8, 1001)[:, None]
    density = np.exp(fitted.log_prob(grid, lambda p: norm.logpdf(np.asarray(p)[:, 0])))
    total = np.trapezoid(density, grid[:, 0])
    # The data's moments are those of the laws to 1 / sqrt(1000), and pairs correlate to .05.
    assert total == pytest.approx(2, abs=0.2)
    mean = np.trapezoid(density * grid[:, 0], grid[:, 0]) / total
    assert mean == pytest.approx(1.5, abs=0.1)
    again = fitted.resampled(0, x)
    assert again.shape == x.shape and again.mean() == pytest.approx(1.5, abs=0.15)
    # The images without their weights are elsewhere, so that the weights do matter.
    assert abs(np.asarray(fitted(x)).mean() - 1.5) > 0.2
    assert fitted.growth(0.5, x[:4]).shape == (4,)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"epsilon must be finite and at least 0; got -1"):
        ActionMatching(epsilon=-1.0)
    with pytest.raises(ValueError, match=r"delta must be positive and finite; got 0"):
        UnbalancedActionMatching(delta=0.0)
    with pytest.raises(ValueError, match=r"mass_ratio must be positive .* got -2"):
        UnbalancedActionMatching(mass_ratio=-2.0)
    with pytest.raises(ValueError, match=r"epsilon must be 0 where there is growth; got 1"):
        UnbalancedActionMatching(epsilon=1.0)

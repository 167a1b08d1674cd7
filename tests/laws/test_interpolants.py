"""Closed forms of interpolants: Gaussians, mixtures, paths, and diffusions that share laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from driftbridge.runtime.keys import as_key
from driftbridge.transport.base import Fit
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.fields import EmpiricalField
from driftbridge.transport.frames import Unmoved, whitened
from driftbridge.transport.gammas import Brownian, NoNoise, SineSquared, Squared
from driftbridge.transport.gaussian_fields import GaussianField, MixtureField
from driftbridge.transport.integration import Euler
from driftbridge.transport.interpolant_losses import DenoiserLoss, ScoreLoss, VelocityLoss
from driftbridge.transport.interpolant_map import StochasticInterpolantMap
from driftbridge.transport.kinetic_optimal import (
    kinetic_optimal,
    kinetic_optimal_gaussian,
)
from driftbridge.transport.measures import Moments
from driftbridge.transport.resampling import normals
from driftbridge.transport.schedules import (
    EncodingDecoding,
    Linear,
    Mirror,
    OneSided,
    OneSidedLinear,
    OneSidedTrigonometric,
    Schedule,
    Trigonometric,
)
from driftbridge.transport.stochastic_integration import EulerMaruyama, StochasticHeun
from driftbridge.transport.whitened_field import whitened_field

PATHS = {
    "linear": (Linear(), NoNoise()),
    "linear, Brownian": (Linear(), Brownian(2.0)),
    "trigonometric": (Trigonometric(Squared()), Squared()),
    "encoding-decoding": (EncodingDecoding(), SineSquared()),
    "mirror": (Mirror(), Brownian()),
    "one-sided linear": (OneSidedLinear(), NoNoise()),
    "one-sided trigonometric": (OneSidedTrigonometric(), NoNoise()),
}
# The note's mixtures in one dimension.
SOURCE = ([0.5, 0.5], [[-3.0], [3.0]], [[[0.25]], [[0.25]]])
TARGET = ([1 / 3] * 3, [[-6.0], [0.0], [6.0]], [[[0.5]], [[0.33]], [[0.5]]])


def moments(schedule, seed=0, dim=3):
    """A random joint law of a pair, as far as the path allows."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(2 * dim, 2 * dim))
    joint = factor @ factor.T / dim + 0.1 * np.eye(2 * dim)
    m0, m1 = rng.normal(size=(2, dim))
    c0, c1, cross = joint[:dim, :dim], joint[dim:, dim:], joint[:dim, dim:]
    if isinstance(schedule, OneSided):
        m0, c0, cross = np.zeros(dim), np.eye(dim), np.zeros((dim, dim))
    if isinstance(schedule, Mirror):
        m0, c0, cross = m1, c1, c1
    return m0, c0, m1, c1, cross


def gaussian(path, seed=0):
    schedule, gamma = PATHS[path]
    m0, c0, m1, c1, cross = moments(schedule, seed)
    return GaussianField(m0, c0, m1, c1, schedule, gamma, cross)


def mixture(schedule, gamma):
    source = ([1.0], [[0.0]], [[[1.0]]]) if isinstance(schedule, OneSided) else SOURCE
    return MixtureField(*source, *TARGET, schedule, gamma)


def distribution(weights, means, covariances):
    """The distribution function of a mixture on the line."""
    spread = np.sqrt(np.ravel(covariances))
    return lambda x: np.sum(weights * ndtr((x[:, None] - np.ravel(means)) / spread), axis=1)


def kolmogorov(draws, law):
    """The distance of draws to a law, times the root of their number."""
    x = np.sort(np.ravel(draws))
    n, values = len(x), law(x)
    steps = np.arange(n + 1) / n
    return np.sqrt(n) * max(np.abs(steps[1:] - values).max(), np.abs(steps[:-1] - values).max())


@pytest.mark.parametrize("path", PATHS)
def test_a_gaussian_is_pushed_to_the_other(x64, path):
    """Closed form 1, with a random cross covariance."""
    field = gaussian(path)
    m0, c0, m1, c1, _ = moments(field.schedule)
    corners = np.vstack([np.zeros(3), np.eye(3)])
    image = np.asarray(field.map(num_steps=400)(corners))
    matrix = (image[1:] - image[0]).T
    # Runge and Kutta's error of order four at 400 steps: below 3e-10 on the path of the bar.
    assert np.allclose(matrix @ m0 + image[0], m1, atol=1e-8)
    assert np.allclose(matrix @ c0 @ matrix.T, c1, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_the_velocity_is_a_conditional_mean(x64, path):
    """`b = v - gamma gamma' s`, with `v` by regression of the path's derivative on the point."""
    field, t = gaussian(path), jnp.asarray([0.2, 0.7])
    m0, c0, m1, c1, cross = moments(field.schedule)
    x = jax.device_put(np.random.default_rng(1).normal(size=(2, 3)))
    velocity, score = np.asarray(field.velocity(t, x)), np.asarray(field.score(t, x))
    step = 1e-5
    for i, time in enumerate((0.2, 0.7)):
        ends = [jnp.asarray(time + shift) for shift in (-step, 0, step)]
        (a0, b0), (a, b), (a1, b1) = (field.schedule.coefficients(end) for end in ends)
        da, db = (a1 - a0) / (2 * step), (b1 - b0) / (2 * step)
        squares = [float(field.gamma.squared(end)) for end in ends]
        covariance = a * a * c0 + b * b * c1 + a * b * (cross + cross.T) + squares[1] * np.eye(3)
        with_path = da * a * c0 + db * b * c1 + da * b * cross + db * a * cross.T
        solved = np.linalg.solve(covariance, x[i] - a * m0 - b * m1)
        product = (squares[2] - squares[0]) / (4 * step)
        v = da * m0 + db * m1 + with_path @ solved
        # Central differences of step 1e-5: their square times a third derivative of 50.
        assert np.allclose(score[i], -solved, atol=1e-8)
        assert np.allclose(velocity[i], v - product * score[i], atol=1e-7)
        assert np.allclose(field.v(t, x)[i], v, atol=1e-7)
    assert np.allclose(field.denoiser(t, x), -np.asarray(field.noise(t))[:, None] * score)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["linear, Brownian", "encoding-decoding", "one-sided linear"])
def test_a_mixture_obeys_the_continuity_equation(x64, path):
    """Closed form 2: `d log rho / dt + b . s + div b = 0`, and `s` is the gradient of `log rho`."""
    field = mixture(*PATHS[path])
    x = jax.device_put(np.linspace(-8, 8, 41)[:, None])

    @jax.jit
    def terms(t, x):
        change = jax.jvp(lambda t: field.log_density(t, x), (t,), (jnp.ones_like(t),))[1]
        gradient = jax.grad(lambda x: jnp.sum(field.log_density(t, x)))(x)
        velocity, divergence = jax.jvp(lambda x: field.velocity(t, x), (x,), (jnp.ones_like(x),))
        return change, gradient, field.score(t, x), velocity, divergence

    for time in (0.1, 0.45, 0.8):
        change, gradient, score, velocity, divergence = terms(jnp.asarray(time), x)
        # Rounding: the terms are of order 1e3 in the tails.
        assert np.allclose(score, gradient, rtol=1e-10, atol=1e-9)
        residual = change + (velocity * score + divergence)[:, 0]
        assert np.allclose(residual, 0, atol=1e-9 * np.abs(change).max())


@pytest.mark.slow
def test_a_point_far_away_has_a_field():
    """Where every density underflows, the nearest component rules."""
    field, far = mixture(Linear(), Brownian()), jax.device_put(np.asarray([[1e4]], np.float32))
    t = jnp.asarray(1.0, jnp.float32)
    assert np.allclose(field.score(t, far), -(1e4 - 6) / 0.5, rtol=1e-4)
    assert np.isfinite(field.velocity(jnp.asarray(0.5, jnp.float32), far)).all()


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 10.0])
def test_diffusions_of_every_volatility_have_the_law(epsilon):
    field, n = mixture(Linear(), Brownian()), 5000
    rng = np.random.default_rng(0)

    def draws(weights, means, covariances):
        k = rng.choice(len(weights), n, p=weights)
        spread = np.sqrt(np.ravel(covariances))[k]
        return (np.ravel(means)[k] + spread * rng.normal(size=n))[:, None].astype(np.float32)

    made = field.map(epsilon=epsilon)
    forward = made.sample(1, draws(*SOURCE))
    backward = made.sample_backward(2, draws(*TARGET))
    # Exceeded with probability 2 exp(-2 2.5^2) = 7e-6; a hundred steps of weak order two are off by
    # less than a tenth of it.
    assert kolmogorov(forward, distribution(*TARGET)) < 2.5
    assert kolmogorov(backward, distribution(*SOURCE)) < 2.5
    if epsilon == 10.0:  # noise without its drift widens the law
        wrong = dataclasses.replace(made, field=Scoreless(field))
        assert kolmogorov(wrong.sample(1, draws(*SOURCE)), distribution(*TARGET)) > 5


class Scoreless(MixtureField):
    """A field whose score is lost."""

    def __init__(self, field):
        for name in ("log_weights", "joints", "schedule", "gamma"):
            setattr(self, name, getattr(field, name))

    def score(self, t, x):
        return jnp.zeros_like(x)


@pytest.mark.parametrize(("scheme", "order"), [(EulerMaruyama(), 1), (StochasticHeun(), 2)])
def test_schemes_have_their_weak_order(x64, scheme, order):
    """A linear equation with a volatility that changes: the variance of a step is known.

    `dx = -k x dt + sqrt(e(t)) dW`, `e = 1 + sin 3 t`: `v' = -2 k v + e`.
    """
    k = 2.0

    def volatility(t):
        return 1 + np.sin(3 * t)

    exact = 0.5 * np.exp(-2 * k) + quad(
        lambda t: np.exp(-2 * k * (1 - t)) * volatility(t), 0, 1, epsabs=1e-13
    )[0]  # fmt: skip
    errors = []
    for steps in (16, 32, 64):
        h, variance = 1 / steps, 0.5
        for i in range(steps):
            t, one, none = jnp.asarray(i * h), jnp.ones(()), jnp.zeros(())
            slope = scheme.step(lambda t, x: -k * x, t, one, jnp.asarray(h), none)
            noise = scheme.step(lambda t, x: -k * x, t, none, jnp.asarray(h), one)
            variance = slope**2 * variance + noise**2 * h * volatility(i * h + h / 2)
        errors.append(abs(float(variance) - exact))
    slopes = np.log2(np.asarray(errors[:-1]) / errors[1:])
    # The next power of the step, 1/32, is left out.
    assert np.allclose(slopes, order, atol=0.15)


@pytest.mark.slow
def test_the_kinetic_optimal_path_of_a_gaussian(x64):
    """Closed form 6: variances 1.9 and .1."""
    variances = np.array([1.9, 0.1])

    def root_of_g(theta):
        parts = (1 - variances) ** 2 / (1 - (1 - variances) * np.sin(theta) ** 2)
        return np.sin(theta) * np.cos(theta) * np.sqrt(np.mean(parts))

    whole = quad(root_of_g, 0, np.pi / 2, epsabs=1e-13)[0]
    path = kinetic_optimal_gaussian(variances)
    assert 2 * (1 - np.cos(whole)) == pytest.approx(0.305367, abs=5e-7)
    # Gauss's quadrature, and the floor of 1e-8 under g near the ends.
    assert float(path.energy) == pytest.approx(2 * (1 - np.cos(whole)), abs=1e-7)
    # The energy of the flow itself, a coordinate; the note's numbers for the other two paths.
    assert energy(path, variances) == pytest.approx(0.305367, abs=5e-6)
    assert energy(OneSidedTrigonometric(), variances) == pytest.approx(0.3767, abs=5e-5)
    assert energy(OneSidedLinear(), variances) == pytest.approx(0.6690, abs=5e-5)
    # From a sample: variances of 2000 points are off by 3 %, in their ratio to the mean by a third
    # of it, and the floor under g adds 1 %. The energy of the path is off in second order.
    sample = np.random.default_rng(0).normal(size=(2000, 2)) * np.sqrt(variances)
    estimated = kinetic_optimal(sample)
    assert float(estimated.energy) == pytest.approx(0.305367, rel=0.03)
    assert energy(estimated, variances) == pytest.approx(0.305367, rel=0.01)


def energy(path: Schedule, variances, n=20_000):
    """Mean of `b^2` over a coordinate and time, of the flow from a normal to a Gaussian."""
    t = (jnp.arange(n) + 0.5) / n
    a, b = (np.asarray(c)[:, None] for c in path.coefficients(t))
    da, db = (np.asarray(c)[:, None] for c in path.rates(t))
    return np.mean((a * da + b * db * variances) ** 2 / (a**2 + b**2 * variances))


@pytest.mark.slow
def test_the_flow_between_scaled_normals_is_straighter_than_its_path(x64):
    """Closed form 10: N(0, 1) to N(0, 9), independent: the map is right and the energy is not."""
    field = GaussianField([0.0], [[1.0]], [0.0], [[9.0]], Linear())
    t = (jnp.arange(2000) + 0.5) / 2000
    spread = jnp.sqrt((1 - t) ** 2 + 9 * t**2)[:, None]
    spent = float(np.mean(np.asarray(field.velocity(t, spread)) ** 2))
    # The midpoint rule at 2000 points.
    assert spent == pytest.approx(5.28761, abs=1e-5)
    assert (spent - 4) / 4 == pytest.approx(0.32190, abs=1e-5)
    assert np.allclose(field.map()(np.array([[1.5]])), 4.5, atol=1e-6)


@pytest.mark.slow
def test_a_flow_map_is_the_ratio_of_roots(x64):
    """Closed form 11, for covariances that commute, and the density that it carries."""
    variances = np.array([4.0, 0.25])
    field = GaussianField([0, 0], np.eye(2), [0, 0], np.diag(variances), OneSidedLinear())
    made, x = field.map(num_steps=50), np.array([[1.0, -2.0], [0.3, 0.5]])
    times = [0.0, 0.4, 1.0]
    for time, found in zip(times, made.trajectory(x, times), strict=True):
        root = np.sqrt((1 - time) ** 2 + time**2 * variances)
        assert np.allclose(found, x * root, atol=1e-5)
    # Runge and Kutta at 50 steps.
    density = made.log_prob(x, lambda p: -np.sum(np.asarray(p) ** 2, 1) / 2 - np.log(2 * np.pi))
    assert np.allclose(density, field.log_density(jnp.asarray(1.0), jax.device_put(x)), atol=1e-5)
    assert np.allclose(made.inverse(made(x)), x, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["linear", "linear, Brownian", "encoding-decoding"])
def test_the_base_is_the_field_between_standard_normals(x64, path):
    schedule, gamma = PATHS[path]
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(2, 2)))[0]
    cross = turn @ np.diag([0.8, 0.1]) @ turn.T
    # What is not symmetric is left out.
    base = whitened_field(cross + np.array([[0, 0.1], [-0.1, 0]]), schedule, gamma, float)
    one, none = np.eye(2), np.zeros(2)
    known = GaussianField(none, one, none, one, schedule, gamma, cross)
    t, x = (
        jnp.asarray([0.1, 0.4, 0.9]),
        jax.device_put(np.random.default_rng(4).normal(size=(3, 2))),
    )
    assert np.allclose(base.velocity(t, x), known.velocity(t, x), atol=1e-12)
    assert np.allclose(base.score(t, x), known.score(t, x), atol=1e-12)


@pytest.mark.slow
def test_data_are_a_mixture_of_points(x64):
    rng = np.random.default_rng(2)
    points, weights = rng.normal(size=(6, 2)), rng.dirichlet(np.ones(6))
    field = EmpiricalField(points, OneSidedLinear(), weights)
    known = MixtureField(
        [1.0], np.zeros((1, 2)), np.eye(2)[None], weights, points, np.zeros((6, 2, 2)),
        OneSidedLinear(),
    )  # fmt: skip
    x, t = jax.device_put(rng.normal(size=(5, 2))), jnp.asarray([0.0, 0.2, 0.5, 0.7, 0.9])
    # Rounding over alpha^2 = .01.
    assert np.allclose(field.velocity(t, x), known.velocity(t, x), atol=1e-9)
    assert np.allclose(field.score(t, x), known.score(t, x), atol=1e-9)
    # Euler's last step ends in a point of the data.
    image = np.asarray(field.map(num_steps=200, scheme=Euler())(rng.normal(size=(300, 2))))
    near = np.sqrt(np.min(np.sum((image[:, None] - points[None]) ** 2, axis=2), axis=1))
    assert np.quantile(near, 0.95) < 1e-6


@pytest.mark.slow
def test_a_moving_frame_changes_coordinates_only(x64):
    """Velocity, score, log determinant and trajectory in a frame, of a law that is known."""
    covariances = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[2.0, -0.8], [-0.8, 1.5]])
    means = np.array([0.5, 1.0]), np.array([2.0, -1.0])
    first, second = (Moments(m, c) for m, c in zip(means, covariances, strict=True))
    frame = whitened(first, second, float)
    one, none = np.eye(2), np.zeros(2)
    field = GaussianField(none, one, none, one, Linear(), Brownian())
    made = StochasticInterpolantMap(Fit("known"), field, field.like, 100, frame=frame)
    x = np.random.default_rng(0).normal(size=(4, 2))
    # The law at time t is Gaussian with covariance A_t S_t A_t'.
    for time in (0.0, 0.3, 1.0):
        t = jnp.asarray(time)
        corners = np.asarray(frame.leave(t, jax.device_put(np.vstack([none, one]))))
        matrix = (corners[1:] - corners[0]).T
        covariance = ((1 - time) ** 2 + time**2 + time * (1 - time)) * matrix @ matrix.T
        expected = -np.linalg.solve(covariance, (x - corners[0]).T).T
        assert np.allclose(made.score(t, x), expected, atol=1e-10)
        assert np.allclose(frame.enter(t, frame.leave(t, jax.device_put(x))), x, atol=1e-10)
    step = 1e-3
    before, middle, after = made.trajectory(x, [0.5 - step, 0.5, 0.5 + step])
    # Central differences: the square of the step times a third derivative of order 10.
    assert np.allclose(made.velocity(0.5, middle), (after - before) / (2 * step), atol=1e-5)
    jacobian = jax.vmap(jax.jacfwd(lambda p: made(p)))(x)
    assert np.allclose(made.log_det(x), np.linalg.slogdet(jacobian)[1], atol=1e-8)
    still = dataclasses.replace(made, frame=Unmoved())
    assert np.allclose(still(x), x, atol=1e-8)


class NormalPairs(Coupling):
    """Independent standard normals of one dimension."""

    def _pairs(self, key, n):
        both = normals(key, (2, n, 1), jnp.result_type(float))
        return both[0], both[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [VelocityLoss, ScoreLoss, DenoiserLoss])
@pytest.mark.parametrize("gamma", [Brownian(), SineSquared()])
def test_losses_are_least_at_the_truth(x64, loss, gamma):
    """`L(f + c g) = L(f) + c^2 E |g|^2`: the derivative in `c` vanishes at the truth."""
    field = GaussianField([0.0], [[1.0]], [0.0], [[1.0]], Linear(), gamma)
    # Another field as the base, so that what is learned is not zero.
    base = whitened_field(np.eye(1) / 2, Linear(), gamma, float)
    objective = loss(NormalPairs(), Unmoved(), base)
    truth = {VelocityLoss: field.velocity, ScoreLoss: field.score, DenoiserLoss: field.denoiser}

    def at(c, key):
        def model(t, x, condition):
            return truth[loss](t, x) - objective.known(t, x) + c * (jnp.sin(x) + x * t[:, None])

        return objective.loss(model, objective.batch(key, 256))

    keys = jax.random.split(as_key(0), 200)
    gradients = jax.jit(jax.vmap(jax.grad(at), (None, 0)))
    slopes = np.asarray(gradients(jnp.asarray(0.0), keys))
    error = slopes.std() / np.sqrt(len(slopes))
    # Five standard errors, and so is a field that is off by a tenth seen.
    assert abs(slopes.mean()) < 5 * error
    assert np.asarray(gradients(jnp.asarray(0.1), keys)).mean() > 5 * error

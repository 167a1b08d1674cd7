"""Interpolants as users meet them: what they learn, draw, refuse and keep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.training import Training
from driftbridge.transport.base import NotSupported
from driftbridge.transport.couplings import Corruption, Independent, Paired
from driftbridge.transport.fields import EmpiricalField
from driftbridge.transport.gammas import Brownian, Gamma, NoNoise, SineSquared, Squared
from driftbridge.transport.gaussian_fields import GaussianField, MixtureField
from driftbridge.transport.interpolant import Interpolant
from driftbridge.transport.interpolant_fields import Score
from driftbridge.transport.kinetic_optimal import (
    KineticOptimal,
    kinetic_optimal,
    kinetic_optimal_gaussian,
)
from driftbridge.transport.networks import MLP
from driftbridge.transport.schedules import (
    EncodingDecoding,
    Linear,
    Mirror,
    OneSidedLinear,
    Schedule,
    Trigonometric,
)
from driftbridge.transport.suggest_epsilon import suggest_epsilon

SMALL = MLP(width=32, depth=2)
QUICK = Training(num_steps=600, batch_size=256, validate_every=100, learning_rate=1e-2)
WEIGHTS, CENTRES = [0.5, 0.5], [[-1.0], [1.0]]


def normal(n=2000, seed=0, dim=1):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def two_modes(n=2000, seed=1, variance=0.1):
    rng = np.random.default_rng(seed)
    centres = rng.choice([-1.0, 1.0], size=(n, 1))
    return (3 + 2 * (centres + variance**0.5 * rng.normal(size=(n, 1)))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """From a normal to two modes, whose field in the whitened coordinates is known."""
    return db.fit_map(normal(), two_modes(), Interpolant(network=SMALL, training=QUICK))


def known():
    """The field of the whitened laws: mean 0, variance 1."""
    spread = 1.1**0.5
    covariances = np.full((2, 1, 1), 0.1 / 1.1)
    means = np.asarray(CENTRES) / spread
    return MixtureField(
        [1.0], [[0.0]], [[[1.0]]], WEIGHTS, means, covariances, Linear(), Brownian()
    )


def missed(field, truth, key=0, n=4000):
    """Mean squares over the law of the interpolant: what a field misses of velocity and score, and
    the variance of the two."""
    rng = np.random.default_rng(key)
    centres = rng.choice([-1.0, 1.0], size=(n, 1))
    x1 = (centres + 0.1**0.5 * rng.normal(size=(n, 1))) / 1.1**0.5
    t = rng.uniform(0.05, 0.95, size=n).astype(np.float32)
    alpha, beta = (np.asarray(c)[:, None] for c in truth.schedule.coefficients(jax.device_put(t)))
    noise = np.asarray(truth.gamma(jax.device_put(t)))[:, None]
    x = alpha * rng.normal(size=(n, 1)) + beta * x1 + noise * rng.normal(size=(n, 1))
    x, t = jax.device_put(x.astype(np.float32)), jax.device_put(t)
    found = []
    for name in ("velocity", "score"):
        exact = np.asarray(getattr(truth, name)(t, x))
        off = np.asarray(getattr(field, name)(t, x)) - exact
        found.append((np.mean(off**2), np.mean(exact**2)))
    return found


@pytest.mark.slow
def test_the_field_is_learned(fitted):
    truth = known()
    (velocity, of_velocity), (score, of_score) = missed(fitted.field, truth)
    # What 600 steps of 256 leave: about (parameters / draws) = 1200 / 150 000 of the variance of
    # the targets, some times that of the field; a score is a denoiser over a noise of .2 to .5.
    assert velocity < 0.05 * of_velocity
    assert score < 0.1 * of_score
    # The affine map alone is far from it.
    zero = GaussianField([0.0], [[1.0]], [0.0], [[1.0]], Linear(), Brownian())
    assert missed(zero, truth)[0][0] > 0.2 * of_velocity


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1.0, lambda t: 2 * (1 - t)])
def test_draws_have_the_law_whatever_the_volatility(fitted, epsilon):
    changed = dataclasses.replace(fitted, epsilon=epsilon)
    draws = np.sort(changed.sample(3, normal(4000, seed=5))[:, 0, 0])
    fresh = np.sort(two_modes(4000, seed=6)[:, 0])
    assert draws.shape == fresh.shape
    # A share of .01 more in a mode, as samples of 2000 have, moves 1.9 spreads far: .19 in all. The
    # affine map is off by .36.
    assert np.sqrt(np.mean((draws - fresh) ** 2)) < 0.19 * fresh.std()
    back = np.sort(changed.sample_backward(4, two_modes(4000, seed=7))[:, 0, 0])
    assert np.sqrt(np.mean((back - np.sort(normal(4000, seed=8)[:, 0])) ** 2)) < 0.15


@pytest.mark.slow
def test_no_volatility_is_the_flow(fitted):
    still = dataclasses.replace(fitted, epsilon=0.0, num_noisy_steps=100)
    x = normal(50, seed=2)
    # Heun's 100 steps against 20 of Runge and Kutta.
    np.testing.assert_allclose(still.sample(0, x, 3)[:, 1], fitted(x), atol=0.02)


@pytest.mark.slow
def test_a_row_is_drawn_alike_whatever_is_beside_it(fitted):
    x = normal(40, seed=3)
    whole = fitted.sample(7, x, 3)
    assert whole.shape == (40, 3, 1)
    # Other blocks are other programs, whose sums round otherwise.
    np.testing.assert_allclose(fitted.sample(7, x[:5], 3), whole[:5], atol=1e-4)
    np.testing.assert_allclose(fitted.sample(7, x, 2), whole[:, :2], atol=1e-4)
    assert np.ptp(whole[0]) > 1e-3 and not np.allclose(whole, fitted.sample(8, x, 3))


@pytest.mark.slow
def test_velocity_score_and_times(fitted):
    x = normal(6, seed=4)
    assert fitted.velocity(0.5, x).shape == fitted.score(0.5, x).shape == (6, 1)
    each = fitted.score(np.linspace(0, 1, 6), x)
    assert np.isfinite(each).all()
    np.testing.assert_allclose(each[5:], fitted.score(1.0, x[5:]), rtol=1e-4)
    with pytest.raises(ValueError, match="times must lie in"):
        fitted.score(1.5, x)
    np.testing.assert_allclose(fitted.inverse(fitted(x)), x, atol=1e-3)


@pytest.mark.slow
def test_a_map_is_kept(tmp_path):
    made = known().map(epsilon=0.5, num_steps=10)
    loaded, x = db.load(made.save(tmp_path / "map")), normal(5)
    np.testing.assert_array_equal(loaded(x), made(x))
    np.testing.assert_array_equal(loaded.sample(1, x), made.sample(1, x))


@pytest.mark.slow
def test_a_second_fit_and_another_volatility_compile_nothing(fitted):
    method = Interpolant(network=SMALL, training=QUICK)
    for use in (fitted, lambda x: fitted.sample(0, x)):
        use(normal())
    compilations = Compilations()
    other = db.fit_map(normal(seed=8), two_modes(seed=9), method, key=1)
    for use in (other, lambda x: dataclasses.replace(other, epsilon=0.3).sample(1, x)):
        use(normal())
    assert compilations.programs == 0


@pytest.mark.slow
def test_a_volatility_is_suggested(fitted):
    truth = dataclasses.replace(fitted, field=known())
    pairs = Independent(normal(seed=10), two_modes(seed=11))
    found = suggest_epsilon(fitted, truth, pairs)
    (velocity, _), (score, _) = missed(fitted.field, known())
    # The same means over other points and times, the ends included in one of them only.
    assert found == pytest.approx(2 * np.sqrt(velocity / score), rel=0.6)
    with pytest.raises(ValueError, match="the reference is as the map"):
        suggest_epsilon(fitted, fitted, pairs)


METHODS = {
    "score": Interpolant(score=Score()),
    "trigonometric": Interpolant(Trigonometric(Squared()), Squared()),
    "encoding-decoding": Interpolant(EncodingDecoding(), SineSquared()),
    "one-sided": Interpolant(OneSidedLinear()),
    "kinetic-optimal": Interpolant(kinetic_optimal),
    "pairs": Interpolant(coupling=lambda x, y, key, **_: Paired(x[:200], y[:200])),
    "data-dependent": Interpolant(
        coupling=lambda x, y, key, **_: Corruption(y, lambda point: 0.5 * point, 1.0)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_path_is_learned(name):
    # Encoding and decoding are steep, and twice as long to learn.
    training = dataclasses.replace(QUICK, num_steps=1200)
    method = dataclasses.replace(METHODS[name], network=SMALL, training=training)
    source, test = normal(), normal(4000, seed=5)
    if name == "data-dependent":  # the source is the corrupted target
        source, test = (
            0.5 * two_modes(n, seed) + normal(n, seed) for n, seed in ((2000, 3), (4000, 5))
        )
    found = db.fit_map(source, two_modes(), method)
    fresh = np.sort(two_modes(4000, seed=6)[:, 0])
    for image in (found(test), found.sample(0, test)[:, 0]):
        off = np.sort(np.asarray(image)[:, 0]) - fresh
        assert np.sqrt(np.mean(off**2)) < 0.19 * fresh.std()  # as above


@pytest.mark.slow
def test_float32_data_stay_float32_where_float64_is_on(x64):
    training = dataclasses.replace(QUICK, num_steps=2, validate_every=1)
    # A path that has tables of its own, in float64.
    method = Interpolant(kinetic_optimal, network=SMALL, training=training)
    found = db.fit_map(normal(200), two_modes(200), method)
    leaves = jax.tree.leaves((found.field.network, found.frame))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    assert found(normal(5)).dtype == found.sample(0, normal(5)).dtype == np.float32


@pytest.mark.slow
def test_without_a_step_it_is_the_interpolant_of_gaussians():
    training = dataclasses.replace(QUICK, num_steps=0)
    y = 2 + 3 * normal(4000, seed=12)
    method = Interpolant(network=SMALL, training=training, epsilon=4.0)
    found = db.fit_map(normal(4000), y, method)
    draws = found.sample(0, normal(4000, seed=5))[:, 0]
    # Standard errors of mean and spread of 4000 draws, and of the data's, five times.
    assert abs(draws.mean() - 2) < 5 * 3 * (2 / 4000) ** 0.5
    assert abs(draws.std() / 3 - 1) < 5 * (2 / 8000) ** 0.5


@pytest.mark.slow
def test_a_mirror_draws_anew():
    x, y = two_modes(seed=1), two_modes(seed=2)
    training = dataclasses.replace(QUICK, num_steps=300)
    found = db.fit_map(x, y, Interpolant(Mirror(), network=SMALL, training=training))
    draws = dataclasses.replace(found, epsilon=1.0).sample(0, x)[:, 0]
    # A point moves by about its spread within a mode; the flow leaves it.
    assert np.std(draws - x) > 0.3
    assert np.mean((found(x) - x) ** 2) < 0.01 * np.var(x)


@pytest.mark.slow
def test_without_noise_there_is_a_flow_and_nothing_is_drawn():
    training = dataclasses.replace(QUICK, num_steps=0)
    found = db.fit_map(
        normal(), two_modes(), Interpolant(gamma=NoNoise(), network=SMALL, training=training)
    )
    # No step has been taken: it is the affine map.
    affine = db.fit_map(normal(), two_modes(), "affine")
    np.testing.assert_allclose(found(normal(9)), affine(normal(9)), atol=1e-4)
    np.testing.assert_allclose(found.log_det(normal(9)), affine.log_det(normal(9)), atol=1e-4)
    with pytest.raises(NotSupported, match="InterpolantMap has no sample"):
        found.sample(0, normal())


class Falling(Schedule):
    """A path that never leaves its source."""

    def alpha(self, t):
        return jnp.ones_like(t)

    def beta(self, t):
        return t


class Raised(Gamma):
    """Noise that is there from the start."""

    def squared(self, t):
        return 0.1 + t * (1 - t)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Interpolant(Falling()), r"alpha\(1\) of Falling must be 0; it is 1, so that"),
        (lambda: Interpolant(gamma=Raised()), r"gamma\(0\) of Raised must be 0"),
        (lambda: Interpolant(EncodingDecoding(), NoNoise()), "all points meet in one"),
        (lambda: Interpolant(Mirror(), NoNoise()), "nothing moves"),
        (lambda: Interpolant(OneSidedLinear(), Brownian()), "its gamma is NoNoise"),
        (lambda: Interpolant(Mirror(), coupling=Paired), "Mirror pairs nothing"),
        (lambda: Interpolant(epsilon=-1.0), "epsilon must be a number of at least 0"),
        (lambda: Brownian(0.0), "scale must be positive"),
        (lambda: Trigonometric(Brownian(5.0)), "gamma must stay below 1"),
        (lambda: EmpiricalField(normal(5), Linear()), "need a one-sided schedule"),
        (
            lambda: GaussianField([1.0], [[1.0]], [0.0], [[1.0]], OneSidedLinear()),
            "starts in a standard normal",
        ),
        (
            lambda: GaussianField([0.0], [[1.0]], [0.0], [[1.0]], Linear(), cross=[[2.0]]),
            "must make a covariance of both",
        ),
        (lambda: kinetic_optimal_gaussian([2.0, 1.0]), "of mean 1"),
        (lambda: kinetic_optimal(np.ones((5, 2))), "all points are one"),
        (lambda: KineticOptimal(lambda s: s), r"lambda must lie in \[0, 1\]"),
        (
            lambda: db.fit_map(two_modes(), normal(), Interpolant(OneSidedLinear())),
            "starts in a normal law, and the source is none",
        ),
        (
            lambda: db.fit_map(normal(), two_modes(), Interpolant(Mirror())),
            "source and target differ",
        ),
        (
            lambda: db.fit_map(
                normal(), two_modes(), Interpolant(network=SMALL.build(as_key(0), 2, 2, np.float32))
            ),
            "network",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.slow
def test_both_networks_go_on_from_checkpoints_of_their_own(tmp_path):
    x, y = (np.random.default_rng(k).normal(size=(80, 2)).astype(np.float32) for k in range(2))
    training = Training(num_steps=6, batch_size=16, checkpoint=tmp_path / "state.npz")
    method = Interpolant(network=SMALL, training=training)
    first = db.fit_map(x, y + 1, method, 0)
    assert {p.name for p in tmp_path.iterdir()} == {"state.npz", "state.npz.score"}
    # Both have ended, and are read.
    again = db.fit_map(x, y + 1, method, 0)
    np.testing.assert_array_equal(first(x), again(x))
    np.testing.assert_array_equal(first.score(0.5, x), again.score(0.5, x))

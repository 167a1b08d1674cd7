"""Interpolants on the simplex: regressions of Gaussians, their constraint, maps along curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.training import Training
from driftbridge.transport.base import Fit
from driftbridge.transport.multimarginal import MultimarginalField, fit_multimarginal
from driftbridge.transport.networks import MLP
from driftbridge.transport.resampling import Resampled
from driftbridge.transport.simplex_curves import FourierCurve, Polyline
from driftbridge.transport.simplex_regression import Components, GaussianComponents

SETS, DIM = 3, 2
RANDOM = np.random.default_rng(0)
MEANS = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
COVARIANCES = np.stack(
    [np.eye(2), np.array([[2.0, -0.8], [-0.8, 1.5]]), np.array([[0.3, 0.1], [0.1, 0.9]])]
)


def exact_draws(n=500):
    """Rows of three points whose joint moments are those of the independent Gaussians exactly."""
    z = np.random.default_rng(1).normal(size=(n, SETS * DIM))
    z = z - z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T, ddof=0))).T
    z = z.reshape(n, SETS, DIM)
    return MEANS + np.einsum("nkj,kij->nki", z, np.linalg.cholesky(COVARIANCES))


def weights(n):
    alpha = RANDOM.exponential(size=(n, SETS))
    return alpha / alpha.sum(axis=1, keepdims=True)


def gaussian():
    return GaussianComponents(jnp.asarray(MEANS), jnp.asarray(COVARIANCES))


def field(draws=None):
    draws = exact_draws() if draws is None else draws
    tables = tuple(Resampled(draws[:, k]) for k in range(SETS))
    return MultimarginalField(Fit("test"), gaussian(), tables, jnp.asarray(MEANS[0]))


@pytest.mark.slow
def test_conditional_means_are_regressions(x64):
    """On draws of exact moments least squares on `(1, x(alpha))` is the conditional mean."""
    draws = exact_draws()
    for alpha in weights(4):
        x = np.einsum("k,nki->ni", alpha, draws)
        found = gaussian()(jnp.broadcast_to(jnp.asarray(alpha), (len(x), SETS)), jnp.asarray(x))
        design = np.concatenate([np.ones((len(x), 1)), x], axis=1)
        for k in range(SETS):
            fitted = design @ np.linalg.lstsq(design, draws[:, k], rcond=None)[0]
            assert np.allclose(found[:, k], fitted, atol=1e-10)


@pytest.mark.slow
def test_the_constraint_holds_for_every_network(x64):
    """`sum_k alpha_k g_k = x`, and at vertex `k` the mean of its own point is `x`."""
    network = MLP(8, 2).build(as_key(0), DIM + SETS, DIM * SETS, np.float64)
    network = jax.tree.map(lambda leaf: leaf + RANDOM.normal(size=leaf.shape), network)
    model = Components(gaussian(), network, jnp.eye(2), jnp.asarray(1.5))
    alpha = jnp.asarray(np.concatenate([weights(20), np.eye(SETS)]))
    x = jnp.asarray(RANDOM.normal(size=(len(alpha), DIM)))
    found = model(alpha, x)
    assert np.allclose(jnp.einsum("nk,nki->ni", alpha, found), x, atol=1e-12)
    for k in range(SETS):
        assert np.allclose(found[20 + k, k], x[20 + k], atol=1e-12)
    assert np.abs(found - gaussian()(alpha, x)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("route", [(0, 1), (1, 2), (2, 0, 1)])
def test_maps_of_gaussians_carry_moments_exactly(x64, route):
    """The flow along any curve of weights is affine and ends in the last law."""
    fitted = field().map_through(route, num_steps=80)
    first, last = route[0], route[-1]
    x = jnp.asarray(MEANS[first][None])
    # Steps of 1/40 or 1/80 by a method of order four: 1e-6.
    assert np.allclose(fitted(x), MEANS[last], atol=1e-5)
    matrix = np.asarray(jax.jacfwd(lambda p: fitted(p))(x[0]))
    assert np.allclose(matrix @ COVARIANCES[first] @ matrix.T, COVARIANCES[last], atol=1e-5)
    assert np.allclose(fitted.inverse(fitted(x + 1)), x + 1, atol=1e-5)


@pytest.mark.slow
def test_velocity_is_that_of_the_map_along_a_curve(x64):
    model, x = field(), RANDOM.normal(size=(5, DIM))
    edge = model.map_between(0, 2)
    found = model.velocity(
        jnp.asarray([0.7, 0.0, 0.3]), jnp.asarray([-1.0, 0.0, 1.0]), jnp.asarray(x)
    )
    assert np.allclose(edge.velocity(0.3, x), found, atol=1e-12)


def test_score_is_that_of_the_gaussian(x64):
    """Set 0 is standard normal, so `-g_0 / alpha_0` is `-S^{-1} (x - m)`."""
    alpha, x = np.array([0.2, 0.5, 0.3]), RANDOM.normal(size=(5, DIM))
    total = np.einsum("k,kij->ij", alpha**2, COVARIANCES)
    expected = -np.linalg.solve(total, (x - alpha @ MEANS).T).T
    found = field().score(jnp.asarray(alpha), jnp.asarray(x), 0)
    assert np.allclose(found, expected, atol=1e-12)


@pytest.mark.slow
def test_curves_stay_in_the_simplex_and_keep_their_ends(x64):
    t = jnp.linspace(0, 1, 101)
    bent = FourierCurve(jnp.eye(3)[:2], jnp.asarray(RANDOM.normal(size=(3, 3))))
    detour = Polyline(jnp.eye(3)[jnp.asarray([0, 2, 1])])
    for curve in (bent, detour):
        alpha, rate = curve(t)
        assert np.all(np.asarray(alpha) >= 0) and np.allclose(alpha.sum(axis=1), 1)
        assert np.allclose(rate.sum(axis=1), 0, atol=1e-12)
        assert np.allclose(alpha[0], [1, 0, 0]) and np.allclose(alpha[-1], [0, 1, 0], atol=1e-12)
    assert np.allclose(detour(jnp.asarray(0.5))[0], [[0, 0, 1]])
    rate = (bent.weights(t + 1e-6) - bent.weights(t - 1e-6)) / 2e-6
    assert np.allclose(bent(t)[1], rate, atol=1e-6)


@pytest.mark.slow
def test_a_curve_is_shortened_after_the_fit():
    """Between two equal laws the edge goes through a narrow one; a wide third one makes up for it.

    Along the edge `S = ((1 - t)^2 + t^2) I`, and the energy is that of its root, in two dimensions
    `2 int (1 - 2 t)^2 / (1 - 2 t + 2 t^2) dt`.
    """
    scales = np.array([1.0, 1.0, 3.0])
    draws = (exact_draws() - MEANS) @ np.eye(2)
    roots = np.linalg.inv(np.linalg.cholesky(COVARIANCES))
    draws = np.einsum("nkj,kij->nki", draws, roots) * scales[None, :, None]
    covariances = scales[:, None, None] ** 2 * np.eye(2)
    components = GaussianComponents(
        jnp.zeros((3, 2), jnp.float32), jnp.asarray(covariances, jnp.float32)
    )
    tables = tuple(Resampled(draws[:, k].astype(np.float32)) for k in range(SETS))
    model = MultimarginalField(Fit("test"), components, tables, jnp.zeros(2, jnp.float32))
    edge = model.energy(model.map_between(0, 1).field.curve)
    t = np.linspace(0, 1, 2001)
    exact = np.trapezoid(2 * (1 - 2 * t) ** 2 / (1 - 2 * t + 2 * t**2), t)
    # Means of |v|^2 over 4096 points have a relative error of about 2 %.
    assert edge == pytest.approx(exact, rel=0.06)
    training = Training(num_steps=200, batch_size=128, learning_rate=2e-2, averaging=0.95)
    curve = model.shortest_curve(0, 1, training=training)
    assert model.energy(curve) < 0.7 * edge
    assert np.asarray(curve.weights(jnp.asarray([0.5], jnp.float32)))[0, 2] > 0.05


def clouds(n=1500):
    rng = np.random.default_rng(5)
    signs = rng.choice([-1, 1], size=n)
    return [
        rng.normal(size=(n, 1)).astype(np.float32),
        (3 * signs + 0.5 * rng.normal(size=n))[:, None].astype(np.float32),
        rng.uniform(4, 8, size=(n, 1)).astype(np.float32),
    ]


@pytest.mark.slow
def test_one_network_serves_every_pair_and_every_detour(tmp_path):
    data = clouds()
    training = Training(num_steps=1500, learning_rate=1e-2, validate_every=100)
    model = fit_multimarginal(data, network=MLP(32, 2), training=training)

    def error(image, k):
        """W1 over the spread, in one dimension."""
        gap = np.sort(np.asarray(image)[:, 0]) - np.sort(data[k][:, 0])
        return np.mean(np.abs(gap)) / data[k].std()

    for i, j in ((0, 1), (1, 0), (1, 2), (2, 1)):
        shift = data[i] * data[j].std() / data[i].std()
        affine = error(shift - shift.mean() + data[j].mean(), j)
        # Samples of 1500 are .05 apart, and a short training of a small network leaves .1 to .2.
        assert error(model.map_between(i, j)(data[i]), j) < 0.6 * affine
    detour = model.map_through((0, 2, 1))
    assert error(detour(data[0]), 1) < 0.3
    loaded = db.load(detour.save(tmp_path / "map"))
    assert np.array_equal(loaded(data[0][:50]), detour(data[0][:50]))
    watch = Compilations()
    fit_multimarginal([2 * points for points in data], 1, network=MLP(32, 2), training=training)
    assert watch.programs == 0


def test_bad_input_is_named():
    data = clouds(20)
    with pytest.raises(ValueError, match="at least two data sets; got 1"):
        fit_multimarginal(data[:1])
    with pytest.raises(ValueError, match=r"data\[0\] has 1 columns and data\[1\] 2"):
        fit_multimarginal([data[0], np.ones((5, 2))])
    with pytest.raises(ValueError, match=r"edge_share must be in \[0, 1\]; got 2"):
        fit_multimarginal(data, edge_share=2.0)
    with pytest.raises(ValueError, match=r"must return \(n, 3\)"):
        fit_multimarginal(data, network=MLP().build(as_key(0), 4, 2, np.float32))
    with pytest.raises(ValueError, match="numbered 0 to 2; there is none of number 3"):
        field().map_between(0, 3)
    with pytest.raises(ValueError, match="at least two data sets"):
        field().map_through((1,))

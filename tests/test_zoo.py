"""Laws over every target of the zoo: what it says about itself is true of its density."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from driftbridge import targets
from driftbridge.runtime.dtypes import cast_floating

DATA = Path(__file__).parents[2] / "shared" / "data"

COVARIANCE = np.array([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]])
SHAPES = np.stack([COVARIANCE, np.eye(3), 0.3 * COVARIANCE + 0.1])
MEANS = np.array([[-2.0, 0.0, 1.0], [1.5, 1.0, 0.0], [0.0, -2.0, 0.5]])
SHORT_WALK = (0.3, 0.5, float("nan"), float("nan"), 1.1, 0.8)


@dataclass(frozen=True)
class Entry:
    """A target of the zoo, and why a law does not apply to it (empty where it does)."""

    make: Callable[[], targets.Target]
    no_stein: str = ""
    no_moments: str = ""


ZOO = {
    "diagonal": Entry(lambda: targets.DiagonalGaussian([1.0, -2.0], [0.5, 3.0])),
    "dense": Entry(lambda: targets.DenseGaussian([1.0, 0.0, -1.0], COVARIANCE)),
    "rotated": Entry(lambda: targets.rotated_gaussian(5, 1e3, outliers=(1e4,))),
    "grid": Entry(targets.gaussian_grid),
    "forty": Entry(targets.forty_gaussians),
    "unequal mixture": Entry(
        lambda: targets.GaussianMixture(MEANS, [0.5, 1.0, 2.0], [1.0, 2.0, 3.0])
    ),
    "dense mixture": Entry(lambda: targets.DenseGaussianMixture(MEANS, SHAPES, [1.0, 2.0, 1.0])),
    "student": Entry(lambda: targets.StudentMixture(MEANS, [0.5, 1.0, 2.0], df=10.0)),
    "heavy student": Entry(
        lambda: targets.StudentMixture(MEANS, df=1.5), no_moments="df = 1.5 has no variance"
    ),
    "funnel": Entry(lambda: targets.NealFunnel(3, 1.0)),
    "deep funnel": Entry(
        targets.NealFunnel,
        no_stein="x_i^2 has the relative variance 3 e^9",
        no_moments="x_i^2 has the relative variance 3 e^9",
    ),
    "banana": Entry(targets.Banana),
    "ring": Entry(targets.Ring),
    "thick ring": Entry(lambda: targets.Ring(1.0, 1.0)),
    "two moons": Entry(targets.TwoMoons),
    "double well": Entry(targets.DoubleWell),
    "symmetric well": Entry(lambda: targets.DoubleWell(1.0, 4.0, 0.0)),
    "tilted to one": Entry(lambda: targets.DoubleWell(1.0, 1.0, 5.0)),
    "many well": Entry(lambda: targets.ManyWell(3, 2)),
    "walk": Entry(targets.BrownianMotion),
    "walk, non-centred": Entry(targets.BrownianMotionNonCentered),
    "schools": Entry(targets.EightSchools, no_stein="E 1 / tau^2 is infinite"),
    "schools, non-centred": Entry(targets.EightSchoolsNonCentered),
}
NAMES = list(ZOO)
DRAWS = 40_000

# Of the about 20 000 numbers compared below, one beyond six standard errors has probability 4e-5.
SIGMAS = 6.0


@functools.cache
def target_of(name: str) -> targets.Target:
    return ZOO[name].make()


@functools.cache
def draws_of(name: str) -> np.ndarray:
    """Exact draws in float64, shared by the laws (call under x64)."""
    return np.asarray(target_of(name).truth.sample(jax.random.key(11), DRAWS))


@jax.jit
def evaluate(target: targets.Target, x):
    """Log densities at `x` of shape `(n, dim)`, and scores by every road."""

    def alone(x):
        gradient = jax.grad(target.log_density)(x)
        return gradient, target.score(x), target.value_and_score(x)

    gradient, score, both = jax.lax.map(alone, x)
    return {
        "value": jax.vmap(target.log_density)(x),
        "gradient": gradient,
        "one by one": score,
        "batched": jax.vmap(target.score)(x),
        "both": jax.vmap(target.value_and_score)(x),
        "both, one by one": both,
    }


@jax.jit
def values_and_scores(target: targets.Target, x):
    return jax.vmap(target.value_and_score)(x)


@jax.jit
def scores(target: targets.Target, x):
    return jax.vmap(target.score)(x)


def gap(found, expected):
    """Largest difference, relative to the largest entry."""
    return float(jnp.max(jnp.abs(found - expected)) / (1 + jnp.max(jnp.abs(expected))))


@pytest.mark.parametrize("name", NAMES)
def test_every_road_gives_the_same_score(name, x64):
    found = evaluate(target_of(name), jnp.asarray(draws_of(name)[:8]))
    # Double rounding, times the condition of a few hundred additions.
    for road in ("one by one", "batched"):
        assert gap(found[road], found["gradient"]) < 1e-10
    for road in ("both", "both, one by one"):
        assert gap(found[road][0], found["value"]) < 1e-10
        assert gap(found[road][1], found["gradient"]) < 1e-10
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32_under_x64_and_is_accurate(name, x64):
    x = jnp.asarray(draws_of(name)[:8], jnp.float32)
    found = values_and_scores(target_of(name), x)
    exact = evaluate(target_of(name), x.astype(jnp.float64))["both"]
    # Single rounding 6e-8, times terms up to 1e3 larger than the sums they cancel in.
    for single, double in zip(found, exact, strict=True):
        assert single.dtype == jnp.float32
        assert gap(single, double) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_float32_by_default(name):
    target, key = target_of(name), jax.random.key(0)
    x = jax.eval_shape(lambda key: target.truth.sample(key, 2)[0], key)
    assert (x.dtype, x.shape) == (jnp.float32, (target.dim,))
    for function in (target.log_density, target.score, target.value_and_score):
        leaves = jax.tree.leaves(jax.eval_shape(function, x))
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@pytest.mark.parametrize("name", ["dense", "dense mixture", "student", "schools"])
def test_scores_batch_over_data(name, x64):
    """A stack of targets with changed numbers, each at its own position."""
    x = jnp.asarray(draws_of(name)[:2])
    target = cast_floating(target_of(name), jnp.float64)
    changed = jax.tree.map(lambda leaf: leaf * 1.1, target)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), target, changed)
    both = jax.jit(jax.vmap(lambda target, x: target.score(x)))(stack, x)
    assert gap(both[0], scores(target, x[:1])[0]) < 1e-12
    assert gap(both[1], scores(changed, x[1:])[0]) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_constrain_and_back(name, x64):
    target = target_of(name)
    x = jnp.asarray(draws_of(name)[:8])
    parameters = jax.vmap(target.constrain)(x)
    # Double rounding of exp, log and one division.
    assert gap(jax.vmap(target.unconstrain)(parameters), x) < 1e-12
    for parameter, axes in target.dims.items():
        lengths = tuple(len(target.coords[axis]) for axis in axes)
        assert parameters[parameter].shape[1:] == lengths


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_stated_moments(name, x64):
    truth, x = target_of(name).truth, draws_of(name)
    if reason := ZOO[name].no_moments:
        pytest.skip(reason)
    centred = x - np.asarray(truth.mean)
    products = centred[:, :, None] * centred[:, None, :]
    assert_mean(centred, 0.0)
    assert_mean(products, np.asarray(truth.covariance))
    np.testing.assert_allclose(np.diag(truth.covariance), truth.variance, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_draws_pass_the_stein_identity(name, x64):
    """`E s = 0` and `E x s^T = -I` for the score `s`, which ties the draws to the density."""
    target = target_of(name)
    if reason := ZOO[name].no_stein:
        pytest.skip(reason)
    x = jnp.asarray(draws_of(name))
    score = np.asarray(scores(target, x))
    centred = draws_of(name) - np.mean(draws_of(name), axis=0)
    assert_mean(score, 0.0)
    assert_mean(centred[:, :, None] * score[:, None, :], -np.eye(target.dim))


def assert_mean(samples: np.ndarray, expected: np.ndarray | float) -> None:
    """The mean over the leading axis is `expected` within `SIGMAS` standard errors."""
    error = np.std(samples, axis=0) / np.sqrt(len(samples))
    excess = np.abs(np.mean(samples, axis=0) - expected) - SIGMAS * error
    # Entries without randomness agree to rounding.
    assert np.max(excess) < 1e-9, f"{np.max(excess / (error + 1e-300))} standard errors beyond"


BOXES = {
    "diagonal": [(-5, 7, 400), (-38, 34, 400)],
    "grid": [(-10, 10, 600), (-10, 10, 600)],
    "funnel in the plane": [(-8, 8, 400), (-600, 600, 60_000)],
    "banana": [(-90, 90, 1500), (-15, 240, 3000)],
    "ring": [(-9, 9, 600), (-9, 9, 600)],
    "thick ring": [(-10, 10, 600), (-10, 10, 600)],
    "two moons": [(-7, 7, 600), (-7, 7, 600)],
    "double well": [(-5, 5, 2000)],
    "symmetric well": [(-5, 5, 2000)],
    "tilted to one": [(-5, 5, 2000)],
}


@pytest.mark.parametrize("name", BOXES)
def test_normaliser_by_the_trapezoidal_rule(name, x64):
    target = targets.NealFunnel(2, 1.0) if name not in ZOO else target_of(name)
    axes = [np.linspace(low, high, num, endpoint=False) for low, high, num in BOXES[name]]
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    rest = axes[1][:, None] if axes[1:] else np.zeros((1, 0))

    @jax.jit
    def total(target):
        def line(first):
            x = jnp.concatenate([jnp.full((len(rest), 1), first), jnp.asarray(rest)], axis=1)
            return jnp.sum(jnp.exp(jax.vmap(target.log_density)(x)))

        return jnp.sum(jax.lax.map(line, jnp.asarray(axes[0])))

    # The rings have a kink of relative size exp(-(radius / width)^2 / 2) at the origin, where the
    # rule is only second order: 0.6 of the top times a spacing of 0.03 squared for the thick one.
    tolerance = 1e-3 if name == "thick ring" else 1e-7
    assert abs(jnp.log(total(target) * cell) - target.truth.log_normaliser) < tolerance


def test_numbers_of_the_literature(x64):
    """Values by adaptive quadrature elsewhere, to the digits printed."""
    grid = targets.gaussian_grid().truth
    assert np.allclose(np.sqrt(grid.variance), 4.11906, atol=5e-6, rtol=0)
    assert abs(targets.NealFunnel().truth.variance[1] - 90.017) < 5e-4
    well = targets.DoubleWell().truth
    assert abs(well.mean[0] - 1.187961) < 1e-6
    assert abs(jnp.sqrt(well.variance[0]) - 1.244409) < 1e-6
    # The published share is that beyond 0; ours that beyond the minimum at -0.042, 3.5e-6 more.
    assert abs(well.mode_weights[1] - 0.844307) < 5e-6
    assert abs(targets.ManyWell().truth.log_normaliser - 164.695675) < 1e-6
    symmetric = targets.ManyWell(5, 0, quadratic=8.0, tilt=0.0).truth
    assert abs(symmetric.log_normaliser - 5 * 4.0**2 + 0.5410555) < 1e-7
    assert np.allclose(symmetric.mode_weights, 1 / 32, rtol=1e-9)


def test_normaliser_of_the_untilted_well_is_the_limit_of_the_tilted_one(x64):
    """The Bessel form against the quadrature; the tilt enters at second order, about 1e-16."""
    for quadratic in (0.5, 6.0, 20.0):
        closed = targets.DoubleWell(1.0, quadratic, 0.0).truth.log_normaliser
        assert abs(closed - targets.DoubleWell(1.0, quadratic, 1e-8).truth.log_normaliser) < 1e-12


def test_means_of_the_forty_gaussians():
    """The documented rule by Schrage's factorisation, which needs no wide integers."""
    state, numbers = 123456789, []
    for _ in range(80):
        state = 48271 * (state % 44488) - 3399 * (state // 44488)
        state += (2**31 - 1) if state < 0 else 0
        numbers.append(state)
    means = 80 * np.reshape(numbers, (40, 2)) / (2**31 - 1) - 40
    np.testing.assert_array_equal(targets.forty_gaussians().means, means)


def test_shared_covariance_is_that_of_each_component():
    shared = targets.DenseGaussianMixture(MEANS, COVARIANCE)
    each = targets.DenseGaussianMixture(MEANS, np.stack([COVARIANCE] * 3))
    np.testing.assert_array_equal(shared.covariances, each.covariances)
    np.testing.assert_array_equal(shared.whiteners, each.whiteners)


def test_rotated_gaussian_has_the_eigenvalues_asked_for(x64):
    target = targets.rotated_gaussian(6, 1e4, seed=3, outliers=(1e-2, 1e6))
    expected = np.sort(np.r_[1e-2, 1e6, np.geomspace(1, 1e4, 4)])
    # Eigenvalues are computed to rounding times the largest.
    np.testing.assert_allclose(np.linalg.eigvalsh(target.covariance), expected, atol=1e-9)
    inverse = np.linalg.eigvalsh(target.precision)[::-1]
    np.testing.assert_allclose(inverse, 1 / expected, atol=1e-12)


@pytest.mark.parametrize("name", ["grid", "two moons", "double well", "many well"])
def test_mode_weights_are_shares_of_draws(name, x64):
    """Each draw belongs to the mode in whose orthant or cell it lies."""
    target = target_of(name)
    offsets = draws_of(name)[:, None] - np.asarray(target.modes)[None]
    # In a double well the border is the minimum at 0 up to the tilt, where the density is 1e-4.
    nearest = np.argmin(np.sum(offsets**2, axis=2), axis=1)
    share = np.bincount(nearest, minlength=len(target.modes)) / DRAWS
    weights = np.asarray(target.truth.mode_weights)
    error = np.sqrt(weights * (1 - weights) / DRAWS)
    assert np.all(np.abs(share - weights) < SIGMAS * error + 2e-4)


def gaussian_integral(log_density, dim: int):
    """Log integral and mean of a density whose logarithm is quadratic."""
    origin = jnp.zeros(dim)
    slope = jax.grad(log_density)(origin)
    precision = -jax.hessian(log_density)(origin)
    mean = jnp.linalg.solve(precision, slope)
    log_det = jnp.linalg.slogdet(precision)[1]
    return log_density(origin) + (slope @ mean + dim * jnp.log(2 * jnp.pi) - log_det) / 2, mean


def test_walk_by_integrating_the_density_itself(x64):
    """Evidence and mean path of a short walk, by Laplace's formula at each pair of scales."""
    target = targets.BrownianMotion(SHORT_WALK)
    line = jnp.linspace(-14, 10, 240)
    pairs = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)

    def given(pair):
        return gaussian_integral(lambda path: target.log_density(jnp.r_[pair, path]), 6)

    logs, means = jax.jit(jax.vmap(given))(pairs)
    evidence = logsumexp(logs) + 2 * jnp.log(line[1] - line[0])
    mass = jnp.exp(logs - logsumexp(logs))
    # The priors of the log scales beyond 5 and 7 standard deviations hold less than 1e-6.
    assert abs(evidence - target.truth.log_normaliser) < 1e-5
    assert gap(jnp.r_[mass @ pairs, mass @ means], target.truth.mean) < 1e-5


def test_schools_by_integrating_the_density_itself(x64):
    """The same for the schools; the other form of either model is tied to this one below."""
    target = targets.EightSchoolsNonCentered()
    line = jnp.linspace(-30, 15, 1500)

    def given(log_tau):
        return gaussian_integral(lambda rest: target.log_density(jnp.r_[rest, log_tau]), 9)

    logs, means = jax.jit(jax.vmap(given))(line)
    evidence = logsumexp(logs) + jnp.log(line[1] - line[0])
    mass = jnp.exp(logs - logsumexp(logs))
    # The prior of log tau below -30 holds exp(-30) of the mass, and less beyond 15.
    assert abs(evidence - target.truth.log_normaliser) < 1e-9
    assert gap(jnp.r_[mass @ means, mass @ line], target.truth.mean) < 1e-9


PAIRS = {
    "walk": (targets.BrownianMotion, targets.BrownianMotionNonCentered),
    "schools": (targets.EightSchools, targets.EightSchoolsNonCentered),
}


@pytest.mark.parametrize("name", PAIRS)
def test_both_forms_are_one_law(name, x64):
    """Densities differ by the Jacobian; parameters of corresponding positions agree."""
    centred, other = (form() for form in PAIRS[name])

    def change(x):
        return centred.unconstrain(other.constrain(x))

    def gaps(x):
        jacobian = jnp.linalg.slogdet(jax.jacfwd(change)(x))[1]
        return other.log_density(x) - centred.log_density(change(x)) - jacobian

    x = jnp.asarray(np.asarray(other.truth.sample(jax.random.key(5), 20)))
    # Double rounding of sums of terms up to 1e3.
    assert jnp.max(jnp.abs(jax.jit(jax.vmap(gaps))(x))) < 1e-9


@pytest.mark.parametrize("name", PAIRS)
def test_predictive_laws(name, x64):
    """Pointwise log likelihoods sum to the part of the log density that involves the data."""
    target = PAIRS[name][1]()
    x, y = jnp.asarray(np.asarray(target.truth.sample(jax.random.key(6), 2)))
    shared = target.observations
    (label,) = shared.data
    both = [shared.log_likelihood(target.constrain(point))[label] for point in (x, y)]
    scale = PAIRS[name][1]
    blind = (
        scale(np.full(target.dim - 2, np.nan))
        if name == "walk"
        else scale(targets.eight_schools.EFFECTS, np.full(8, 1e9))
    )
    density = jax.jit(lambda target, x: target.log_density(x))
    without = density(blind, x) - density(blind, y)
    gained = density(target, x) - density(target, y) - without
    # The schools' errors of 1e9 leave a likelihood flat to 1e-15.
    assert abs(jnp.sum(both[0] - both[1]) - gained) < 1e-9
    replicated = shared.predict(jax.random.key(0), target.constrain(x))
    assert replicated[label].shape == shared.data[label].shape == both[0].shape


def test_walk_against_reference_moments(x64):
    path = DATA / "inference_gym"
    if not path.is_dir():
        pytest.skip("no reference moments: shared/data/inference_gym is not beside the checkout")
    (file,) = path.glob("brownian*.npz")
    with np.load(file) as reference:
        moments = targets.BrownianMotion(reference["data.observed_locs"]).moments
        for name, (mean, deviation) in moments.items():
            expected = reference[f"standard_deviation.{name}"]
            # Two quadratures, each converged to about 1e-9.
            assert np.max(np.abs(mean - reference[f"mean.{name}"]) / expected) < 1e-8
            assert np.max(np.abs(deviation / expected - 1)) < 1e-8


def test_schools_against_reference_draws(x64):
    path = DATA / "posteriordb" / "index.json"
    if not path.is_file():
        pytest.skip("no reference draws: shared/data/posteriordb is not beside the checkout")
    index = {entry["name"]: entry for entry in json.loads(path.read_text())}
    reference = index["eight_schools-eight_schools_noncentered"]
    moments = targets.EightSchools().moments
    mean, deviation = (
        np.r_[moments["theta"][i], moments["mu"][i], moments["tau"][i]] for i in (0, 1)
    )
    error = deviation / np.sqrt(reference["reference"]["min_ess_bulk"])
    assert np.all(np.abs(mean - reference["mean"]) < SIGMAS * error)
    # Kurtosis up to about 12 (of tau) makes the relative error of a deviation sqrt(11 / 4 / ESS).
    np.testing.assert_allclose(reference["standard_deviation"], deviation, rtol=SIGMAS * 0.017)


def test_construction_is_lazy_and_truth_is_computed_once():
    from driftbridge.targets import eight_schools, state_space

    for integrate, form in (
        (eight_schools._integrate, targets.EightSchools),
        (state_space._integrate, targets.BrownianMotion),
    ):
        integrate.cache_clear()
        target = form()
        assert integrate.cache_info().misses == 0
        assert target.truth is not None and form().truth is not None
        assert integrate.cache_info().misses == 1


@pytest.mark.parametrize("target", [targets.Ring(), targets.TwoMoons()], ids=["ring", "moons"])
def test_score_is_finite_at_the_centre(target, x64):
    assert jnp.all(jnp.isfinite(target.score(jnp.zeros(2))))


REFUSED = {
    "scale": (lambda: targets.DiagonalGaussian([0.0], [0.0]), "scale must be positive"),
    "mean": (lambda: targets.DiagonalGaussian([0.0, np.nan]), r"mean must be finite.*\(1,\)"),
    "covariance": (lambda: targets.DenseGaussian(np.zeros(2), -np.eye(2)), "eigenvalue is -1"),
    "symmetry": (lambda: targets.DenseGaussian([0.0, 0.0], [[1.0, 0.5], [0, 1]]), "symmetric"),
    "condition": (lambda: targets.rotated_gaussian(3, 0.5), "at least 1; got 0.5"),
    "outliers": (lambda: targets.rotated_gaussian(1, 2.0, outliers=(1.0, 2.0)), "got 1"),
    "weights": (lambda: targets.GaussianMixture(MEANS, 1.0, [1.0]), r"shape \(3,\)"),
    "scales": (lambda: targets.GaussianMixture(MEANS, [1.0, 2.0]), r"scales must have shape"),
    "component": (
        lambda: targets.DenseGaussianMixture(MEANS, np.stack([np.eye(3), np.eye(3), -np.eye(3)])),
        "number 2",
    ),
    "funnel": (lambda: targets.NealFunnel(1), "at least 2; got 1"),
    "wells": (lambda: targets.ManyWell(0, 2), "at least 1"),
    "quadratic": (lambda: targets.DoubleWell(1.0, -1.0), "quadratic must be positive"),
    "errors": (lambda: targets.EightSchools([1.0, 2.0], [1.0]), "one shape"),
    "steps": (lambda: targets.BrownianMotion(np.zeros((2, 2))), "shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()

"""The random walk and the eight schools: truth against the density itself and references."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from driftbridge import targets
from driftbridge.targets import eight_schools, state_space
from tests.zoo import SIGMAS, gap

DATA = Path(__file__).parents[2] / "shared" / "data"

SHORT_WALK = (0.3, 0.5, float("nan"), float("nan"), 1.1, 0.8)


def gaussian_integral(log_density, dim: int):
    """Log integral and mean of a density whose logarithm is quadratic."""
    origin = jnp.zeros(dim)
    slope = jax.grad(log_density)(origin)
    precision = -jax.hessian(log_density)(origin)
    mean = jnp.linalg.solve(precision, slope)
    log_det = jnp.linalg.slogdet(precision)[1]
    return log_density(origin) + (slope @ mean + dim * jnp.log(2 * jnp.pi) - log_det) / 2, mean


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        else scale(eight_schools.EFFECTS, np.full(8, 1e9))
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
    for integrate, form in (
        (eight_schools._integrate, targets.EightSchools),
        (state_space._integrate, targets.BrownianMotion),
    ):
        integrate.cache_clear()
        target = form()
        assert integrate.cache_info().misses == 0
        assert target.truth is not None and form().truth is not None
        assert integrate.cache_info().misses == 1

"""The discretisation bias as a number: coupled chains, and what `estimate_bias` makes of them."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import driftbridge as db
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers import (
    ABOBA,
    BAOAB,
    BUB,
    KLMC,
    LMC,
    MALA,
    OBABO,
    UBU,
    DiagonalMetric,
    PoissonMidpoint,
    Preconditioned,
    RandomizedMidpoint,
    RandomizedMidpointKinetic,
    Splitting,
)
from driftbridge.samplers.base import step_size_of, with_step_size
from driftbridge.samplers.coupled import begin, check_coupled, halvings, nested_noise
from driftbridge.samplers.noise import coarse_uniform
from driftbridge.targets import DiagonalGaussian, constraints
from driftbridge.targets.base import Target
from tests.laws.closed_forms import CLOSED_FORMS
from tests.laws.linear_probe import split_noise

STEP = 0.3

COUPLED = {
    "LMC": LMC(STEP),
    "RandomizedMidpoint": RandomizedMidpoint(STEP),
    "KLMC": KLMC(STEP, 1.5, 2.0),
    "RandomizedMidpointKinetic": RandomizedMidpointKinetic(STEP, 1.5, 2.0),
    "OBABO": OBABO(STEP, 1.5, 2.0),
    "BAOAB": BAOAB(STEP, 1.5, 2.0),
    "ABOBA": ABOBA(STEP, 1.5, 2.0),
    "UBU": UBU(STEP, 1.5, 2.0),
    "BUB": BUB(STEP, 1.5, 2.0),
    "BUBUB": Splitting("BUBUB", STEP, 1.5, 2.0),
    "BUBUBUB": Splitting("BUBUBUB", STEP, 1.5, 2.0),
    "BOAOB": Splitting("BOAOB", STEP, 1.5, 2.0),
    "Preconditioned": Preconditioned(UBU(STEP, 1.5, 2.0), DiagonalMetric(jnp.ones(1) * 3)),
}
# Methods whose noise is the path of the whole free flow: without force every step is exact.
EXACT = [
    "LMC", "RandomizedMidpoint", "KLMC", "RandomizedMidpointKinetic", "UBU", "BUB", "BUBUB",
    "BUBUBUB", "Preconditioned",
]  # fmt: skip


class Flat(Target):
    """No force."""

    dim: int = 1

    def log_density(self, x):
        return 0 * jnp.sum(x)


def jacobian_of_double_step(sampler, first, second):
    """Derivative of the normals of the double step by those of the two steps."""
    given, join = split_noise((first, second), 1)
    return jax.jacobian(lambda z: split_noise(sampler.coarsen(*join(z)), 1)[0])(given)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", COUPLED)
def test_double_steps_have_the_law_of_steps(name):
    sampler = COUPLED[name]
    for seed in range(4):  # the random times are early and late
        first, second = (sampler.noise(jax.random.key(2 * seed + i), jnp.zeros(1)) for i in (0, 1))
        jacobian = jacobian_of_double_step(sampler, first, second)
        # A linear map with orthonormal rows makes independent standard normals of such. Round-off
        # of the free flow's coefficients, which cancel to about 1e-12 of theirs.
        np.testing.assert_allclose(jacobian @ jacobian.T, np.eye(len(jacobian)), atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EXACT)
def test_without_force_a_double_step_is_two_steps(name):
    sampler, target = COUPLED[name], Flat()
    for seed in range(4):
        noises = [sampler.noise(jax.random.key(2 * seed + i), jnp.zeros(1)) for i in (0, 1)]
        state = begin(target, sampler, jnp.asarray([0.4]), jnp.asarray([-0.7]))
        two = state
        for noise in noises:
            two = sampler.step(target, two, noise)[0]
        double = with_step_size(sampler, jnp.asarray(2 * STEP))
        one = double.step(target, state, sampler.coarsen(*noises))[0]
        np.testing.assert_allclose(one.position, two.position, atol=1e-12)
        if "velocity" in one._fields:
            np.testing.assert_allclose(one.velocity, two.velocity, atol=1e-12)


@pytest.mark.slow
def test_a_random_time_of_a_double_step_is_uniform():
    first, second = jax.random.uniform(jax.random.key(0), (2, 20_000))
    is_early, uniform = jax.vmap(coarse_uniform)(first, second)
    # Kolmogorov's statistic passes 1.95 / sqrt(n) once in a thousand.
    assert kstest(uniform, "uniform").statistic < 1.95 / np.sqrt(20_000)
    assert kstest(first[is_early], "uniform").statistic < 1.95 / np.sqrt(is_early.sum())
    assert kstest(second[is_early], "uniform").statistic < 1.95 / np.sqrt(is_early.sum())


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (PoissonMidpoint(0.1), "PoissonMidpoint has no coarsen"),
        (Splitting("OBAOABO"), "share the noise"),
        (Splitting("UUBU"), "share the noise"),
    ],
)
def test_methods_without_one_path_say_so(sampler, message):
    with pytest.raises(TypeError, match=message):
        check_coupled(sampler)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUPLED)
def test_noise_at_three_steps_keeps_its_dtype(name, x64):
    samplers = halvings(cast_floating(COUPLED[name], jnp.float32), 3)
    like = jnp.zeros(2, jnp.float32)
    noises = nested_noise(samplers, jax.random.key(0), jnp.int32(3), like)
    form = jax.tree.leaves(jax.eval_shape(samplers[0].noise, jax.random.key(0), like))
    for level, noise in enumerate(noises):
        for leaf, one in zip(jax.tree.leaves(noise), form, strict=True):
            assert (leaf.shape, leaf.dtype) == ((2**level, *one.shape), one.dtype)


# A step of each method at which its bias is some per cent, and the places of its closed form.
FRICTION, SCALE = 2.0, np.array([1.0, 0.7])
BIASED = {
    "LMC": LMC(0.2),
    "RandomizedMidpoint": RandomizedMidpoint(0.4),
    "KLMC": KLMC(0.3, FRICTION),
    "RandomizedMidpointKinetic": RandomizedMidpointKinetic(0.8, FRICTION),
    "OBABO": OBABO(0.7, FRICTION),
    "BAOAB": BAOAB(0.5, FRICTION),
    "UBU": UBU(0.8, FRICTION),
    "BUB": BUB(0.8, FRICTION),
}
# Methods whose bias and pathwise error are of one order: the bound on W2 is then a fixed multiple
# of W2, whatever the step.
TIGHT = ("LMC", "KLMC", "UBU", "BUB")


def target():
    return DiagonalGaussian(np.array([0.5, -1.0]), SCALE)


def draw(sampler, **options):
    options = {"num_samples": 500, "num_chains": 32, "num_warmup": 0} | options
    return db.sample(target(), sampler, adapt=None, key=1, **options)


@lru_cache
def estimated(name):
    return draw(BIASED[name]).bias(num_steps=1000)


def exact_variance(name):
    """Of every coordinate at the step of `BIASED`."""
    h = float(step_size_of(BIASED[name]))
    return np.array([CLOSED_FORMS[name](h, FRICTION, 1.0, s**-2)[0] * s**2 for s in SCALE])


@pytest.mark.slow
@pytest.mark.parametrize("name", BIASED)
def test_the_bias_of_a_gaussian_is_as_in_closed_form(name):
    found, variance = estimated(name), exact_variance(name)
    # Five standard errors from 32 chains: a chance of 2e-5 for each of six numbers.
    for moment, exact in (
        (found.mean, np.zeros(2)),
        (found.variance, variance - SCALE**2),
        (found.sd, np.sqrt(variance) - SCALE),
    ):
        assert np.all(np.abs(moment.estimate - exact) < 5 * moment.error)
    # The errors are small enough to say something: those of 32 chains of 800 steps, measured, are
    # below 0.02 of the variance (the largest is that of BAOAB), and every bias but BAOAB's is seen.
    assert np.all(found.variance.error < 0.03 * SCALE**2)
    seen = np.abs(found.variance.estimate) > found.threshold * found.variance.error
    assert seen.any() == (name != "BAOAB")
    assert found.num_refused == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", BIASED)
def test_the_bound_on_the_distance_holds(name):
    found = estimated(name)
    moved = np.sqrt(exact_variance(name)) - SCALE
    for distance, scale in ((found.w2, 1.0), (found.w2_scaled, SCALE)):
        # W2 between Gaussians with independent coordinates. The scales are those of the draws,
        # within a tenth of the target's: bias and Monte Carlo error together.
        exact = np.sqrt(np.sum((moved / scale) ** 2))
        assert distance.bound - 5 * distance.error > 0.9 * exact
        # The factor, measured at these steps: 2.5, 1.5, 1.5 and 2.0 in the order of TIGHT.
        assert name not in TIGHT or distance.bound < 3 * exact
        assert distance.second < distance.first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UBU", "KLMC"])
def test_errors_are_true_over_many_seeds(name):
    draws, exact = draw(BIASED[name], num_samples=200), exact_variance(name) - SCALE**2
    found = [draws.bias(num_steps=1000, key=key).variance for key in range(16)]
    scores = np.stack([(moment.estimate - exact) / moment.error for moment in found])
    # The root mean square of 32 scores repeats within 0.125, half correlated ones within 0.18. The
    # error of the extrapolation is the same in all runs: scores may be narrower, to 0.6.
    assert 0.5 < np.sqrt(np.mean(scores**2)) < 1.6


@pytest.mark.slow
def test_the_result_says_what_is_seen():
    found = estimated("UBU")
    table = found.summary()
    assert list(table.index) == list(found.names) == ["x[0]", "x[1]"]
    np.testing.assert_array_equal(table["variance_bias"], found.variance.estimate)
    mean, sd, distance = found.sentences
    assert mean.startswith("bias of the mean not distinguishable from 0")
    assert sd.startswith("bias of the sd, largest: x[")
    assert f"{found.w2.bound:.2g}" in distance
    # Of 32 chains of 1000 steps one takes 1, 2 and 4 gradients a step.
    assert (found.num_chains, found.num_steps, found.num_gradients) == (32, 1000, 7 * 32_000)
    assert found.order == 2


def test_few_chains_start_from_more_draws_and_the_length_follows_the_run():
    draws = draw(BIASED["UBU"], num_chains=2, num_samples=200)
    found = draws.bias(key=jax.random.key(5))
    assert found.num_chains == 32
    least = min(draws.statistics[name].min() for name in ("ess_bulk", "ess_tail"))
    assert 25 * 400 / least <= found.num_steps <= 400 + 25
    again = draws.bias(key=jax.random.key(5))
    assert repr(again) == repr(found)
    assert repr(draws.bias(key=6)) != repr(found)


@pytest.mark.slow
def test_a_step_beyond_the_extrapolation_is_told():
    # LMC at 1.9 / λ of one coordinate is stable there, with a variance of 20; at half the step it
    # has 1.9, at a quarter 1.3: not halved at all.
    draws = draw(LMC(0.93), num_samples=300)
    found = draws.bias(num_steps=500)
    assert any("do not shrink as h^1" in sentence for sentence in found.sentences)


@pytest.mark.slow
def test_float32_draws_stay_so_where_x64_is_on():
    draws = draw(BIASED["UBU"], num_samples=100)
    with jax.enable_x64(True):
        found = draws.bias(num_steps=50)
    assert draws.positions.dtype == np.float32
    # The same programs on the same numbers; NumPy's part is in float64 either way.
    assert repr(found) == repr(draws.bias(num_steps=50))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_float64_draws_and_parameters_of_other_shapes():
    def log_density(p):
        return -(p["a"] ** 2) / 2 + jnp.sum(jnp.log(p["b"]) - p["b"])

    like = {"a": jnp.zeros(()), "b": jnp.ones((1, 2))}
    positive = db.from_density(log_density, like, constraints={"b": constraints.positive})
    warmup = db.samplers.Warmup()
    draws = db.sample(positive, UBU(), adapt=warmup, num_warmup=300, num_samples=100, key=0)
    found = draws.bias(num_steps=50)
    assert found.names == draws.names
    # The centre of the sums is that of the draws: the chains' own means are near it.
    assert np.all(np.isfinite(found.summary()))
    assert found.step_size == pytest.approx(float(step_size_of(draws.tuned)))


@pytest.mark.slow
def test_draws_without_a_bias_say_so():
    with pytest.raises(TypeError, match="MALA is adjusted"):
        draw(MALA(0.5), num_samples=10).bias()
    with pytest.raises(TypeError, match="PoissonMidpoint has no coarsen"):
        draw(PoissonMidpoint(0.1), num_samples=10).bias()
    with pytest.raises(ValueError, match="needs 8 coupled chains"):
        draw(UBU(0.5), num_samples=2, num_chains=2).bias()
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        draw(UBU(0.5), num_samples=10).bias(num_steps=0)
    with pytest.raises(ValueError, match="reduced, not kept"):
        draw(UBU(0.5), num_samples=10, keep=db.samplers.Mean()).bias()
    known = draw(UBU(0.5), num_samples=10)
    unknown = db.Draws(known.target, known.positions, known.stats, tuned=None)
    with pytest.raises(ValueError, match="do not know their sampler"):
        unknown.bias()


@pytest.mark.parametrize(
    ("sampler", "cure"), [(UBU(0.5), "draws.bias()"), (PoissonMidpoint(0.1), "smaller step size")]
)
def test_the_finding_points_to_what_can_be_done(sampler, cure):
    (found,) = (f for f in draw(sampler, num_samples=10).warnings if f.name == "bias")
    assert cure in found.message

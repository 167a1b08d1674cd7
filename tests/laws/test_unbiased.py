"""The multilevel estimator on UBU: no bias, errors that are true, variances that fall as 16^-l."""

from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers import DiagonalMetric, UnbiasedUBU
from driftbridge.samplers.unbiased import replicate
from driftbridge.targets import DiagonalGaussian
from tests.laws.closed_forms import CLOSED_FORMS
from tests.laws.targets import LogCosh, Quadratic


def moments(x):
    """First and second moments."""
    return jnp.concatenate([x, x**2])


def second_moment_of_log_cosh():
    """By the trapezoidal rule, which is exact to round-off for a smooth density that vanishes."""
    x = np.linspace(-12, 12, 4001)
    weight = np.exp(-(x**2) / 2 - 2 * np.logaddexp(x, -x))
    return np.sum(x**2 * weight) / np.sum(weight)


# Target, step size, and what is true. UBU at these steps has a fifth too little second moment.
CASES = {
    "Gaussian": (Quadratic(1.0), 1.2, np.array([0.0, 1.0])),
    "log cosh": (LogCosh(1), 0.8, np.array([0.0, second_moment_of_log_cosh()])),
}
START = np.array([1.0], np.float32)


def method(name, **settings):
    return UnbiasedUBU(CASES[name][1], 2.0, **({"num_burn_in": 6, "num_kept": 20} | settings))


@lru_cache
def estimates(name):
    """Estimates with 64 seeds."""
    target = CASES[name][0]
    return [
        method(name).estimate(target, moments, positions=START, num_replicates=1024, key=key)
        for key in range(64)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_estimate_is_right_where_plain_ubu_is_not(name):
    found, truth = estimates(name)[0], CASES[name][2]
    # Five standard errors of a sum of averages over 1024 and fewer replicates.
    assert np.all(np.abs(found.estimate - truth) < 5 * found.standard_error)
    # Level 0 is UBU alone: its bias is beyond ten of the same standard errors.
    plain = found.levels.mean[0]
    assert abs(plain[1] - truth[1]) > 10 * found.standard_error[1]
    assert found.share_above < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_neither_bias_nor_error_is_seen_over_many_seeds(name):
    found, truth = estimates(name), CASES[name][2]
    z = np.stack([(e.estimate - truth) / e.standard_error for e in found])
    # Means of 64 standard scores are 1/8 wide: five of that; a bias of 0.6 standard errors is
    # seen, a thirtieth of that of plain UBU. The root mean square of 64 scores repeats
    # within 9 %: four of that.
    assert np.all(np.abs(z.mean(0)) < 5 / 8)
    assert np.all(np.abs(np.sqrt(np.mean(z**2, 0)) - 1) < 0.36)


@pytest.mark.slow
def test_level_0_is_plain_ubu():
    levels = [e.levels for e in estimates("Gaussian")]
    mean = np.mean([level.mean[0] for level in levels], 0)
    error = np.sqrt(np.sum([level.variance[0] / level.count[0] for level in levels], 0)) / 64
    exact = CLOSED_FORMS["UBU"](1.2, 2.0, 1.0, 1.0)[0]
    # Six steps from 1 leave a second moment of the chain off by exp(-12) or so, below the error.
    assert np.all(np.abs(mean - [0, exact]) < 5 * error + 1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_variances_fall_by_sixteen_from_level_to_level(name, record_property):
    keys = jax.random.split(jax.random.key(3), 512)
    start, longer = jnp.ones((1, 1)), method(name, num_burn_in=10)
    variances = [
        np.var(replicate(longer, CASES[name][0], moments, start, level, keys), 0)
        for level in range(1, 6)
    ]
    slopes = np.polyfit(np.arange(5), np.log2(variances), 1)[0]
    record_property("slopes", slopes.tolist())
    # Strong order 2: variances fall as h^4. Variances of 512 replicates repeat within 10 %,
    # which is 0.14 in log2 and 0.05 in a slope over five levels. The rest is the approach to the
    # limit. Measured: -3.93, -3.93 (Gaussian), -3.95, -3.97.
    assert np.all(np.abs(slopes + 4) < 0.35)


@pytest.mark.slow
def test_arguments_that_cannot_work_are_named():
    with pytest.raises(ValueError, match="num_kept must be at least 1; got 0"):
        UnbiasedUBU(num_kept=0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        UnbiasedUBU(-1.0)
    estimate = UnbiasedUBU().estimate
    with pytest.raises(ValueError, match=r"\(1,\) or \(n, 1\); got \(3,\)"):
        estimate(Quadratic(1.0), moments, positions=np.zeros(3))
    with pytest.raises(ValueError, match="positions must be finite"):
        estimate(Quadratic(1.0), moments, positions=np.array([np.nan]))
    with pytest.raises(ValueError, match="at least 16; got 8"):
        estimate(Quadratic(1.0), moments, positions=START, num_replicates=8)
    with pytest.raises(ValueError, match=r"of level 0 \(steps of 40\) are not finite"):
        UnbiasedUBU(40.0, num_burn_in=200).estimate(
            Quadratic(1.0), moments, positions=START, num_replicates=16
        )


def test_gradients_of_a_level():
    # Level 0: 3 + 5 steps. Level 2: the finer chain 4 (9 + 5), the coarser 2 (6 + 5).
    counted = UnbiasedUBU(num_burn_in=3, num_kept=5)
    assert [counted.num_gradients(level) for level in (0, 2)] == [8, 56 + 22]


@pytest.mark.slow
def test_float32_positions_stay_so_where_x64_is_on_and_a_metric_is_used():
    scale = np.array([1.0, 30.0], np.float32)
    target = DiagonalGaussian(np.zeros(2), scale)
    whitened = UnbiasedUBU(0.8, num_burn_in=6, metric=DiagonalMetric(scale))
    with jax.enable_x64(True):
        found = whitened.estimate(
            target, moments, positions=np.zeros((3, 2), np.float32), num_replicates=256
        )
    truth = np.concatenate([np.zeros(2), scale**2])
    assert np.all(np.abs(found.estimate - truth) < 5 * found.standard_error)
    # In the metric both coordinates are one: without it the second would not move in the time.
    assert np.all(found.standard_error[2:] < 0.1 * truth[2:])
    forms = cast_floating((whitened, target), jnp.float32)
    with jax.enable_x64(True):
        keys, positions = jax.random.split(jax.random.key(0), 4), jnp.zeros((3, 2), jnp.float32)
        for level in (0, 1):
            form = eqx.filter_eval_shape(replicate, *forms, moments, positions, level, keys)
            assert (form.shape, form.dtype) == ((4, 4), jnp.float32)

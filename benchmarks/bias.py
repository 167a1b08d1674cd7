"""The bias of the variance as `draws.bias()` estimates it, beside that of a long run.

    python -m benchmarks.bias [--small] [--save] [--strict]

Two targets of one dimension with known laws: the standard normal, and `x^2 / 2 + 2 log cosh x`,
whose curvature is between 1 and 3. The long run has 4096 chains at the same step; its variance is
compared with the exact one, and its sorted draws with exact quantiles, which gives W2 with a floor
of about 0.002. The estimate sees neither: 32 chains, 1000 steps of `h` and their halves. All biases
are in per cent of the exact variance. The bars: the two agree within five standard errors, and the
bound on W2 is not below it.
"""

import time
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import driftbridge as db
from benchmarks.timing import machine, options, record, verdict
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers import (
    ABOBA,
    BAOAB,
    BUB,
    KLMC,
    LMC,
    OBABO,
    UBU,
    RandomizedMidpoint,
    RandomizedMidpointKinetic,
    Sampler,
    run,
)
from driftbridge.samplers.base import step_size_of

FLOOR = 0.004


class Convex(db.Target):
    """`U(x) = x^2 / 2 + c log cosh x`."""

    c: float
    dim: int = eqx.field(static=True, default=1)

    def log_density(self, x):
        return -jnp.sum(x**2 / 2 + self.c * jnp.logaddexp(x, -x))

    def score(self, x):
        return -x - self.c * jnp.tanh(x)


class Law(NamedTuple):
    """Variance and distribution function of a `Convex` density, by the trapezoidal rule."""

    variance: float
    x: np.ndarray
    below: np.ndarray


def law(target: Convex) -> Law:
    x = np.linspace(-10, 10, 40_001)
    weight = np.exp(-(x**2) / 2 - target.c * np.logaddexp(x, -x))
    weight /= weight.sum()
    return Law(float(np.sum(weight * x**2)), x, np.cumsum(weight) - weight / 2)


METHODS: tuple[Sampler, ...] = (
    LMC(0.1),
    RandomizedMidpoint(0.3),
    KLMC(0.2, 2.0),
    RandomizedMidpointKinetic(0.8, 2.0),
    OBABO(0.5, 2.0),
    BAOAB(0.8, 2.0),
    ABOBA(0.8, 2.0),
    UBU(0.8, 2.0),
    UBU(0.4, 2.0),
    BUB(0.8, 2.0),
)


@partial(jax.jit, static_argnames="num_samples")
def long_positions(target, sampler, key, num_samples):
    """Draws of 4096 chains, every fifth, after as many steps again."""
    start = jax.random.normal(jax.random.fold_in(key, 1), (4096, 1))
    record, _ = run(target, sampler, start, key, num_samples=2 * num_samples, thin=5)
    return record.position[num_samples:, :, 0]


def long_run(target, sampler, exact: Law, num_samples: int) -> tuple[float, float, float]:
    """Bias of the variance (the mean is zero by symmetry), its error, and W2."""
    numbers = cast_floating((target, sampler), jnp.float32)
    x = np.asarray(long_positions(*numbers, jax.random.key(8), num_samples), np.float64)
    squares = np.square(x).mean(0)
    error = squares.std(ddof=1) / np.sqrt(squares.size)
    sorted_x = np.sort(x, axis=None)
    levels = (np.arange(x.size) + 0.5) / x.size
    distance = np.sqrt(np.mean(np.square(sorted_x - np.interp(levels, exact.below, exact.x))))
    return float(squares.mean() - exact.variance), float(error), float(distance)


def compare(name: str, target: Convex, sampler: Sampler, small: bool) -> dict:
    """One row."""
    exact = law(target)
    bias, error, distance = long_run(target, sampler, exact, 4 if small else 60)
    chains = {"num_chains": 32, "num_warmup": 0, "num_samples": 100 if small else 300}
    draws = db.sample(target, sampler, adapt=None, init=np.zeros((32, 1)), **chains)
    begin = time.perf_counter()
    found = draws.bias(num_steps=100 if small else 1000)
    seconds = time.perf_counter() - begin
    estimate, stated = float(found.variance.estimate[0]), float(found.variance.error[0])
    off = abs(estimate - bias) / np.hypot(stated, error)
    return {
        "target": name,
        "method": type(sampler).__name__,
        "step_size": float(np.asarray(step_size_of(sampler))),
        "long_run": 100 * bias / exact.variance,
        "long_run_error": 100 * error / exact.variance,
        "estimate": 100 * estimate / exact.variance,
        "error": 100 * stated / exact.variance,
        "off": float(off),
        "w2": distance,
        "bound": found.w2.bound,
        "bound_error": found.w2.error,
        "met": bool(off < 5 and found.w2.bound + 5 * found.w2.error > distance - FLOOR),
        "seconds": seconds,
    }


NAMES = "target | method | h | long run, % | estimate, % | apart, s.e. | W2, long run | bound | | s"
HEAD = f"| {NAMES} |\n" + "| --- " * 10 + "|"


def line(row: dict) -> str:
    """One row as Markdown."""
    return (
        f"| {row['target']} | {row['method']} | {row['step_size']:g} "
        f"| {row['long_run']:+.2f} +- {row['long_run_error']:.2f} "
        f"| {row['estimate']:+.2f} +- {row['error']:.2f} | {row['off']:.1f} "
        f"| {row['w2']:.3f} | {row['bound']:.3f} +- {row['bound_error']:.3f} "
        f"| {verdict(row['met'])} | {row['seconds']:.1f} |"
    )


def main() -> int:
    chosen = options(__doc__)
    print(machine(), HEAD, sep="\n\n")
    rows = []
    for name, target in (("normal", Convex(0.0)), ("log cosh", Convex(2.0))):
        for sampler in METHODS[-2:] if chosen.small else METHODS:
            rows.append(compare(name, target, sampler, chosen.small))
            print(line(rows[-1]), flush=True)
    return record("bias", rows, all(row["met"] for row in rows), chosen)


if __name__ == "__main__":
    raise SystemExit(main())

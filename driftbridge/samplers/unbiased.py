"""Expectations without any bias, by a randomised multilevel estimator over couplings of UBU."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import as_key, chain_keys, streams
from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.base import Sampler, State, with_step_size
from driftbridge.samplers.coupled import begin
from driftbridge.samplers.metric import Metric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.samplers.splitting import UBU
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive

# Replicates fall by this factor from level to level: the variance of a difference falls by 2^-4,
# its cost grows by 2, and sqrt(2^-4 / 2) makes the product of variance and cost least.
RATE = 2.0**-2.5
# Fewest replicates of a level whose number is fixed; as many are spread over all levels above.
FEWEST = 16
# Replicates of random levels that run together.
BATCH = 4


# A value of the test function, or several behind leading axes.
Event = Float[np.ndarray, "*event"]
Rows = Float[np.ndarray, "n *event"]
Values = Float[Array, "n *event"]


class Levels(NamedTuple):
    """What each level gave; arrays have a leading axis of the levels of fixed number.

    Level 0 is UBU at the step size `h`, level `l` the difference between `h / 2^l` and twice that.

    - `count`: replicates.
    - `mean`, `variance`: of one replicate; the variances fall as `16^-l` where the coupling is
      as close as the method's order.
    - `num_above`, `mean_above`, `variance_above`: the same of the weighted differences at random
      levels above the last.
    """

    count: Int[np.ndarray, " levels"]
    mean: Rows
    variance: Rows
    num_above: int
    mean_above: Event
    variance_above: Event


class UnbiasedEstimate(NamedTuple):
    """An estimate, its standard error (both shaped as the test function), and how it came about.

    - `share_above`: the largest share that the random levels have in a squared standard error.
      Where it is above a half, the error is not well known: take more replicates, a smaller step
      size or a longer burn-in.
    - `num_gradients`: in all, with those of replicates that only fill a batch.
    - `levels`: see `Levels`.
    """

    estimate: Event
    standard_error: Event
    share_above: float
    num_gradients: int
    levels: Levels


class UnbiasedUBU(eqx.Module):
    """The multilevel estimator of expectations over coupled UBU chains (UBUBU).

    With `F_l` the mean of a function `f` over `num_kept` times of a chain of step `h / 2^l` that
    has run for `(l + 1) num_burn_in` steps of `h`,

    `E f = E F_0 + sum_{l >= 1} E (F_l - F_{l-1})`.

    The two chains of a difference follow one Brownian path, the finer one for `num_burn_in` steps
    longer; its variance falls as `16^-l`. Levels have `num_replicates 2^(-5l/2)` independent
    replicates while these are many. Above, the level `l` of each of 16 differences is random
    and the difference is divided by the probability of its level. The burn-in grows with the level,
    so neither step nor burn-in leaves a bias; there is no Metropolis step, and the expected number
    of gradients is finite.

    Two chains with common noise must approach each other for the variance to be finite, as they do
    where the log density is strongly concave; the variances of the levels show whether they do.

    **Arguments:**

    - `step_size`: `h > 0`, time; UBU is to be stable there.
    - `friction`, `u`: as in `Kinetic`.
    - `num_burn_in`: `>= 1`, steps of `h` for each level: chains with common noise should be four
      times closer after them.
    - `num_kept`: `>= 1`, steps of `h` over which the function is averaged.
    - `metric`: coordinates of the dynamics, or None for those of the target.

    Chada, Leimkuhler, Paulin and Whalley (2023), arXiv 2311.05025; Rhee and Glynn (2015),
    Operations Research 63(5), for random levels.
    """

    step_size: Float[Array, ""] | float = 0.5
    friction: Float[Array, ""] | float = 2.0
    u: Float[Array, ""] | float = 1.0
    num_burn_in: int = eqx.field(static=True, default=20)
    num_kept: int = eqx.field(static=True, default=20)
    metric: Metric | None = None

    def __check_init__(self):
        check_positive(step_size=self.step_size, friction=self.friction, u=self.u)
        for name in ("num_burn_in", "num_kept"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")

    @property
    def sampler(self) -> Sampler:
        """The kernel of level 0."""
        inner = UBU(self.step_size, self.friction, self.u)
        return inner if self.metric is None else Preconditioned(inner, self.metric)

    def estimate(
        self,
        target: Target,
        test_function: Callable[[Float[Array, " dim"]], Float[Array, "*event"]],
        *,
        positions: Float[ArrayLike, "*n dim"],
        num_replicates: int = 256,
        key: int | Key[Array, ""] = 0,
    ) -> UnbiasedEstimate:
        """Estimate the expectation of a function of the flat unconstrained position.

        **Arguments:**

        - `test_function`: of one position `(dim,)`, an array; define it once, since another
          function compiles again.
        - `positions`: where chains start, `(n, dim)`, each at a random one (draws of a biased
          sampler, say), or `(dim,)`. They do not enter the expectation.
        - `num_replicates`: `>= 16`, of level 0.
        - `key`: a seed or a typed key.

        **Returns:** an `UnbiasedEstimate`.

        **Raises:** `ValueError` for positions of another shape, too few replicates, and where a
        chain is not finite.
        """
        positions = positions_of(target, positions)
        if num_replicates < FEWEST:
            raise ValueError(f"num_replicates must be at least {FEWEST}; got {num_replicates}.")
        target, method = cast_floating((target, self), positions.dtype)
        keys = streams(as_key(key))
        fixed = fixed_counts(num_replicates)
        above = np.bincount(levels_above(keys.start, len(fixed)))[len(fixed) :].tolist()
        counts = {level: count for level, count in enumerate([*fixed, *above]) if count}
        runs, spent = {}, 0
        for level, count in counts.items():
            # One program serves all random levels.
            size = count if level < len(fixed) else BATCH
            batches = -(-count // size)
            level_keys = chain_keys(fold_in(keys.steps, level), np.arange(batches * size))
            run = partial(replicate, method, target, test_function, positions, level)
            values = [run(part) for part in jnp.split(level_keys, batches)]
            runs[level] = np.concatenate([np.asarray(v, np.float64) for v in values])[:count]
            check_replicates(runs[level], level, self.step_size)
            spent += batches * size * self.num_gradients(level)
        return combine(runs, len(fixed), spent)

    def num_gradients(self, level: int) -> int:
        """Gradients of one replicate of a level."""
        fine = 2**level * ((level + 1) * self.num_burn_in + self.num_kept)
        coarse = 2**level * (level * self.num_burn_in + self.num_kept) // 2
        return fine + coarse * (level > 0)


def positions_of(target: Target, positions: Any) -> Float[Array, "n dim"]:
    """Starting positions `(n, dim)`, checked."""
    array = jnp.asarray(positions)
    array = array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    if array.shape[-1:] != (target.dim,) or array.ndim > 2 or not array.size:
        raise ValueError(
            f"positions must have shape ({target.dim},) or (n, {target.dim}); got {array.shape}."
        )
    if not np.all(np.isfinite(array)):
        raise ValueError("positions must be finite; leave out those that are not.")
    return jnp.reshape(array, (-1, target.dim))


def fixed_counts(num_replicates: int) -> list[int]:
    """Replicates of the levels that have a fixed number of them, powers of two above level 0."""
    counts = [num_replicates]
    while (wanted := num_replicates * RATE ** len(counts)) >= FEWEST:
        counts.append(1 << math.ceil(math.log2(wanted)))
    return counts


def levels_above(key: Key[Array, ""], first: int) -> Int[np.ndarray, " above"]:
    """Random levels from `first` on, each `RATE` times as likely as the one below."""
    uniforms = np.asarray(jax.random.uniform(key, (FEWEST,), jnp.float32), np.float64)
    return first + np.floor(np.log1p(-uniforms) / math.log(RATE)).astype(int)


def replicate(
    method: UnbiasedUBU,
    target: Target,
    test_function: Callable,
    positions: Float[Array, "starts dim"],
    level: int,
    keys: Key[Array, " n"],
) -> Values:
    """Independent replicates of `F_0`, or of `F_l - F_{l-1}`."""
    if level == 0:
        return means(method, target, test_function, positions, keys)
    return differences(method, target, test_function, positions, keys, jnp.int32(level))


@eqx.filter_jit
def means(method, target, test_function, positions, keys) -> Values:
    """Means of the function along chains of level 0."""
    sampler = method.sampler

    def one(key):
        like, keys = positions[0], streams(key)

        def step(i, state):
            return sampler.step(target, state, sampler.noise(fold_in(keys.steps, i), like))[0]

        def keep(i, carry):
            state = step(i, carry[0])
            return state, carry[1] + test_function(state.position)

        (state,) = start(target, (sampler,), positions, keys.start)
        burn_in, end = method.num_burn_in, method.num_burn_in + method.num_kept
        state = lax.fori_loop(0, burn_in, step, state)
        return lax.fori_loop(burn_in, end, keep, (state, zero(test_function, like)))[1]

    return jax.vmap(one)(keys) / method.num_kept


@eqx.filter_jit
def differences(method, target, test_function, positions, keys, level) -> Values:
    """Differences of the means along the coupled chains of a level and the one below."""
    whole, base = method.sampler, method.num_burn_in
    pairs = 2 ** (level - 1)  # steps of the coarser chain in one of level 0
    coarse = with_step_size(whole, method.step_size / pairs)
    fine = with_step_size(whole, method.step_size / (2 * pairs))
    burnt = (level + 1) * base

    def one(key):
        like, keys = positions[0], streams(key)

        def pair(i, states, is_coupled):
            noises = [fine.noise(fold_in(keys.steps, 2 * i + j), like) for j in (0, 1)]
            first, second = states
            for noise in noises:
                first = fine.step(target, first, noise)[0]
            second = lax.cond(
                is_coupled,
                lambda: coarse.step(target, second, fine.coarsen(*noises))[0],
                lambda: second,
            )
            return first, second

        def advance(i, carry):
            states, total = carry
            states = lax.fori_loop(
                i * pairs, (i + 1) * pairs, lambda k, states: pair(k, states, i >= base), states
            )
            x, y = (test_function(state.position) for state in states)
            return states, total + jnp.where(i >= burnt, x - y, 0)

        states = start(target, (fine, coarse), positions, keys.start)
        carry = states, zero(test_function, like)
        return lax.fori_loop(0, burnt + method.num_kept, advance, carry)[1]

    return jax.vmap(one)(keys) / method.num_kept


def start(target: Target, samplers: tuple[Sampler, ...], positions, key) -> tuple[State, ...]:
    """States of all samplers at one random position, with one velocity."""
    which, normal = jax.random.split(key)
    position = positions[jax.random.randint(which, (), 0, len(positions))]
    normal = jax.random.normal(normal, position.shape, position.dtype)
    return tuple(begin(target, sampler, position, normal) for sampler in samplers)


def zero(test_function: Callable, like: Float[Array, " dim"]) -> Float[Array, "*event"]:
    """Zeros of the shape and dtype of the function."""
    form = jax.eval_shape(test_function, like)
    return jnp.zeros(form.shape, form.dtype)


def check_replicates(values: np.ndarray, level: int, step_size: Any) -> None:
    """Raise `ValueError` where a replicate is not finite."""
    bad = int(np.sum(~np.isfinite(values.reshape(len(values), -1)).all(1)))
    if bad:
        h = float(np.asarray(step_size)) / 2**level
        raise ValueError(
            f"{bad} of {len(values)} replicates of level {level} (steps of {h:.3g}) are not "
            "finite. Use a smaller step_size, and check the density and the test function for NaN."
        )


def combine(runs: dict[int, np.ndarray], fixed: int, num_gradients: int) -> UnbiasedEstimate:
    """The sum over levels; those above the fixed ones have the weights of random levels."""
    above = [
        run / ((1 - RATE) * RATE ** (level - fixed))
        for level, run in runs.items()
        if level >= fixed
    ]
    groups = [*(runs[level] for level in range(fixed)), np.concatenate(above)]
    mean = np.stack([group.mean(0) for group in groups])
    variance = np.stack([group.var(0, ddof=1) for group in groups])
    count = np.array([len(group) for group in groups])
    squares = variance / count.reshape(-1, *[1] * (variance.ndim - 1))
    total = squares.sum(0)
    with np.errstate(invalid="ignore"):
        share = np.max(np.where(total > 0, squares[-1] / total, 0))
    levels = Levels(count[:-1], mean[:-1], variance[:-1], FEWEST, mean[-1], variance[-1])
    return UnbiasedEstimate(mean.sum(0), np.sqrt(total), float(share), num_gradients, levels)

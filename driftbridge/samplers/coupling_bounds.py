"""Upper bounds on the distance of a chain's law from its stationary law, from coupled chains."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import as_key, chain_keys
from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.base import Sampler, State
from driftbridge.samplers.couplings import Coupling, coupling_for, name_of
from driftbridge.samplers.door import position_dtype
from driftbridge.samplers.initial import Initial, UniformStart, given_positions
from driftbridge.samplers.metric import Metric
from driftbridge.targets.base import Target

# Transitions of one compiled chunk.
CHUNK = 128


class Bounds(NamedTuple):
    """One number for each step: of the 1- and 2-Wasserstein distance and of total variation.

    `tv` is None for a coupling whose pairs never meet.
    """

    w1: Float[np.ndarray, " steps"]
    w2: Float[np.ndarray, " steps"]
    tv: Float[np.ndarray, " steps"] | None


class CouplingBounds(NamedTuple):
    """Upper bounds on the distance between the law of a chain at each step and the stationary law.

    - `steps`: numbers of the transitions, from 0; where pairs meet, all bounds are zero after them.
    - `w1`, `w2`, `tv`: the bounds; infinite where `num_unmet` pairs of a coupling that meets had
      not met, and where the distances of one that does not meet did not shrink. `tv` is at most 1,
      and None where pairs do not meet.
    - `errors`: their Monte Carlo standard errors.
    - `tail`: the part of each that is extrapolated geometrically; zero where pairs meet.
    - `meeting_times`: transition of the chain ahead at which a pair met, infinite where it did not.
    - `num_unmet`: pairs that were apart at the end.
    - `lag`: how many transitions one chain of each pair is ahead.
    """

    steps: Int[np.ndarray, " steps"]
    w1: Float[np.ndarray, " steps"]
    w2: Float[np.ndarray, " steps"]
    tv: Float[np.ndarray, " steps"] | None
    errors: Bounds
    tail: Bounds
    meeting_times: Float[np.ndarray, " pairs"]
    num_unmet: int
    lag: int


def coupling_bounds(
    target: Target,
    sampler: Sampler,
    *,
    init: Initial | Any = None,
    lag: int = 1,
    num_pairs: int = 100,
    max_steps: int = 1000,
    key: int | Key[Array, ""] = 0,
    coupling: Coupling | None = None,
    metric: Metric | None = None,
) -> CouplingBounds:
    """Bounds on the distance of a chain's law from the stationary one, from pairs a lag apart.

    Of chains `X`, `Y` with the same law at equal times, `X` runs `L` transitions ahead:
    `W1(pi_t, pi) <= E sum_{j >= 1} |X_{t + jL} - Y_{t + (j-1)L}|`,
    `W2(pi_t, pi) <= sum_{j >= 1} (E |X_{t + jL} - Y_{t + (j-1)L}|^2)^(1/2)`, and, `tau` being the
    time of `X` from which the two are equal, `TV(pi_t, pi) <= E max(0, ceil((tau - L - t) / L))`.
    `pi` is the stationary law of the kernel: the target's for an adjusted one, biased for another.
    A longer lag gives smaller bounds, at the cost of `L` transitions.

    Where pairs do not meet, the sums end where distances reach the rounding of positions or
    `max_steps`, and what follows is taken to shrink at the rate of the latter half.

    **Arguments:**

    - `sampler`: the kernel, with its numbers; nothing is tuned.
    - `init`: where chains start: a strategy (`UniformStart()` if None), one position `(dim,)`
      or one for both chains of each pair `(num_pairs, dim)`.
    - `lag`: `L >= 1`.
    - `num_pairs`: `>= 2`.
    - `max_steps`: `>= 2`, the most transitions of the chain behind.
    - `key`: a seed or a typed key; noise depends on (key, pair, transition) alone.
    - `coupling`: None is `Reflection` for MALA, `CommonVelocity` for HMC and its jittered forms,
      `Synchronous` for unadjusted kernels.
    - `metric`: coordinates in which distances are taken; None for the user's.

    **Returns:** `CouplingBounds`.

    **Raises:** `TypeError` for a kernel without coupling, `ValueError` for counts or a start that
    cannot be, or chains that leave the finite numbers.

    Biswas, Jacob and Vanetti (2019), arXiv 1905.09971, theorem 2.5 and section 2.
    """
    for name, count, least in (
        ("lag", lag, 1), ("num_pairs", num_pairs, 2), ("max_steps", max_steps, 2),
    ):  # fmt: skip
        if count < least:
            raise ValueError(f"{name} must be at least {least}; got {count}.")
    coupling = coupling_for(sampler) if coupling is None else coupling
    coupling.check(sampler)
    init = UniformStart() if init is None else init
    dtype = position_dtype(init)
    target, sampler, coupling, metric = cast_floating((target, sampler, coupling, metric), dtype)
    distances, floor = _distances(
        target, sampler, coupling, metric, init, lag, num_pairs, max_steps, as_key(key), dtype
    )
    if coupling.meets:
        return _from_meetings(distances, lag)
    return _from_contraction(distances, lag, floor)


def _distances(
    target, sampler, coupling, metric, init, lag, num_pairs, max_steps, key, dtype
) -> tuple[Float[np.ndarray, "steps pairs"], float]:
    """Distances when the chain behind has taken 0, 1, ... steps, and what of them is rounding."""
    streams = [fold_in(key, i) for i in range(3)]
    keys = chain_keys(streams[2], np.arange(num_pairs))
    pair = tuple(_start(target, sampler, init, stream, num_pairs, dtype) for stream in streams[:2])
    parts, floor, done = [], 0.0, -lag
    while done < max_steps + 1:
        first = np.int32(done + lag)
        pair, found, sizes = _chunk(target, sampler, coupling, metric, pair, keys, first, lag)
        found, size = np.asarray(found, np.float64), float(np.sqrt(np.mean(sizes)))
        if not np.all(np.isfinite(found)):
            step = int(np.argwhere(~np.isfinite(found))[0, 0]) + done
            raise ValueError(
                f"a chain of {name_of(sampler)} is not finite at step {step}: take a smaller step "
                "size, or start where the density is not extreme."
            )
        parts.append(found[max(0, -done) :])
        done += CHUNK
        # Below this distances are rounding.
        floor = 0.0 if coupling.meets else 16 * float(jnp.finfo(dtype).eps) * size
        if done > 1 and parts[-1][-1].max() <= floor:
            break
    return np.concatenate(parts)[: max_steps + 1], floor


def _start(target, sampler, init, key, num_pairs, dtype) -> State:
    if isinstance(init, Initial):
        like, keys = jnp.zeros(target.dim, dtype), chain_keys(key, np.arange(num_pairs))
        positions = _propose(cast_floating(init, dtype), target, keys, like)
    else:
        positions = jnp.asarray(given_positions(target, init, num_pairs, dtype))
    return _init(target, sampler, positions)


@jax.jit
def _propose(init, target, keys, like):
    return jax.vmap(lambda key: init.propose(target, key, like))(keys)


@jax.jit
def _init(target, sampler, positions):
    return jax.vmap(lambda position: sampler.init(target, position))(positions)


@jax.jit
def _chunk(target, sampler, coupling, metric, pair, keys, first, lag):
    """`CHUNK` transitions, and what was before each of them; the chain behind waits for `lag`."""

    def step(pair, i):
        def one(pair, key):
            x, y = pair
            noise = coupling.noise(sampler, fold_in(key, i), x.position)
            new_x, new_y = coupling.step(target, sampler, x, y, noise)
            new_y = jax.tree.map(lambda new, old: jnp.where(i < lag, old, new), new_y, y)
            gap, place = x.position - y.position, x.position
            if metric is not None:
                gap, place = metric.whiten(gap), metric.whiten(place)
            return new_x, new_y, jnp.linalg.norm(gap), jnp.sum(place**2)

        x, y, gap, size = jax.vmap(one)(pair, keys)
        return (x, y), (gap, size)

    pair, (gaps, sizes) = lax.scan(step, pair, first + jnp.arange(CHUNK, dtype=jnp.int32))
    return pair, gaps, sizes[-1]


def _lagged_sums(values: np.ndarray, lag: int, beyond: np.ndarray) -> np.ndarray:
    """`sum_j values[t + j lag]` along the first axis, with `beyond[i]` the sum from its end + i."""
    sums = np.concatenate([values, beyond])
    for t in range(len(values) - 1, -1, -1):
        sums[t] += sums[t + lag]
    return sums[: len(values)]


def _second(distances: np.ndarray, lag: int, beyond: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lagged sums of root mean squares over pairs, and their errors by the delta method."""
    squares = distances**2
    root = np.sqrt(squares.mean(1))
    safe = np.where(root > 0, root, 1)[:, None]
    zeros = np.zeros((lag, distances.shape[1]))
    influence = _lagged_sums((squares - squares.mean(1)[:, None]) / (2 * safe), lag, zeros)
    return _lagged_sums(root, lag, beyond), _error(influence)


def _error(values: np.ndarray) -> np.ndarray:
    return values.std(1, ddof=1) / np.sqrt(values.shape[1])


def _from_meetings(distances: np.ndarray, lag: int) -> CouplingBounds:
    apart = distances > 0
    unmet = int(apart[-1].sum())
    last = np.where(apart.any(0), len(apart) - 1 - np.argmax(apart[::-1], axis=0), -1)
    times = np.where(apart[-1], np.inf, last + 1.0 + lag)
    nothing = np.zeros((lag, distances.shape[1]))
    first = _lagged_sums(distances, lag, nothing)
    w2, w2_error = _second(distances, lag, np.zeros(lag))
    # Once met, pairs stay together: the steps at which they are apart are those before.
    apart_at = np.arange(len(apart))[:, None] <= last[None]
    tv = _lagged_sums(apart_at.astype(float), lag, nothing)
    zero = np.zeros(len(distances))
    bounds = Bounds(first.mean(1), w2, np.minimum(tv.mean(1), 1.0))
    errors = Bounds(_error(first), w2_error, _error(tv))
    if unmet:
        unbounded, unknown = zero + np.inf, zero + np.nan
        bounds = Bounds(unbounded, unbounded, unbounded)
        errors = Bounds(unknown, unknown, unknown)
    return CouplingBounds(
        steps=np.arange(len(distances)),
        w1=bounds.w1,
        w2=bounds.w2,
        tv=bounds.tv,
        errors=errors,
        tail=Bounds(zero, zero, zero),
        meeting_times=times,
        num_unmet=unmet,
        lag=lag,
    )


def _from_contraction(distances: np.ndarray, lag: int, floor: float) -> CouplingBounds:
    below = distances.max(1) <= floor
    if below.any():  # what follows is rounding
        distances = distances[: max(int(np.argmax(below)), 2)]
    length, pairs = distances.shape
    first = distances.mean(1)
    beyond = [_beyond(m, lag) for m in (first, np.sqrt((distances**2).mean(1)))]
    sums = _lagged_sums(distances, lag, np.zeros((lag, pairs)))
    w2, w2_error = _second(distances, lag, beyond[1])
    tails = [_lagged_sums(np.zeros(length), lag, b) for b in beyond]
    return CouplingBounds(
        steps=np.arange(length),
        w1=sums.mean(1) + tails[0],
        w2=w2,
        tv=None,
        errors=Bounds(_error(sums), w2_error, None),
        tail=Bounds(tails[0], tails[1], None),
        meeting_times=np.where(distances[-1] > 0, np.inf, float(length - 1 + lag)),
        num_unmet=int(np.sum(distances[-1] > 0)),
        lag=lag,
    )


def _beyond(distance: np.ndarray, lag: int) -> np.ndarray:
    """Lagged sums from each of the `lag` steps past the end, of an exponential through the rest.

    The rate is that of the latter half, the level the highest over it: distances of kinetic
    dynamics oscillate.
    """
    last, half = len(distance) - 1, (len(distance) - 1) // 2
    if distance[last] == 0:
        return np.zeros(lag)
    rate = np.log(distance[half] / distance[last]) / (last - half)
    if not rate > 0:
        return np.full(lag, np.inf)
    times = np.arange(half, last + 1)
    level = np.max(distance[half:] * np.exp(rate * (times - last)))
    return level * np.exp(-rate * np.arange(1, lag + 1)) / -np.expm1(-rate * lag)

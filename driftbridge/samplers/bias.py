"""The discretisation bias of an unadjusted kernel, from chains coupled at `h`, `h/2` and `h/4`."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import as_key, chain_keys
from driftbridge.samplers.base import Sampler, innermost, step_size_of
from driftbridge.samplers.coupled import BLOCKS, Sums, check_coupled, halvings, run_coupled

if TYPE_CHECKING:
    import pandas

    from driftbridge.samplers.draws import Draws

# The first blocks, in which the chains of smaller steps leave the law of the largest, are not used.
UNUSED = BLOCKS // 5
# Coupled chains: enough for a standard error from their spread.
CHAINS, FEWEST = 32, 8
# Chance that any of the parameters without bias is said to have one.
FALSE_ALARM = 0.01
# Departure from the order, as a share of the first difference, from which it is spoken of: the next
# order alone, which the errors hold, stays below it.
DEPARTURE = 0.75


class Moment(NamedTuple):
    """The bias of one moment of every parameter, in the parameter's units (or its square).

    - `estimate`: the bias at the step size of the draws.
    - `error`: its standard error, with the error of the extrapolation.
    - `first`, `second`: what the moment changes by from `h` to `h/2`, and from `h/2` to `h/4`.
    - `departure`: `first - 2^p second` in its standard errors; large where the bias does not
      shrink as `h^p`.
    """

    estimate: Float[np.ndarray, " params"]
    error: Float[np.ndarray, " params"]
    first: Float[np.ndarray, " params"]
    second: Float[np.ndarray, " params"]
    departure: Float[np.ndarray, " params"]


class Distance(NamedTuple):
    """A bound on the Wasserstein-2 distance from the law of the draws to the target.

    - `bound`: an estimate of the bound, infinite where the coupled chains do not come closer as
      the step is halved.
    - `error`: its standard error.
    - `first`, `second`: root mean square distances between the chains of `h` and `h/2`, and
      between those of `h/2` and `h/4`.
    """

    bound: float
    error: float
    first: float
    second: float


@dataclass(frozen=True)
class Bias:
    """What the step size does to the draws; see `estimate_bias`.

    - `names`: labels of the parameters; the arrays of the moments follow this order.
    - `mean`, `variance`, `sd`: biases of the moments.
    - `w2`: bound on the distance in the flat unconstrained coordinates; `w2_scaled` the same with
      each coordinate in its standard deviations.
    - `scale`: standard deviations of the parameters.
    - `step_size`, `order`: `h`, and the order `p` in it that the extrapolation uses.
    - `num_chains`, `num_steps`, `num_gradients`: coupled chains, steps of `h` that each took, and
      gradients in all.
    - `num_refused`: steps that were not finite; more than none spoils the numbers.
    """

    names: tuple[str, ...]
    mean: Moment
    variance: Moment
    sd: Moment
    w2: Distance
    w2_scaled: Distance
    scale: Float[np.ndarray, " params"]
    step_size: float
    order: float
    num_chains: int
    num_steps: int
    num_gradients: int
    num_refused: int

    def summary(self) -> "pandas.DataFrame":
        """One row for each parameter: bias and standard error of mean, sd and variance."""
        import pandas

        moments = {"mean": self.mean, "sd": self.sd, "variance": self.variance}
        columns = {}
        for name, moment in moments.items():
            columns |= {f"{name}_bias": moment.estimate, f"{name}_error": moment.error}
        return pandas.DataFrame(columns, index=pandas.Index(self.names))

    @property
    def threshold(self) -> float:
        """Standard errors from which a bias is seen, for all parameters together at 1 %."""
        from scipy.special import stdtrit

        tail = FALSE_ALARM / (2 * max(1, len(self.names)))
        return float(stdtrit(self.num_chains - 1, 1 - tail))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, in words."""
        lines = [
            self._worst("mean", self.mean),
            self._worst("sd", self.sd),
            f"W2 to the target at most {self.w2.bound:.2g} +- {self.w2.error:.1g}; "
            f"{self.w2_scaled.bound:.2g} +- {self.w2_scaled.error:.1g} with coordinates in sd",
        ]
        if self._departs(self.mean) or self._departs(self.sd):
            lines.append(
                f"differences do not shrink as h^{self.order:g}: the step is too large for the "
                "extrapolation, or the order is another; estimate again with a smaller step size"
            )
        if self.num_refused:
            lines.append(f"{self.num_refused} steps were not finite: use a smaller step size")
        return tuple(lines)

    def _worst(self, name: str, moment: Moment) -> str:
        """The largest of the biases that are seen, of all where none is."""
        scale = np.where(self.scale > 0, self.scale, np.nan)
        relative, error = moment.estimate / scale, moment.error / scale
        if not np.isfinite(relative).any():
            return f"bias of the {name}: no parameter varies"
        seen = np.abs(relative) > self.threshold * error
        i = int(np.nanargmax(np.abs(np.where(seen | ~seen.any(), relative, np.nan))))
        number = f"{self.names[i]} {relative[i]:+.2g} +- {error[i]:.1g} sd"
        if seen.any():
            return f"bias of the {name}, largest: {number}"
        return f"bias of the {name} not distinguishable from 0, largest: {number}"

    def _departs(self, moment: Moment) -> bool:
        off = np.abs(moment.first - 2.0**self.order * moment.second)
        large = off > DEPARTURE * np.abs(moment.first)
        return bool(np.any(large & (np.abs(moment.departure) > self.threshold)))

    def __repr__(self) -> str:
        head = (
            f"Bias at step size h = {self.step_size:.3g} over {len(self.names)} parameters "
            f"({self.num_chains} coupled chains of {self.num_steps} steps)"
        )
        return "\n  ".join((head, *self.sentences))


def estimate_bias(
    draws: "Draws", *, num_steps: int | None = None, key: int | Key[Array, ""] = 0
) -> Bias:
    """Estimate by how much the step size of an unadjusted kernel moves the law of its draws.

    From where the draws are, chains of the tuned sampler run at `h`, `h/2` and `h/4` along one
    Brownian path. With `D1` and `D2` the mean differences of a moment between `h` and `h/2` and
    between `h/2` and `h/4`, and a bias that shrinks as `h^p` below `h/4`,

    `bias(h) = D1 + D2 / (1 - 2^-p)`,

    whose error is estimated from how far `D1` is from `2^p D2`, and added to the standard error
    over independent chains. Since each chain and its neighbour are a coupling of their laws,

    `W2(law of the draws, target) <= e1 + e2 + ... ~ e1 + e2 / (1 - r)`,

    `e1`, `e2` the root mean square distances of the neighbours and `r` the larger of `e2 / e1` and
    `2^-s`, with the strong order `s`. `p` and `s` are `weak_order` and `strong_order` of the
    sampler's facts; where `p` is not known, 1 is taken, which errs to the larger bias.

    Seven gradients for each step of each chain.

    **Arguments:**

    - `draws`: of an unadjusted sampler, with positions.
    - `num_steps`: steps of size `h`, of which the first fifth is left out; rounded up to a
      multiple of 25. None takes as many transitions as the draws did, shared among the chains, but
      at least 25 autocorrelation times.
    - `key`: a seed or a typed key.

    **Returns:** a `Bias`.

    **Raises:** `TypeError` for an adjusted sampler and for one that has no `coarsen`; `ValueError`
    where the sampler is not known, or fewer than eight places to start from are.

    Giles, Majka, Szpruch, Vollmer and Zygalakis (2020), arXiv 1605.01384, for coupled chains of two
    steps.
    """
    sampler = sampler_of(draws)
    positions = jnp.asarray(starts(draws))
    dtype, chains = positions.dtype, len(positions)
    target, sampler = cast_floating((draws.target, sampler), dtype)
    check_coupled(sampler)
    length = block_steps(draws, num_steps, chains)
    scale = draws.positions.std((0, 1))
    keys = chain_keys(as_key(key), np.arange(chains))
    center = jnp.asarray(draws.statistics["mean"], dtype)
    sums = run_coupled(target, halvings(sampler, 3), positions, keys, center, np.int32(length))
    sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums)
    kept = jax.tree.map(lambda leaf: leaf[UNUSED:].mean(0) / length, sums)
    facts = innermost(sampler).facts
    order = facts.weak_order or 1.0
    mean, variance, sd = moments_of(kept, order)
    shrink = 2.0**-facts.strong_order if facts.strong_order else 0.0
    flat = np.where(scale > 0, scale, np.inf)
    return Bias(
        names=draws.names,
        mean=mean,
        variance=variance,
        sd=sd,
        w2=distance_of(kept, 1.0, shrink),
        w2_scaled=distance_of(kept, flat, shrink),
        scale=np.asarray(draws.statistics["sd"], np.float64),
        step_size=float(np.mean(np.asarray(step_size_of(sampler)))),
        order=order,
        num_chains=chains,
        num_steps=BLOCKS * length,
        num_gradients=int(sums.num_gradients.sum()),
        num_refused=int(sums.refused.sum()),
    )


def sampler_of(draws: "Draws") -> Sampler:
    """The tuned sampler of some draws, if it has a bias."""
    if draws.tuned is None:
        raise ValueError("these draws do not know their sampler (tuned is None); sample again.")
    if draws.tuned.facts.adjusted:
        raise TypeError(
            f"{draws.sampler_name} is adjusted: the step size gives its draws no bias to estimate."
        )
    return draws.tuned


def starts(draws: "Draws") -> Float[np.ndarray, "chains dim"]:
    """Last positions of all chains; of few chains others too, spread over the second half."""
    positions = draws.positions
    rows = min(-(-CHAINS // draws.num_chains), max(1, draws.num_draws // 2))
    if rows * draws.num_chains < FEWEST:
        raise ValueError(
            f"a standard error needs {FEWEST} coupled chains, and {draws.num_chains} chains of "
            f"{draws.num_draws} draws give {rows * draws.num_chains} places to start from; take "
            "more draws or chains."
        )
    last = draws.num_draws - 1
    chosen = np.linspace(last, last - last // 2, rows).astype(int)
    return np.concatenate([positions[:, row] for row in chosen])


def block_steps(draws: "Draws", num_steps: int | None, chains: int) -> int:
    """Steps of `h` in one block."""
    if num_steps is not None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {num_steps}.")
        return -(-int(num_steps) // BLOCKS)
    transitions = draws.num_chains * draws.num_draws * int(draws.metadata.get("thin", 1))
    sizes = np.stack([draws.statistics[name] for name in ("ess_bulk", "ess_tail")])
    least = np.nanmin(sizes) if np.isfinite(sizes).any() else draws.num_chains
    correlated = transitions / max(float(least), 1.0)
    wanted = max(BLOCKS * correlated, transitions / chains)
    return math.ceil(min(wanted, transitions) / BLOCKS)


def moments_of(kept: Sums, order: float) -> tuple[Moment, Moment, Moment]:
    """Biases of mean, variance and sd from the means of every chain.

    The variance of a chain is taken about the mean of all: the derivative of the variance by that
    mean is zero, so the spread over chains is that of the estimate.
    """
    at = np.stack([kept.at, kept.at - kept.change1, kept.at - kept.change1 - kept.change2])
    square = kept.square, kept.square - kept.squares1
    square = np.stack([*square, square[-1] - kept.squares2])
    mean = at.mean(1, keepdims=True)
    variance = square - 2 * mean * at + mean**2
    pooled = variance.mean(1, keepdims=True)
    root = np.sqrt(np.maximum(pooled, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        sd = root + (variance - pooled) / (2 * root)
    return (
        moment(kept.change1, kept.change2, order),
        moment(variance[0] - variance[1], variance[1] - variance[2], order),
        moment(sd[0] - sd[1], sd[1] - sd[2], order),
    )


def moment(first: np.ndarray, second: np.ndarray, order: float) -> Moment:
    """The extrapolated bias from the differences of every chain, shape `(chains, params)`."""
    factor = 1 / (1 - 2.0**-order)
    estimate, error = over_chains(first + factor * second)
    off, off_error = over_chains(first - 2.0**order * second)
    # The two-level estimate is `factor first`. The next order's part of it is 2^(p+1) times that of
    # the estimate here; their difference, factor 2^-p off, is 2^(p+1) - 1 times the latter.
    extrapolation = factor * 2.0**-order * off / (2.0 ** (order + 1) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        departure = off / off_error
    error = np.hypot(error, extrapolation)
    return Moment(estimate, error, first.mean(0), second.mean(0), departure)


def over_chains(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over independent chains and its standard error."""
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def distance_of(kept: Sums, scale: Any, shrink: float) -> Distance:
    """The bound on W2, its error by the jackknife over chains."""
    first, second = ((apart / np.square(scale)).sum(1) for apart in (kept.apart1, kept.apart2))
    count = len(first)
    bound = bound_of(first.mean(), second.mean(), shrink)
    left = [(values.sum() - values) / (count - 1) for values in (first, second)]
    spread = bound_of(left[0], left[1], shrink)
    with np.errstate(invalid="ignore"):
        error = np.sqrt((count - 1) * np.var(spread))
    return Distance(float(bound), float(error), math.sqrt(first.mean()), math.sqrt(second.mean()))


def bound_of(first: Any, second: Any, shrink: float) -> Any:
    """`e1 + e2 / (1 - r)` from mean squares."""
    e1, e2 = np.sqrt(first), np.sqrt(second)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.fmax(shrink, e2 / e1)
        return np.where(r < 1, e1 + e2 / (1 - r), np.inf)

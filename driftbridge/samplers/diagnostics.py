"""Convergence and Monte Carlo error of stored draws, in float64 on the host.

Functions take draws of shape `(chains, draws, *event)` and return arrays of shape `event`. A
parameter that cannot be judged (not finite, constant, fewer than four draws) gives NaN, and
`reasons` says why.

Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), "Rank-normalization, folding, and
localization: an improved R-hat", Bayesian Analysis 16(2), is cited below as V21.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from driftbridge.samplers import estimators

R_HAT_BELOW = 1.01
ESS_AT_LEAST = 800.0
MIN_GROUPS = 4

# The columns of `summarise`, in ArviZ's order.
COLUMNS = (
    "mean",
    "sd",
    "hdi_3%",
    "hdi_97%",
    "mcse_mean",
    "mcse_sd",
    "ess_bulk",
    "ess_tail",
    "r_hat",
)

CONSTANT = "constant"
NOT_FINITE = "not finite"
TOO_SHORT = "fewer than 4 draws"
ONE_CHAIN = "one chain"

# Values held in float64 by one block of parameters; keeps the work arrays of a thread near 15 MB.
_BLOCK = 2**17
# NumPy's sorts and transforms release the interpreter, so blocks run side by side.
_THREADS = min(4, os.cpu_count() or 1)


class Convergence(NamedTuple):
    """Whether draws may be used, parameter by parameter.

    - `names`: labels of the parameters; the arrays follow this order.
    - `r_hat`, `ess_bulk`, `ess_tail`: shape `(params,)`, NaN where `reasons` says why.
    - `reasons`: why a parameter could not be judged, "" where it was.
    - `worst`: label of the parameter furthest from the thresholds, "" if none varies.
    - `converged`: R-hat below 1.01 and bulk and tail ESS of at least 800 for every parameter that
      is not constant, and at least one such parameter.
    """

    names: tuple[str, ...]
    r_hat: Float[np.ndarray, " params"]
    ess_bulk: Float[np.ndarray, " params"]
    ess_tail: Float[np.ndarray, " params"]
    reasons: tuple[str, ...]
    worst: str
    converged: bool

    @property
    def sentence(self) -> str:
        """The verdict with the numbers that decide it."""
        if not self.worst:
            return "nothing varies: every parameter is constant"
        if self.converged:
            scale, bulk, tail = np.nanmax(self.r_hat), *map(np.nanmin, self[2:4])
            return (
                f"R-hat at most {r_hat_text(scale)}, bulk ESS at least {bulk:.0f}, tail {tail:.0f}"
            )
        i = self.names.index(self.worst)
        if np.isnan(self.ess_bulk[i]):
            return f"{self.worst} cannot be judged: {self.reasons[i]}"
        known = not self.reasons[i]
        scale = f"R-hat {r_hat_text(self.r_hat[i])}" if known else "no R-hat (one chain)"
        return (
            f"{self.worst} has {scale}, bulk ESS {self.ess_bulk[i]:.0f} and "
            f"tail ESS {self.ess_tail[i]:.0f}"
        )


def r_hat_text(value: float) -> str:
    """Three decimals, or as many as keep a value below the threshold below it."""
    decimals = 3
    while value < R_HAT_BELOW <= round(value, decimals) and decimals < 8:
        decimals += 1
    return f"{value:.{decimals}f}"


def labels(
    name: str,
    shape: tuple[int, ...],
    dims: tuple[str, ...] | None = None,
    coords: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """Names of the entries of a parameter, as ArviZ writes them: `theta[Choate]`, `L[0, 1]`."""
    if not shape:
        return [name]
    dims = dims or ("",) * len(shape)
    axes = [coords.get(dim, range(n)) for dim, n in zip(dims, shape, strict=True)]
    return [f"{name}[{', '.join(map(str, entry))}]" for entry in product(*axes)]


def flatten(
    values: Mapping[str, Any],
    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    coords: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple[Float[np.ndarray, "chains draws params"], tuple[str, ...]]:
    """Parameters by name, each `(chains, draws, *event)`, as one array, and its labels."""
    arrays = {name: _as_draws(value) for name, value in values.items()}
    flat = [array.reshape(*array.shape[:2], -1) for array in arrays.values()]
    names = (labels(n, a.shape[2:], dims.get(n), coords) for n, a in arrays.items())
    return np.concatenate(flat, axis=2), tuple(chain.from_iterable(names))


def convergence(
    values: Any,
    groups: int | None = None,
    names: Sequence[str] | None = None,
    ranks: np.ndarray | None = None,
) -> Convergence:
    """Judge draws by R-hat and effective sample sizes.

    **Arguments:**

    - `values`: shape `(chains, draws, params)`.
    - `groups`: None for the rank-normalised R-hat over chains, which needs about 200 effective
      draws a chain; for many short chains the number of groups of neighbouring chains, each
      started from one point, for the nested R-hat (of normal scores and folded normal scores).
    - `names`: labels of the parameters; their numbers if None.
    - `ranks`: `mixing` of the same values, where it is known.

    **Raises:** `ValueError` for fewer than four groups or groups that do not divide the chains.
    """
    array = _as_draws(values)
    if array.ndim != 3:
        raise ValueError(f"values must have shape (chains, draws, params); got {array.shape}.")
    if groups is not None and groups < MIN_GROUPS:
        raise ValueError(f"nested R-hat needs at least {MIN_GROUPS} groups; got {groups}.")
    labels = tuple(map(str, range(array.shape[2]) if names is None else names))
    bulk, tail, scale = mixing(array) if ranks is None else ranks
    if groups is not None:
        scale = _each(lambda x: estimators.nested_rank_r_hat(x, groups), array)
    return judge(labels, scale, bulk, tail, tuple(reasons(array).tolist()))


def judge(
    names: tuple[str, ...],
    r_hat: Float[np.ndarray, " params"],
    ess_bulk: Float[np.ndarray, " params"],
    ess_tail: Float[np.ndarray, " params"],
    reasons: tuple[str, ...],
) -> Convergence:
    """The verdict on diagnostics that are already computed."""
    distance = severity(r_hat, ess_bulk, ess_tail, reasons)
    varies = distance > -np.inf
    worst = names[int(np.argmax(distance))] if varies.any() else ""
    with np.errstate(invalid="ignore"):
        passes = (r_hat < R_HAT_BELOW) & (np.minimum(ess_bulk, ess_tail) >= ESS_AT_LEAST)
    converged = bool(varies.any() and passes[varies].all())
    return Convergence(names, r_hat, ess_bulk, ess_tail, reasons, worst, converged)


def severity(
    r_hat: Float[np.ndarray, " params"],
    ess_bulk: Float[np.ndarray, " params"],
    ess_tail: Float[np.ndarray, " params"],
    reasons: tuple[str, ...],
) -> Float[np.ndarray, " params"]:
    """How far each parameter is from passing, for ordering them.

    The larger of `(r_hat - 1) / 0.01` and `800 / ess`, in logarithms; minus infinity for constants
    and infinity for what could not be judged otherwise.
    """
    excess = np.fmax(r_hat - 1, 0) / (R_HAT_BELOW - 1)
    shortfall = ESS_AT_LEAST / np.minimum(ess_bulk, ess_tail)
    with np.errstate(divide="ignore"):
        distance = np.log(np.fmax(excess, shortfall))
    blocked = np.array([r in (NOT_FINITE, TOO_SHORT) for r in reasons], bool)
    constant = np.array([r == CONSTANT for r in reasons], bool)
    return np.where(blocked, np.inf, np.where(constant, -np.inf, distance))


def reasons(values: Any) -> np.ndarray:
    """Why each parameter cannot be judged, as an array of strings of shape `event`; "" if it can.

    "not finite", "constant", "fewer than 4 draws", or "one chain" where only R-hat is missing.
    """
    array = _as_draws(values)
    low, high = array.min((0, 1)), array.max((0, 1))
    finite = np.isfinite(low) & np.isfinite(high)
    short = TOO_SHORT if array.shape[1] < 4 else ONE_CHAIN if array.shape[0] < 2 else ""
    return np.where(finite, np.where(low == high, CONSTANT, short), NOT_FINITE)


def r_hat(values: Any) -> np.ndarray:
    """Rank-normalised split R-hat, the larger of bulk and folded (V21, sections 4.1 and 4.2).

    NaN for one chain; infinite where every chain stays at a place of its own.
    """
    return _each(estimators.rank_r_hat, values)


def split_r_hat(values: Any) -> np.ndarray:
    """R-hat of split chains without ranks (V21, section 3.1): cheap, and blind to heavy tails."""
    return _each(lambda x: estimators.r_hat(estimators.split(x)), values)


def nested_r_hat(values: Any, num_groups: int) -> np.ndarray:
    """Nested R-hat of values, for many chains in groups that share a starting point.

    `sqrt(1 + B / W)`: `B` is the variance of the groups' means, `W` the mean over groups of the
    variance of its chains' means plus the mean variance within its chains.

    **Arguments:**

    - `values`: shape `(chains, draws, *event)`; a group is a run of neighbouring chains.
    - `num_groups`: at least 2; divides the number of chains.

    **Raises:** `ValueError` if it does not.

    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman (2022), arXiv 2110.13017.
    """
    return _each(lambda x: estimators.nested(x, num_groups), values)


def ess_bulk(values: Any) -> np.ndarray:
    """Effective draws for the centre: ESS of rank-normalised split chains (V21, section 4.3)."""
    return _each(lambda x: estimators.ess(estimators.normal_scores(estimators.split(x))[0]), values)


def ess_tail(values: Any) -> np.ndarray:
    """Effective draws for the tails: the smaller ESS of the 5 % and 95 % quantiles."""
    return _each(estimators.tail_ess, values)


def ess_mean(values: Any) -> np.ndarray:
    """Effective draws for the mean: ESS of split chains (V21, section 3.2)."""
    return _each(lambda x: estimators.ess(estimators.split(x)), values)


def ess_sd(values: Any) -> np.ndarray:
    """Effective draws for the variance: ESS of squared deviations from the mean."""
    return _each(lambda x: estimators.ess(estimators.split(estimators.squares(x))), values)


def ess_quantile(values: Any, probability: float) -> np.ndarray:
    """Effective draws for a quantile: ESS of the indicator of lying below it (V21, section 4.3)."""
    return _each(lambda x: estimators.quantile_ess(x, probability), values)


def mcse_mean(values: Any) -> np.ndarray:
    """Monte Carlo standard error of the mean, `sd / sqrt(ess_mean)`."""
    return _each(estimators.mean_error, values)


def mcse_sd(values: Any) -> np.ndarray:
    """Monte Carlo standard error of the standard deviation: delta method on squared deviations."""
    return _each(estimators.sd_error, values)


def mcse_quantile(values: Any, probability: float) -> np.ndarray:
    """Monte Carlo standard error of a quantile (V21, section 4.4).

    Half the distance between the order statistics at the 16 % and 84 % points of the Beta
    distribution that the quantile's probability has when estimated from `ess_quantile` draws.
    """
    return _each(lambda x: estimators.quantile_error(x, probability), values)


def hdi(values: Any, probability: float = 0.94) -> np.ndarray:
    """Ends of the shortest interval holding `probability`, shape `(2, *event)`."""
    return _each(
        lambda x: estimators.shortest(x, probability), values, lead=(2,), skip=(NOT_FINITE,)
    )


def e_bfmi(energy: Any) -> Float[np.ndarray, " chains"]:
    """Share of the energy's variance that one refreshment of the velocity explores, by chain.

    `mean((E' - E)^2) / var(E)` over successive draws of `energy`, shape `(chains, draws)`. Below
    0.3 a chain moves slowly between energy levels. NaN where the energy is constant or not finite.

    Betancourt (2016), arXiv 1604.00695.
    """
    energy = np.asarray(energy, np.float64)
    out = np.full(energy.shape[0], np.nan)
    if energy.shape[1] < 2:
        return out
    usable = reasons(energy.T[None])
    usable = (usable == "") | (usable == ONE_CHAIN)
    kept = energy[usable]
    out[usable] = np.square(np.diff(kept, axis=1)).mean(1) / kept.var(1, ddof=1)
    return out


def mixing(values: Any) -> np.ndarray:
    """Bulk ESS, tail ESS and rank-normalised R-hat, `(3, *event)`; they share one sorting.

    Ranks do not depend on the dtype, so that the values stay in their own.
    """
    return _each(estimators.rank_diagnostics, values, lead=(3,), dtype=None)


def summarise(values: Any, ranks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The columns of ArviZ's summary table, arrays of shape `event` by name.

    Moments and intervals are plain numbers also where the diagnostics are NaN. `ranks` is `mixing`
    of the same values, where it is known.
    """
    array = _as_draws(values)
    degrees = int(array.shape[0] * array.shape[1] > 1)
    mean, sd = _each(
        lambda x: (x.mean((1, 2)), x.std((1, 2), ddof=degrees)), array, lead=(2,), skip=()
    )
    low, high = hdi(array)
    bulk, tail, scale = mixing(array) if ranks is None else ranks
    columns = (mean, sd, low, high, mcse_mean(array), mcse_sd(array), bulk, tail, scale)
    return {name: np.asarray(c) for name, c in zip(COLUMNS, columns, strict=True)}


def _as_draws(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim < 2 or not array.size:
        raise ValueError(
            f"draws must have shape (chains, draws, ...) and not be empty; got {array.shape}."
        )
    return array


def _each(
    statistic: Callable[[np.ndarray], Any],
    values: Any,
    lead: tuple[int, ...] = (),
    skip: tuple[str, ...] = (NOT_FINITE, CONSTANT, TOO_SHORT),
    dtype: type | None = np.float64,
) -> np.ndarray:
    """Apply a statistic to blocks of the parameters that can be judged; NaN for the others.

    Blocks `(params, chains, draws)` are of `dtype`, or of that of the values.
    """
    array = _as_draws(values)
    chains, draws, *event = array.shape
    flat = array.reshape(chains, draws, -1)
    usable = np.flatnonzero(~np.isin(reasons(flat), skip))
    out = np.full((*lead, flat.shape[2]), np.nan)
    size = max(1, _BLOCK // (chains * draws))

    def fill(block: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.moveaxis(flat[:, :, block], 2, 0)
            out[..., block] = statistic(np.ascontiguousarray(rows, dtype or flat.dtype))

    blocks = [usable[start : start + size] for start in range(0, len(usable), size)]
    if len(blocks) < 2:
        for block in blocks:
            fill(block)
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, blocks))
    return out.reshape((*lead, *event))

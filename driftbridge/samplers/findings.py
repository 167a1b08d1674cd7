"""What the reader of a run must know, as data."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from driftbridge.samplers.coupled import can_couple
from driftbridge.samplers.diagnostics import ESS_AT_LEAST, R_HAT_BELOW, e_bfmi

if TYPE_CHECKING:
    from driftbridge.samplers.draws import Draws

DIVERGENT_ABOVE = 0.01
# Chance of a warning in a run whose chains all have divergent steps at just that rate.
FALSE_ALARMS = 0.05
STUCK_STEPS = 100
REPAIRED_ABOVE = 0.1
E_BFMI_BELOW = 0.3
# Effective draws a chain below which rank-normalised R-hat flags exactly stationary chains.
ESS_OF_CHAIN = 200.0


class Finding(NamedTuple):
    """One thing found about a run.

    - `name`: what kind of thing, one word for programs.
    - `message`: what was seen, with its numbers, and what to try.
    - `value`: the number that decided, if there is one.
    - `parameter`: label of the parameter concerned, if one is.
    - `chains`: numbers of the chains concerned.
    """

    name: str
    message: str
    value: float | None = None
    parameter: str | None = None
    chains: tuple[int, ...] = ()


def findings(draws: "Draws") -> tuple[Finding, ...]:
    """All findings about some draws, the most serious first.

    `not_converged`, `divergences` (a chain's rate is above 1 %), `stuck` (a chain that kept
    its place for 100 steps), `acceptance` (a chain below half the mean), `warmup` (an ensemble that
    did not agree), `repaired` (chains moved before the kept draws), `energy` (E-BFMI below 0.3,
    adjusted kernels that have not converged), `outside` (draws of an unadjusted kernel where the
    density is zero or not a number), `bias` (unadjusted kernels), `interrupted`, `unmet` (a rule of
    `Until`), `fewer_draws`.
    """
    if not draws.num_draws:
        return tuple(filter(None, [_length(draws)]))
    checks = (
        _not_converged, _divergences, _stuck, _acceptance, _warmup, _repaired, _energy, _outside,
        _bias, _length,
    )  # fmt: skip
    return tuple(found for check in checks if (found := check(draws)) is not None)


def chain_list(chains) -> str:
    """Numbers of chains in words, at most eight of them."""
    numbers = [str(int(c)) for c in chains]
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"{'chain' if len(numbers) == 1 else 'chains'} {', '.join(numbers[:8])}{more}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _not_converged(draws: "Draws") -> Finding | None:
    verdict = draws.convergence
    if verdict.converged:
        return None
    if not verdict.worst:
        return Finding("not_converged", f"Not converged: {verdict.sentence}.")
    i = verdict.names.index(verdict.worst)
    least = np.fmin(verdict.ess_bulk, verdict.ess_tail)
    failing = int(np.sum(~(verdict.r_hat < R_HAT_BELOW) | ~(least >= ESS_AT_LEAST)))
    failing -= verdict.reasons.count("constant")
    others = {1: "", 2: " (one other fails too)"}.get(failing, f" ({failing - 1} others fail too)")
    return Finding(
        "not_converged",
        f"Not converged: {verdict.sentence}{others}. {_cure(draws, i)}",
        value=None if np.isnan(verdict.r_hat[i]) else float(verdict.r_hat[i]),
        parameter=verdict.worst,
    )


def _cure(draws: "Draws", worst: int) -> str:
    verdict = draws.convergence
    scale = verdict.r_hat[worst]
    if np.isnan(verdict.ess_bulk[worst]):
        return "Look at this parameter first."
    least = float(np.nanmin(np.fmin(verdict.ess_bulk, verdict.ess_tail)))
    if verdict.reasons[worst]:
        return "Run at least four chains: one cannot be compared with another."
    if _divergences(draws) is not None:
        return "Cure the divergent steps first; more draws alone will not."
    if scale >= 1.05:
        return (
            "The chains are in different places: look at the trace and rank plots for chains "
            "apart, warm up longer, start closer (init=Approach()), or reparametrise."
        )
    if np.nanmax(verdict.r_hat) < R_HAT_BELOW or least < ESS_AT_LEAST:
        factor = max(ESS_AT_LEAST / least, 1.0)
        wanted = int(np.ceil(1.2 * factor * draws.num_draws / 100) * 100)
        return f"Take more draws: about num_samples={wanted} should do."
    if least / draws.num_chains < ESS_OF_CHAIN:
        return (
            f"R-hat over chains needs about {ESS_OF_CHAIN:.0f} effective draws in each; for many "
            "short chains use fewer and longer ones, or groups of chains with one start each."
        )
    return "Take twice as many draws, and warm up longer."


def _divergences(draws: "Draws") -> Finding | None:
    divergent = draws.stats.get("is_divergent")
    if divergent is None:
        return None
    divergent = np.asarray(divergent, bool)
    share = divergent.mean(1)
    chains = np.flatnonzero(rate_is_above(divergent.sum(1), divergent.shape[1], DIVERGENT_ABOVE))
    if not len(chains):
        return None
    return Finding(
        "divergences",
        f"Divergent steps: {chain_list(chains)} had them in up to {_percent(share.max())} of draws "
        "after warm-up, so part of the target is not explored. Use a smaller step size, or "
        "reparametrise (a non-centred hierarchy, a bounded scale).",
        value=float(share.max()),
        chains=tuple(map(int, chains)),
    )


def rate_is_above(counts: np.ndarray, trials: int, rate: float) -> np.ndarray:
    """Which of many counts of `trials` each say that they come from more than `rate`.

    At that rate one of them, or all together, are found so in a share of at most `FALSE_ALARMS` of
    runs (exact binomial tails, half for each, Bonferroni over the counts): three of 256 are no sign
    of more than 1 % among 64 chains. Where all together are, those above `rate * trials` are named.
    """
    above = counts > rate * trials
    if not above.any():
        return above
    from scipy.stats import binom

    level = FALSE_ALARMS / 2
    together = binom.sf(counts.sum() - 1, trials * len(counts), rate) <= level
    alone = binom.sf(counts - 1, trials, rate) <= level / len(counts)
    return above & (together | alone)


def longest_stay(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Largest number of successive draws that equal the one before, by chain.

    `blocks` are parts of the positions `(chains, draws, dim)`, each (but the first) beginning with
    the last draw of the part before.
    """
    longest = running = np.zeros((), int)
    for block in blocks:
        still = np.all(block[:, 1:] == block[:, :-1], axis=2)
        steps = np.arange(1, still.shape[1] + 1)
        last_move = np.maximum.accumulate(np.where(still, 0, steps), axis=1)
        stay = steps - last_move + np.where(last_move == 0, running[..., None], 0)
        longest = np.maximum(longest, np.max(stay, axis=1, initial=0))
        running = stay[:, -1] if stay.shape[1] else running
    return np.asarray(longest)


def _stuck(draws: "Draws") -> Finding | None:
    stay = longest_stay(draws.position_blocks()) * int(draws.metadata.get("thin", 1))
    chains = np.flatnonzero(stay >= STUCK_STEPS)
    if not len(chains):
        return None
    return Finding(
        "stuck",
        f"Stuck: {chain_list(chains)} accepted nothing for up to {stay.max()} steps on end. Use a "
        "smaller step size, or start elsewhere.",
        value=float(stay.max()),
        chains=tuple(map(int, chains)),
    )


def _acceptance(draws: "Draws") -> Finding | None:
    rate = draws.stats.get("acceptance_rate")
    if rate is None:
        return None
    by_chain = np.asarray(rate, float).mean(1)
    mean, least = by_chain.mean(), by_chain.min()
    if not least < mean / 2:
        return None
    chains = np.flatnonzero(by_chain < mean / 2)
    return Finding(
        "acceptance",
        f"Slow chains: {chain_list(chains)} accepted as little as {least:.2f} of their steps, "
        f"less than half the mean of {mean:.2f}. They sit where the step size does not fit; "
        "init=Approach() starts each chain in the bulk.",
        value=float(least),
        chains=tuple(map(int, chains)),
    )


def _warmup(draws: "Draws") -> Finding | None:
    facts = draws.metadata
    if not facts.get("gathered", True):
        seen = "the search for the bulk of the target had not settled when its time was over"
    elif facts.get("agreed") is False:
        seen = f"after {facts['num_warmup']} transitions the ensemble did not agree"
    else:
        return None
    worst, drift, label, where = facts.get("worst"), facts.get("drift"), None, ""
    if worst is not None and drift:
        names = draws.convergence.names
        label = names[worst] if len(names) == draws.target.dim else f"coordinate {worst}"
        where = f"; {label} still drifted by {drift:.2f} sd"
    return Finding(
        "warmup",
        f"Warm-up ended unfinished: {seen}{where}. Look at this parameter, start closer, "
        "reparametrise, or give a larger num_warmup.",
        value=drift,
        parameter=label,
    )


def _repaired(draws: "Draws") -> Finding | None:
    repaired = int(draws.metadata.get("repaired", 0))
    if repaired <= REPAIRED_ABOVE * draws.num_chains:
        return None
    return Finding(
        "repaired",
        f"Lost chains: in warm-up chains were moved to where others were {repaired} times "
        f"({draws.num_chains} chains). If the target has several modes, one may have been left.",
        value=float(repaired),
    )


def _energy(draws: "Draws") -> Finding | None:
    energy = draws.stats.get("energy")
    if energy is None or draws.tuned is None or not draws.tuned.facts.adjusted:
        return None
    if draws.convergence.converged:  # tails that are reached often enough are not reached slowly
        return None
    share = e_bfmi(energy)
    chains = np.flatnonzero(share < E_BFMI_BELOW)
    if not len(chains):
        return None
    return Finding(
        "energy",
        f"Slow energy: {chain_list(chains)} have E-BFMI as low as {np.nanmin(share):.2f} (below "
        f"{E_BFMI_BELOW}), so tails are reached slowly. Reparametrise, or use longer trajectories.",
        value=float(np.nanmin(share)),
        chains=tuple(map(int, chains)),
    )


def _outside(draws: "Draws") -> Finding | None:
    looked_at, outside = draws.metadata.get("looked_at", 0), draws.metadata.get("outside", 0)
    if not outside:
        return None
    return Finding(
        "outside",
        f"Outside the support: of {looked_at} draws looked at, {outside} have a log density that "
        "is not finite. An unadjusted kernel does not notice; declare the constraint, or use an "
        "adjusted kernel.",
        value=outside / looked_at,
    )


def _bias(draws: "Draws") -> Finding | None:
    if draws.tuned is None or draws.tuned.facts.adjusted:
        return None
    facts, step_size = draws.tuned.facts, draws.tuned_numbers.get("step_size")
    at = "" if step_size is None else f" at its step size h = {float(np.mean(step_size)):.3g}"
    return Finding(
        "bias",
        f"{draws.sampler_name} is unadjusted: however long it runs, its draws keep a bias{at}. On "
        f"a Gaussian of unit curvature the relative error of the variance is {facts.bias}. "
        + (
            "draws.bias() estimates it here."
            if can_couple(draws.tuned)
            else "Check with a smaller step size or an adjusted kernel."
        ),
        value=None if step_size is None else float(np.mean(step_size)),
    )


def _length(draws: "Draws") -> Finding | None:
    wanted = draws.metadata.get("num_samples")
    interrupted = bool(draws.metadata.get("interrupted", False))
    of = "" if wanted is None else f" of the {wanted} asked for"
    kept = f"{draws.num_draws} draws a chain{of}"
    if interrupted:
        return Finding("interrupted", f"Interrupted: {kept} are here.", float(draws.num_draws))
    if unmet := draws.metadata.get("unmet"):
        return Finding(
            "unmet", f"Stopped at a limit: {unmet}. {kept[0].upper()}{kept[1:]} are here."
        )
    if isinstance(wanted, int) and draws.num_draws < wanted:
        return Finding("fewer_draws", f"Fewer draws: {kept} are here.", float(draws.num_draws))
    return None

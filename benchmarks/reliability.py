"""Whether `db.sample(target)` is ever wrong without saying so.

    python -m benchmarks.reliability [--seeds N] [--targets NAME ...] [--small] [--save] [--strict]

Every target whose moments are known, from starts with standard deviation 0.1, 1 and 10, for many
seeds (20 unless told). `--targets` takes some of them. A run is

- *right* if every mean is within 0.2 standard deviations and every standard deviation within 25 %;
- *silent* if it is wrong and has no warning; *cautious* if it is right and has one;
- *warned* if it is wrong and says so; *failed* if it raised.

Bars: over the runs of all targets silent 0; over those of a Gaussian, eight schools both ways and
the Brownian motion cautious at most 5 %, warned or failed at most 2 %, of centred hierarchies at
most 10 %. The warnings met are counted by name.

The constants of the warm-up were chosen on the targets of the first list and then frozen; those of
the second were run with them as they are.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

import driftbridge as db
from benchmarks.gaussians import rotated
from benchmarks.timing import machine, parser_of, record, verdict
from driftbridge.samplers import Gathering, UniformStart
from driftbridge.targets import (
    Banana,
    BrownianMotion,
    BrownianMotionNonCentered,
    DiagonalGaussian,
    EightSchools,
    EightSchoolsNonCentered,
    NealFunnel,
    Ring,
    StudentMixture,
)

STARTS = (0.1, 1.0, 10.0)
MOST_DRAWS = 10_000


CHOSEN_ON = {
    "rotated Gaussian": rotated(np.geomspace(1, 1e4, 30), seed=1),
    "eight schools, non-centred": EightSchoolsNonCentered(),
    "eight schools, centred": EightSchools(),
    "banana": Banana(),
    "funnel": NealFunnel(10),
    "stretched Gaussian": DiagonalGaussian(np.zeros(50), np.geomspace(1e-3, 1e3, 50)),
    "strong banana": Banana(curvature=0.1),
    "banana in five dimensions": Banana(5, curvature=0.05, scale=5.0),
}
HELD_OUT = {
    "Brownian motion": BrownianMotion(),
    "Brownian motion, non-centred": BrownianMotionNonCentered(),
    "Student, 5 degrees of freedom": StudentMixture(np.zeros((1, 10)), df=5.0),
    "ring": Ring(),
}


# Targets that the bars are about; the others are shown as they come out.
BARRED = ("rotated Gaussian", "eight schools, non-centred", "eight schools, centred",
          "Brownian motion")  # fmt: skip
CENTRED = ("eight schools, centred",)
WORDS = ("right", "cautious", "warned", "failed", "silent")


class Outcome(NamedTuple):
    """One run in one of `WORDS`, and the names of its warnings."""

    word: str
    warnings: tuple[str, ...]


def outcome(target, seed: int, start: float) -> Outcome:
    """One run."""
    mean, variance = (np.asarray(part) for part in (target.truth.mean, target.truth.variance))
    sd = np.sqrt(variance)
    try:
        draws = db.sample(
            target,
            key=seed,
            init=Gathering(UniformStart(start * 3**0.5)),
            num_samples=db.Until(max_draws=MOST_DRAWS),
        )
    except (ValueError, RuntimeError) as error:
        return Outcome("failed", (type(error).__name__,))
    x = draws.positions
    right = np.all(np.abs(x.mean((0, 1)) - mean) < 0.2 * sd)
    right &= np.all(np.abs(x.std((0, 1)) / sd - 1) < 0.25)
    names = tuple(finding.name for finding in draws.warnings)
    if right:
        return Outcome("cautious" if names else "right", names)
    return Outcome("warned" if names else "silent", names)


def judge(rows: list[dict]) -> bool:
    """Print the shares and their bars."""

    def share(rows, *words):
        runs = sum(row[word] for row in rows for word in WORDS)
        return sum(row[word] for row in rows for word in words) / max(runs, 1)

    barred = [row for row in rows if row["target"] in BARRED]
    centred = [row for row in barred if row["target"] in CENTRED]
    others = [row for row in barred if row["target"] not in CENTRED]
    bars = (
        ("wrong without a warning", share(rows, "silent"), 0),
        ("warned though right", share(barred, "cautious"), 0.05),
        ("warned and wrong, or failed", share(others, "warned", "failed"), 0.02),
        ("the same of centred hierarchies", share(centred, "warned", "failed"), 0.1),
    )
    print()
    for what, found, most in bars:
        print(f"{what}: {100 * found:.2g} %, at most {100 * most:g} %: {verdict(found <= most)}")
    return all(found <= most for _, found, most in bars)


def main() -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    names = [*CHOSEN_ON, *HELD_OUT]
    parser.add_argument("--targets", nargs="*", choices=names, default=names)
    chosen = parser.parse_args()
    seeds = 1 if chosen.small else chosen.seeds
    print(machine(), end="\n\n")
    print(f"| target | start sd | {' | '.join(WORDS)} | warnings |\n" + "| --- " * 8 + "|")
    rows = []
    for listed, targets in (("chosen on", CHOSEN_ON), ("held out", HELD_OUT)):
        for name in filter(chosen.targets.__contains__, targets):
            for start in STARTS[: 1 if chosen.small else None]:
                found = [outcome(targets[name], seed, start) for seed in range(seeds)]
                words = Counter(one.word for one in found)
                warnings = Counter(warning for one in found for warning in one.warnings)
                counts = {word: words[word] for word in WORDS}
                rows.append(
                    {"target": name, "list": listed, "start": start, **counts}
                    | {"warnings": warnings}
                )
                numbers = " | ".join(map(str, counts.values()))
                told = ", ".join(f"{name} {count}" for name, count in warnings.most_common())
                print(f"| {name} ({listed}) | {start} | {numbers} | {told} |", flush=True)
    return record("reliability", rows, judge(rows), chosen)


if __name__ == "__main__":
    raise SystemExit(main())

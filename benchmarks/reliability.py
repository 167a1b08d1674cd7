"""Whether `db.sample(target)` is ever wrong without saying so.

    python -m benchmarks.reliability [--seeds N] [--small] [--save] [--strict]

Every target whose moments are known, from starts with standard deviation 0.1, 1 and 10, for many
seeds (20 unless told). A run is

- *right* if every mean is within 0.2 standard deviations and every standard deviation within 25 %;
- *silent* if it is wrong and has no warning; *cautious* if it is right and has one;
- *warned* if it is wrong and says so; *failed* if it raised.

The constants of the warm-up were chosen on the targets of the first list and then frozen; those of
the second were run with them as they are.
"""

import sys

import numpy as np

import driftbridge as db
from benchmarks.gaussians import rotated
from benchmarks.timing import machine, options, record, verdict
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


def outcome(target, seed: int, start: float) -> str:
    """One run, in one word."""
    mean, variance = (np.asarray(part) for part in (target.truth.mean, target.truth.variance))
    sd = np.sqrt(variance)
    try:
        draws = db.sample(
            target,
            key=seed,
            init=Gathering(UniformStart(start * 3**0.5)),
            num_samples=db.Until(max_draws=MOST_DRAWS),
        )
    except (ValueError, RuntimeError):
        return "failed"
    x = draws.positions
    right = np.all(np.abs(x.mean((0, 1)) - mean) < 0.2 * sd)
    right &= np.all(np.abs(x.std((0, 1)) / sd - 1) < 0.25)
    if right:
        return "cautious" if draws.warnings else "right"
    return "warned" if draws.warnings else "silent"


def main() -> int:
    seeds = 20
    if "--seeds" in sys.argv:
        at = sys.argv.index("--seeds")
        seeds = int(sys.argv[at + 1])
        del sys.argv[at : at + 2]
    chosen = options(__doc__)
    seeds = 1 if chosen.small else seeds
    words = ("right", "cautious", "warned", "failed", "silent")
    print(machine(), end="\n\n")
    print(f"| target | start sd | {' | '.join(words)} |\n" + "| --- " * 7 + "|")
    rows, silent = [], 0
    for listed, targets in (("chosen on", CHOSEN_ON), ("held out", HELD_OUT)):
        for name, target in targets.items():
            for start in STARTS[: 1 if chosen.small else None]:
                found = [outcome(target, seed, start) for seed in range(seeds)]
                counts = {word: found.count(word) for word in words}
                silent += counts["silent"]
                rows.append({"target": name, "list": listed, "start": start, **counts})
                numbers = " | ".join(str(counts[word]) for word in words)
                print(f"| {name} ({listed}) | {start} | {numbers} |", flush=True)
    print(f"\nwrong without a warning: {silent}, at most 0: {verdict(silent == 0)}")
    return record("reliability", rows, silent == 0, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

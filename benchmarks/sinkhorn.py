"""Sinkhorn beside ott-jax's, on normal clouds, float32: time to the same marginal error.

Both minimise the same problem: ours with the cost `|x - y|^2 / 2`, ott's on points over sqrt(2).
Times have no compilation in them; what ours takes is printed apart. A peer that stalls, or ends at
its most iterations, counts with the time that it used, and its row says so.

    python -m benchmarks.sinkhorn [--small] [--save] [--strict] [--rows TEXT]
    python -m benchmarks.sinkhorn --large        n = 200 000, and the cost against n
"""

import time
from dataclasses import asdict, dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import (
    Row,
    at_least,
    at_most,
    machine,
    paired,
    parser_of,
    record,
    table,
    unjudged,
    verdict,
)
from driftbridge.runtime.compilations import Compilations
from driftbridge.transport.driving import solve_form
from driftbridge.transport.iterate import Settings, first
from driftbridge.transport.prepared import prepared
from driftbridge.transport.sinkhorn import sinkhorn

PEER_ITERATIONS = 20_000


@dataclass(frozen=True)
class Case:
    """A problem, the error to reach, and the least ratio of the peer's time to ours."""

    n: int
    dim: int
    share: float
    tolerance: float
    bar: float | None
    rounds: int

    @property
    def label(self) -> str:
        return f"n {self.n}, d {self.dim}, eps {self.share:g}, to {self.tolerance:g}"


CASES = [
    *(Case(n, d, s, 1e-3, 3, 5) for n in (1000, 4000) for d in (2, 10) for s in (0.05, 0.005)),
    *(Case(n, 50, 0.05, 1e-3, 2, 5) for n in (1000, 4000)),
    *(Case(n, 50, 0.005, 1e-3, None, 3) for n in (1000, 4000)),
    *(Case(1000, d, 0.005, 1e-5, 4, 3) for d in (2, 10)),
    *(Case(4000, d, 0.005, 1e-5, 10, 1) for d in (2, 10)),
]
SMALL = [Case(200, 2, 0.05, 1e-3, 3, 2), Case(200, 2, 0.005, 1e-5, 4, 1)]


def clouds(n: int, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Two normal clouds of unequal widths about zero, and the mean of `|x - y|^2 / 2`."""
    rng = np.random.default_rng(n + dim)
    x, y = rng.normal(size=(n, dim)), rng.normal(size=(n, dim)) * np.linspace(0.5, 1.5, dim)
    x, y = x - x.mean(0), y - y.mean(0)
    mean = (np.sum(x**2) + np.sum(y**2)) / n / 2
    return x.astype(np.float32), y.astype(np.float32), float(mean)


def peer(x, y, epsilon: float, tolerance: float, most: int):
    """ott's solver as a blocking program; it returns iterations, error and whether it converged."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ott.geometry import pointcloud
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn as solver

    @jax.jit
    def run(x, y, epsilon):
        geometry = pointcloud.PointCloud(x, y, epsilon=epsilon)
        solve = solver.Sinkhorn(threshold=tolerance, max_iterations=most)
        out = solve(linear_problem.LinearProblem(geometry))
        return out.f, out.g, out.n_iters, out.errors, out.converged

    x, y = jnp.asarray(x / np.sqrt(2)), jnp.asarray(y / np.sqrt(2))
    return lambda: jax.block_until_ready(run(x, y, epsilon))


def time_case(case: Case, most: int) -> Row:
    """Both to the same error; our plan's error is measured on its potentials."""
    x, y, mean = clouds(case.n, case.dim)
    epsilon = case.share * mean
    found = {}

    def ours():
        found["ours"] = sinkhorn(x, y, epsilon=epsilon, tolerance=case.tolerance)
        jax.block_until_ready(found["ours"].error)

    run = peer(x, y, epsilon, case.tolerance, most)

    def theirs():
        found["ott"] = run()

    compilations = Compilations()
    ours()
    compiled = compilations.seconds
    timings = paired({"ours": ours, "ott": theirs}, pairs=case.rounds, control=())
    plan, (_, _, iterations, _, converged) = found["ours"], found["ott"]
    words = f"ours {plan.method} {int(plan.num_iterations)}, ott {int(iterations)}"
    if not plan.converged:
        words += f", OURS {plan.status} at {float(plan.error):.1e}"
    if not bool(converged):
        words += ", ott NOT CONVERGED"
    label = f"{case.label} ({words}; compiled {compiled:.1f} s)"
    if case.bar is None:
        return unjudged(label, timings, "ott", "ours")
    row = at_least(case.bar, label, timings, "ott", "ours")
    return Row(**{**vars(row), "met": bool(row.met and plan.converged)})


def time_forms(n: int, dim: int) -> tuple[list[Row], list[str]]:
    """The blocked form beside the stored one, and its time for an entry and iteration."""
    x, y, mean = clouds(n, dim)
    problem = prepared(x, y, None, None, 0.05 * mean, None).problem
    zeros = np.zeros(len(problem.a), np.float32)
    lines, programs = [], {}
    many, few = (15, 5) if n > 1000 else (40, 10)
    for form in ("stored", "blocked"):
        start = first(zeros, zeros, np.float32(0.05 * mean), needs_log=form == "blocked")

        def run(count, form=form, start=start):
            settings = Settings(np.float32(0), np.int32(count))
            return jax.block_until_ready(solve_form(form, problem, start, settings))

        run(1)
        programs[form] = partial(run, many)
        programs[f"{form}, few"] = partial(run, few)
        settings = Settings(np.float32(0), np.int32(1))
        needs = solve_form.lower(form, problem, start, settings).compile().memory_analysis()
        mebibytes = needs.temp_size_in_bytes / 2**20
        lines.append(f"n {n}, d {dim}: the {form} form holds {mebibytes:.0f} MiB")
    timings = paired(programs, pairs=5, control=())
    row = at_most(1.25, f"n {n}, d {dim}: blocked over stored, {many} iterations", timings,
                  "blocked", "stored", many)  # fmt: skip
    seconds = timings.median("blocked") - timings.median("blocked, few")
    nanoseconds = 1e9 * seconds / (many - few) / n**2
    lines.append(
        f"n {n}, d {dim}: {nanoseconds:.2f} ns an entry and iteration, bar <= 1.2: "
        f"{verdict(nanoseconds <= 1.2)}"
    )
    return [row], lines


def check_digits(n: int) -> list[str]:
    """The dual of float32 beside float64's, Newton's float64 marginals, and epsilon .001."""
    lines = []
    for dim, share in ((2, 0.05), (2, 0.005), (10, 0.005)):
        x, y, mean = clouds(n, dim)
        single = sinkhorn(x, y, epsilon=share * mean, tolerance=1e-5)
        with jax.enable_x64(True):
            double = sinkhorn(
                x.astype(np.float64), y.astype(np.float64), epsilon=share * mean, tolerance=1e-9
            )
            error, reached = float(double.error), double.status
            apart = abs(single.dual - double.dual) / double.dual
        lines.append(
            f"n {n}, d {dim}, eps {share:g}: float32 ({single.status}, {float(single.error):.1e}) "
            f"is {apart:.1e} from float64's dual, bar 1e-6: {verdict(apart <= 1e-6)}; float64 "
            f"marginals {error:.1e} ({reached}), bar 1e-9: {verdict(error <= 1e-9)}"
        )
    x, y, mean = clouds(n, 2)
    plan = sinkhorn(x, y, epsilon=0.001 * mean)
    finite = bool(np.all(np.isfinite(plan.f)) and np.all(np.isfinite(plan.g)))
    lines.append(
        f"n {n}, d 2, eps 0.001: {plan.status} at {float(plan.error):.1e} after "
        f"{int(plan.num_iterations)} iterations, {'finite' if finite else 'NOT FINITE'}; the cost "
        f"lies in [{plan.certificate.lower:.6f}, {plan.certificate.upper:.6f}]"
    )
    return lines


def cost_against_n(sizes) -> list[str]:
    """Time and memory against the number of points, d = 10, epsilon .05 to 1e-3, blocked."""
    import resource

    lines = [
        "| n | s | iterations | error | s an iteration | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for n in sizes:
        x, y, mean = clouds(n, 10)
        if n <= 10_000:  # compile first
            sinkhorn(x, y, epsilon=0.05 * mean, method="blocked")
        start = time.perf_counter()
        plan = sinkhorn(x, y, epsilon=0.05 * mean, method="blocked", progress=n > 10_000)
        seconds, count = time.perf_counter() - start, int(plan.num_iterations)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.append(
            f"| {n} | {seconds:.3g} | {count} | {float(plan.error):.1e} | {seconds / count:.3g} | "
            f"{peak:.2f} |"
        )
    return lines


def main(arguments=None) -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--large", action="store_true", help="n = 200 000 and the curve up to it")
    parser.add_argument("--rows", default="", help="only rows whose label holds this text")
    chosen = parser.parse_args(arguments)
    if chosen.large:
        sizes = [200, 400] if chosen.small else [1000, 5000, 20_000, 50_000, 100_000, 200_000]
        print(machine(), *cost_against_n(sizes), sep="\n")
        return 0
    cases = [case for case in (SMALL if chosen.small else CASES) if chosen.rows in case.label]
    rows = []
    for case in cases:
        rows.append(time_case(case, 200 if chosen.small else PEER_ITERATIONS))
        print(f"{rows[-1].label}: {rows[-1].ratio.median:.3g}", flush=True)
    lines = []
    if not chosen.rows:
        forms, lines = time_forms(300 if chosen.small else 10_000, 10)
        rows += forms
        lines += check_digits(200 if chosen.small else 1000)
    print(machine(), table(rows), *lines, sep="\n\n")
    met = all(row.met is not False for row in rows) and not any("MISSED" in line for line in lines)
    return record("sinkhorn", [*(asdict(row) for row in rows), {"lines": lines}], met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

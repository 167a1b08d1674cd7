"""Gradients until the chains' law is near the target: kernels at their best, from a common start.

    python -m benchmarks.w2_gradients [--small] [--save] [--strict]

256 chains start from reference draws stretched threefold from the posterior mean, every kernel in
coordinates of unit posterior variances. After each of sixty counts of gradients the distance is the
exact one-dimensional 2-Wasserstein distance to reference draws, its square averaged over the
coordinates, or over the principal directions (each in its own standard deviation), less what as
many exact draws would show. A cell is the least number of gradients of a chain, over a grid of step
sizes and one more number of each kernel, from which on the distance stays below the level: the
kernels are compared, not their tuning, which is not counted. "-" means that no choice on the grid
stays below within the budget.

Targets: a rotated Gaussian (d = 50, condition 100; exact draws), and the logistic regression of the
breast cancer data (d = 31; reference draws of a long run of `db.sample`). `--save` writes the table
and the figure of `docs/gradients-to-w2.md` too.
"""

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

import driftbridge as db
from benchmarks.gaussians import rotated
from benchmarks.gradient import data
from benchmarks.timing import machine, options, record
from benchmarks.w2_kernels import BIASED, METHODS, Kernel, Method
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers import (
    DiagonalMetric,
)
from driftbridge.samplers.preconditioned import WhitenedTarget
from driftbridge.targets import GLM
from driftbridge.targets.base import Target

LEVELS = (0.5, 0.2, 0.1)
PARTS = ("coordinates", "directions")
CELLS = [(part, level) for part in PARTS for level in LEVELS]
STRETCH = 3.0
MARKS = 60
PAGE = Path(__file__).parents[1] / "docs" / "gradients-to-w2.md"


class Problem(NamedTuple):
    """A target in standard coordinates, the start, and the reference to compare with.

    - `directions`: coordinates, and behind them the principal directions over their standard
      deviations.
    - `quantiles`: of the reference along them, means of as many cells as there are chains.
    - `floor`: mean squared distance of as many exact draws, over coordinates and over principal
      directions.
    - `resolution`: the distance that twice the standard deviation of such squares amounts to.
    """

    target: Target
    start: Float[np.ndarray, "chains dim"]
    directions: Float[np.ndarray, "dim all"]
    quantiles: Float[np.ndarray, "chains all"]
    floor: Float[np.ndarray, " two"]
    resolution: Float[np.ndarray, " two"]


def squared_distances(
    positions: Float[Array, "chains dim"],
    directions: Float[Array, "dim all"],
    quantiles: Float[Array, "chains all"],
) -> Float[Array, " two"]:
    """`W2^2` to the law with these quantiles along each direction, means of either half of them.

    Between equally many points it is the mean square of differences in order; with the mean of the
    reference in each of as many cells it is that less a constant, which the floor lacks too.
    """
    along = jnp.matmul(positions, directions, precision=lax.Precision.HIGHEST)
    squares = jnp.mean((jnp.sort(along, axis=0) - quantiles) ** 2, axis=0)
    return jnp.mean(squares.reshape(2, -1), axis=1)


def problem(target: Target, draws: np.ndarray, chains: int, repeats: int = 100) -> Problem:
    """The target standardised by reference draws `(n, dim)`."""
    mean, sd = draws.mean(0, dtype=np.float64), draws.std(0, dtype=np.float64)
    standard = (draws - mean) / sd
    values, vectors = np.linalg.eigh(np.cov(standard.T).reshape(target.dim, target.dim))
    directions = np.concatenate([np.eye(target.dim), vectors / np.sqrt(values)], axis=1)
    cells = len(standard) // chains
    ordered = np.sort((standard @ directions)[: cells * chains], axis=0)
    quantiles = ordered.reshape(chains, cells, -1).mean(1)
    directions, quantiles = directions.astype(np.float32), quantiles.astype(np.float32)
    rng = np.random.default_rng(0)
    some = standard[rng.integers(len(standard), size=(repeats, chains))].astype(np.float32)
    measure = jax.jit(jax.vmap(squared_distances, (0, None, None)))
    exact = np.asarray(measure(some, directions, quantiles), np.float64)
    metric = DiagonalMetric(sd.astype(np.float32))
    whitened = WhitenedTarget(target.dim, target, jnp.asarray(mean, jnp.float32), metric)
    return Problem(
        target=cast_floating(whitened, jnp.float32),
        start=(STRETCH * some[0]).astype(np.float32),
        directions=directions,
        quantiles=quantiles,
        floor=exact.mean(0),
        resolution=np.sqrt(2 * exact.std(0)),
    )


def problems(small: bool, chains: int) -> Iterator[tuple[str, Problem]]:
    """The targets with their reference draws."""
    target = rotated(np.geomspace(1, 100.0, 20 if small else 50))
    draws = target.truth.sample(jax.random.key(7), chains * 200)
    yield "Gaussian", problem(target, np.asarray(draws), chains)
    if small:
        return
    X, y = data()
    regression = GLM(X, y, "logistic", "gaussian")
    with contextlib.redirect_stderr(io.StringIO()):
        found = db.sample(regression, key=7, num_samples=2000)
    yield (
        "logistic regression",
        problem(regression, found.positions.reshape(-1, X.shape[1]), chains),
    )


@partial(jax.jit, static_argnames="kernel")
def trace(kernel: Kernel, target, chosen, positions, reference, marks, key):
    """Gradients of a chain and squared distances when each of `marks` gradients is reached."""
    first, key = jax.random.split(key)

    def until(carry, mark):
        def one(carry):
            states, spent, t = carry
            states, cost = kernel.step(target, chosen, states, t, jax.random.fold_in(key, t))
            return states, spent + cost, t + 1

        carry = lax.while_loop(lambda carry: carry[1] < mark, one, carry)
        return carry, (carry[1], squared_distances(carry[0].position, *reference))

    start = kernel.init(target, chosen, positions, first)
    zero = jnp.zeros((), positions.dtype)
    return lax.scan(until, (start, zero, jnp.zeros((), jnp.int32)), marks)[1]


class Trace(NamedTuple):
    """Distances over gradients, `(marks, 2)`, with one choice of numbers."""

    choice: tuple[float, ...]
    gradients: np.ndarray
    distance: np.ndarray

    def reaches(self, level: float, part: int = 0) -> float:
        """Gradients from which on the distance stays below the level; infinite if it never does.

        `part` 0 is the distance over coordinates, 1 that over principal directions.
        """
        above = np.flatnonzero(~(self.distance[:, part] <= level))
        first = 0 if len(above) == 0 else int(above[-1]) + 1
        return float(self.gradients[first]) if first < len(self.gradients) else np.inf


def traces(method: Method, where: Problem, budget: int, small: bool) -> list[Trace]:
    """Every choice of the grid."""
    marks = jnp.asarray(np.geomspace(4, budget, MARKS), jnp.float32)
    start, directions, quantiles = map(
        jnp.asarray, (where.start, where.directions, where.quantiles)
    )
    kernel = method.kernel(where.target)
    grid = [part[::3] if small else part for part in method.grid]
    found = []
    for choice in product(*grid):
        chosen = cast_floating(method.make(*choice), jnp.float32)
        gradients, squares = trace(
            kernel, where.target, chosen, start, (directions, quantiles), marks, jax.random.key(3)
        )
        squares = np.asarray(squares, np.float64) - where.floor
        # NaN, where chains have diverged, stays NaN and is below no level.
        distance = np.sqrt(np.where(squares < 0, 0, squares))
        found.append(Trace(choice, np.asarray(gradients), distance))
    return found


def cell(value: float) -> str:
    """A count of gradients, or a dash."""
    return "-" if np.isinf(value) else f"{value:.0f}"


def cells_of(row: dict) -> str:
    """The cells of a row, those of coordinates first."""
    return " | ".join(cell(row["gradients"][f"{part} {level}"]) for part, level in CELLS)


def table(rows: list[dict]) -> str:
    """Rows as Markdown."""
    heads = "".join(f" {part} {level} |" for part, level in CELLS)
    lines = [f"| target | kernel | exact |{heads}", "| --- " * (3 + len(CELLS)) + "|"]
    for row in rows:
        lines.append(f"| {row['target']} | {row['kernel']} | {row['exact']} | {cells_of(row)} |")
    return "\n".join(lines)


def order(trace: Trace) -> tuple[float, float]:
    """Sooner at the middle level comes first; of those that never get there, the nearest."""
    return trace.reaches(LEVELS[1]), float(np.nan_to_num(trace.distance[-1, 0], nan=np.inf))


def compare(name: str, where: Problem, budget: int, small: bool) -> Iterator[tuple[dict, Trace]]:
    """One row a method, with the trace that is first at the middle level."""
    for kernel, method in METHODS.items():
        begin = time.perf_counter()
        found = traces(method, where, budget, small)
        least = {
            f"{part} {level}": min(t.reaches(level, PARTS.index(part)) for t in found)
            for part, level in CELLS
        }
        best = min(found, key=order)
        row = {
            "target": name,
            "kernel": kernel,
            "exact": "no" if kernel in BIASED else "yes",
            "gradients": least,
            "choice": best.choice,
            "seconds": time.perf_counter() - begin,
        }
        yield row, best


def figure(shown: dict[str, dict[str, Trace]]) -> str:
    """The traces as SVG, one panel a target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(shown), figsize=(5.2 * len(shown), 4.2), sharey=True)
    for panel, (target, found) in zip(np.atleast_1d(panels), shown.items(), strict=True):
        for i, (kernel, trace) in enumerate(found.items()):
            style = "--" if kernel.startswith("BlackJAX") else "-"
            shown_above = np.maximum(trace.distance[:, 0], 0.02)
            panel.loglog(trace.gradients, shown_above, style, label=kernel, color=f"C{i % 10}")
        panel.set(title=target, xlabel="gradients of a chain", ylim=(0.02, 5))
        for level in LEVELS:
            panel.axhline(level, color="0.8", linewidth=0.8, zorder=0)
    np.atleast_1d(panels)[0].set_ylabel("W2, in posterior sd")
    np.atleast_1d(panels)[-1].legend(fontsize=7)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return out.getvalue()


def write_page(rows: list[dict], shown: dict[str, dict[str, Trace]], notes: str) -> None:
    """The page of the documentation, and its figure beside it."""
    text = f"""# Gradients until the law is right

`python -m benchmarks.w2_gradients --save` wrote this page. Its numbers are gradients of one chain,
warm-up not counted: each kernel had its step size and one more number chosen from a grid, for each
cell anew, and all ran in coordinates of unit posterior variances. 256 chains start from draws of
the posterior stretched threefold from its mean. The distance is the one-dimensional 2-Wasserstein
distance in posterior standard deviations, root mean square over the coordinates, and over the
principal directions of the posterior, less what exact draws would show. "-": no choice on the grid
stayed below within the budget. A kernel that is not exact keeps a bias of its step size, which is
largest in the narrowest directions; coordinates hardly show those.

{table(rows)}

{notes}

![Distance over gradients, each kernel at its best for W2 = {LEVELS[1]}](gradients-to-w2.svg)
"""
    PAGE.write_text(text, encoding="utf-8")
    PAGE.with_suffix(".svg").write_text(figure(shown), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(__doc__, arguments)
    chains, budget = (64, 60) if chosen.small else (256, 800)
    print(machine(), end="\n\n")
    rows, shown, notes = [], {}, []
    for name, where in problems(chosen.small, chains):
        notes.append(
            f"{name}: distances below {where.resolution.max():.2f} are noise of {chains} chains; "
            f"budget {budget} gradients."
        )
        shown[name] = {}
        for row, best in compare(name, where, budget, chosen.small):
            rows.append(row)
            shown[name][row["kernel"]] = best
            print(
                f"{name} | {row['kernel']} | {cells_of(row)} | {row['seconds']:.0f} s", flush=True
            )
    print("", table(rows), "", *notes, sep="\n")
    if chosen.save and not chosen.small:
        write_page(rows, shown, "\n".join(f"- {note}" for note in notes))
    for row in rows:  # JSON has no infinity
        row["gradients"] = {k: v if np.isfinite(v) else None for k, v in row["gradients"].items()}
    return record("w2_gradients", rows, True, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

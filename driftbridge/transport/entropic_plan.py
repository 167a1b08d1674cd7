"""The result of Sinkhorn's algorithm: a plan held as two potentials."""

import functools
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import as_key
from driftbridge.transport import plan_products
from driftbridge.transport.account import Account
from driftbridge.transport.certificate import Certificate, certified
from driftbridge.transport.entropic_problem import Problem
from driftbridge.transport.iterate import STATUS
from driftbridge.transport.padding import bucket, padded, trimmed
from driftbridge.transport.prepared import Prepared


@dataclass(frozen=True, eq=False)
class Solved(Account):
    """How a plan came about."""

    method: str
    reason: str


class EntropicPlan(eqx.Module):
    """The plan `P_ij = a_i b_j exp((f_i + g_j - c(x_i, y_j)) / epsilon)`, never stored.

    It minimises `<C, P> + epsilon KL(P | a b)` as far as `error` says.

    - `x`, `y`: points `(n, dim)` and `(m, dim)`, as given.
    - `error`: the larger of `sum_i |sum_j P_ij - a_i|` and `sum_j |sum_i P_ij - b_j|`.
    - `num_iterations`: sweeps over the matrix, those of annealing and of the conjugate gradients of
      a Newton finish included.
    - `status`: "converged"; "stalled", when the error stopped falling above the tolerance, which at
      small epsilon is where the rounding of float32 ends it; or "max_iterations".
    - `method`, `reason`: the form that was taken, and why.
    - `f`, `g`: potentials `(n,)` and `(m,)`; of the centred points they have `sum a f = sum b g`.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "m dim"]
    problem: Problem
    # Potentials of the padded problem, whose points are centred each at its own mean.
    centred_f: Float[Array, " rows"]
    centred_g: Float[Array, " columns"]
    centres: tuple[Float[Array, " dim"], Float[Array, " dim"]]
    error: Float[Array, ""]
    num_iterations: Int[Array, ""]
    code: Int[Array, ""]
    account: Solved = eqx.field(static=True)

    @property
    def epsilon(self) -> Float[Array, ""]:
        return self.problem.epsilon

    @property
    def a(self) -> Float[Array, " n"]:
        return trimmed(self.problem.a, len(self.x))

    @property
    def b(self) -> Float[Array, " m"]:
        return trimmed(self.problem.b, len(self.y))

    @property
    def f(self) -> Float[Array, " n"]:
        shift = self._shift(np.asarray(self.x) - np.asarray(self.centres[0]), 1)
        return jax.device_put(np.asarray(self.centred_f)[: len(self.x)] + shift)

    @property
    def g(self) -> Float[Array, " m"]:
        shift = self._shift(np.asarray(self.y) - np.asarray(self.centres[1]), -1)
        return jax.device_put(np.asarray(self.centred_g)[: len(self.y)] + shift)

    @property
    def method(self) -> str:
        return self.account.method

    @property
    def reason(self) -> str:
        return self.account.reason

    @property
    def status(self) -> str:
        return STATUS[int(self.code)]

    @property
    def converged(self) -> bool:
        return self.status == "converged"

    @functools.cached_property
    def dual(self) -> float:
        """`<a, f> + <b, g> - epsilon (sum P - 1)`: a lower bound of the regularised cost."""
        f, g = np.asarray(self.centred_f, np.float64), np.asarray(self.centred_g, np.float64)
        a, b = np.asarray(self.problem.a, np.float64), np.asarray(self.problem.b, np.float64)
        mass = float(np.sum(self._marginals[0], dtype=np.float64))
        delta = np.subtract(*(np.asarray(c, np.float64) for c in self.centres))
        excess = float(self.epsilon) * (mass - 1)
        return float(a @ f + b @ g - excess + delta @ delta / 2)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """Bounds of the cost without regularisation, `min <C, P>`: see `Certificate`.

        The plan itself has its marginals only up to `error`, so its cost is none.
        """
        lower, upper = certified(self.problem, self.centred_f, self.centred_g)
        delta = np.subtract(*(np.asarray(c, np.float64) for c in self.centres))
        shift = delta @ delta / 2
        return Certificate(float(lower + shift), float(upper + shift))

    @property
    def cost(self) -> float:
        """`<C, P>` of the plan rounded to feasibility: `certificate.upper`."""
        return self.certificate.upper

    def marginals(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """Row sums and column sums of the plan."""
        rows, columns = self._marginals
        return jax.device_put(rows[: len(self.x)]), jax.device_put(columns[: len(self.y)])

    def pull(self, values: Any) -> Float[Array, "..."]:
        """`P v` for `v` of shape `(m, ...)`, at memory that grows with the points alone."""
        return self._product(plan_products.pull, values, len(self.y), len(self.x))

    def push(self, values: Any) -> Float[Array, "..."]:
        """`P^T v` for `v` of shape `(n, ...)`."""
        return self._product(plan_products.push, values, len(self.x), len(self.y))

    def barycentric(self) -> Float[Array, "n dim"]:
        """The mean of `y` given each `x`: `sum_j P_ij y_j / sum_j P_ij`."""
        return self.conditional_mean(self.x)

    def conditional_mean(self, x: Any) -> Float[Array, "k dim"]:
        """The entropic map at any points: the mean of `y` under the plan's conditional law.

        `T(x) = sum_j y_j w_j(x)`, `w_j` proportional to `b_j exp((g_j - c(x, y_j)) / epsilon)`.

        **Arguments:** `x`: `(k, dim)`.

        Pooladian and Niles-Weed (2021), arXiv 2109.12004, definition 1.
        """
        problem, count = self._at(x, 0)
        mean = plan_products.conditional_mean(problem, self.centred_g, problem.y)
        return jax.device_put(np.asarray(mean)[:count] + np.asarray(self.centres[1]))

    def f_at(self, x: Any) -> Float[Array, " k"]:
        """`f` at any points: `-epsilon log sum_j b_j exp((g_j - c(x, y_j)) / epsilon)`.

        **Arguments:** `x`: `(k, dim)`.
        """
        problem, count = self._at(x, 0)
        values = np.asarray(plan_products.softmin(problem, self.centred_g))[:count]
        return jax.device_put(values + self._shift(np.asarray(problem.x)[:count], 1))

    def g_at(self, y: Any) -> Float[Array, " k"]:
        """`g` at any points: `-epsilon log sum_i a_i exp((f_i - c(x_i, y)) / epsilon)`.

        **Arguments:** `y`: `(k, dim)`.
        """
        problem, count = self._at(y, 1)
        values = np.asarray(plan_products.softmin(problem, self.centred_f))[:count]
        return jax.device_put(values + self._shift(np.asarray(problem.x)[:count], -1))

    def sample(
        self, key: int | Key[Array, ""], n: int
    ) -> tuple[Int[Array, " k"], Int[Array, " k"]]:
        """`n` independent pairs of the plan: rows of `x` and of `y`.

        Rows have their weights `a`, and columns the plan's conditional law, whatever the error.
        """
        size = bucket(n)
        rows, columns = plan_products.draw(self.problem, self.centred_g, as_key(key), size)
        return trimmed(rows, n), trimmed(columns, n)

    def matrix(self) -> Float[Array, "n m"]:
        """The plan as a matrix, for small problems."""
        matrix = np.asarray(plan_products.matrix(self.problem, self.centred_f, self.centred_g))
        return jax.device_put(matrix[: len(self.x), : len(self.y)])

    @functools.cached_property
    def _marginals(self) -> tuple[np.ndarray, np.ndarray]:
        sums = plan_products.marginals(self.problem, self.centred_f, self.centred_g)
        return np.asarray(sums[0]), np.asarray(sums[1])

    def _product(self, function, values, num_in: int, num_out: int):
        values = np.asarray(values, self.problem.x.dtype)
        if values.shape[:1] != (num_in,):
            raise ValueError(f"Expected values for {num_in} points; got shape {values.shape}.")
        columns = padded(values.reshape(num_in, -1), bucket(num_in))
        result = function(self.problem, self.centred_f, self.centred_g, columns)
        return jax.device_put(np.asarray(result)[:num_out].reshape(num_out, *values.shape[1:]))

    def _at(self, points: Any, side: int) -> tuple[Problem, int]:
        """The problem with other rows; with `side` 1, of its transpose."""
        problem = self.problem.transposed() if side else self.problem
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != self.x.shape[1]:
            raise ValueError(
                f"Expected points of shape (k, {self.x.shape[1]}); got {points.shape}."
            )
        dtype = problem.x.dtype
        centred = points.astype(dtype) - np.asarray(self.centres[side])
        size = bucket(len(points))
        weights = jax.device_put(np.zeros(size, dtype))
        rows = jax.device_put(padded(centred, size))
        return Problem(rows, problem.y, weights, problem.b, problem.epsilon, problem.cost), len(
            points
        )

    @classmethod
    def of(cls, ready: Prepared, f, g, error, iterations, code, account: Solved, **more: Any):
        """The plan of a prepared problem, from potentials of it and what is known of them."""
        return cls(
            x=ready.points[0],
            y=ready.points[1],
            problem=ready.problem,
            centred_f=f,
            centred_g=g,
            centres=ready.centres,
            error=error,
            num_iterations=iterations,
            code=code,
            account=account,
            **more,
        )

    def _shift(self, centred: np.ndarray, sign: int) -> np.ndarray:
        """What a potential of the centred points lacks: the cost of the distance of the means.

        `|x - y|^2 / 2 = |x' - y'|^2 / 2 + x'.d - y'.d + |d|^2 / 2` with `d` the difference of the
        means; each potential takes its own term and half of the last.
        """
        delta = np.subtract(*(np.asarray(c, np.float64) for c in self.centres))
        shift = sign * (np.asarray(centred, np.float64) @ delta) + delta @ delta / 4
        return shift.astype(self.problem.x.dtype)

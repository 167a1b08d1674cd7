"""Rectified flows between Gaussians with exact moments: what rounds of them tend to."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

Matrix = Float[np.ndarray, "dim dim"]
# The velocity's matrix from `Cov(x1 - x0, x_t)` and `Cov(x_t)`.
Rule = Callable[[Matrix, Matrix], Matrix]


class LinearRound(NamedTuple):
    """One round between centred Gaussians: the map `x -> matrix x`, and `E |x1 - x0|^2` of it."""

    matrix: Matrix
    cost: float


def rectified_gaussians(
    source: ArrayLike,
    target: ArrayLike,
    rounds: int = 4,
    *,
    cross: ArrayLike | None = None,
    num_steps: int = 50,
) -> list[LinearRound]:
    """Rectified flow between centred Gaussians, without sampling or training.

    The lines between pairs have `x_t` of covariance `S_t` and `A_t = Cov(x1 - x0, x_t)`, and the
    velocity is the conditional mean `v(t, x) = A_t S_t^{-1} x`. Exact after one round where the
    covariances commute; else it stays above the optimal cost from the first round on.

    **Arguments:**

    - `source`, `target`: covariances, positive definite.
    - `rounds`: `>= 1`.
    - `cross`: `Cov(x0, x1)` of the first pairs, None for independent ones.
    - `num_steps`: of the classical Runge-Kutta method.

    **Returns:** a `LinearRound` of each round.

    Liu, Gong and Liu (2023), arXiv 2209.03003, algorithm 1.
    """
    return _rounds(source, target, rounds, cross, num_steps, regression)


def c_rectified_gaussians(
    source: ArrayLike,
    target: ArrayLike,
    rounds: int = 4,
    *,
    cross: ArrayLike | None = None,
    num_steps: int = 50,
) -> list[LinearRound]:
    """c-rectified flow between centred Gaussians, for the cost `|d|^2 / 2`.

    As `rectified_gaussians`, with the best gradient field: `v(t, x) = G_t x` with `G_t` symmetric,
    `G_t S_t + S_t G_t = A_t + A_t'`. The rounds tend to the optimal map.

    Liu (2022), arXiv 2209.14577, equation 15.
    """
    return _rounds(source, target, rounds, cross, num_steps, projection)


def regression(moved: Matrix, covariance: Matrix) -> Matrix:
    """`A S^{-1}`."""
    return np.linalg.solve(covariance, moved.T).T


def projection(moved: Matrix, covariance: Matrix) -> Matrix:
    """The symmetric `G` with `G S + S G = A + A'`, in the eigenvectors of `S` a division."""
    values, vectors = np.linalg.eigh(covariance)
    inner = vectors.T @ (moved + moved.T) @ vectors
    return vectors @ (inner / (values[:, None] + values[None, :])) @ vectors.T


def _rounds(source, target, rounds: int, cross, num_steps: int, rule: Rule) -> list[LinearRound]:
    first, last = (np.asarray(c, np.float64) for c in (source, target))
    if first.shape != last.shape or first.ndim != 2 or first.shape[0] != first.shape[1]:
        raise ValueError(
            f"covariances must be (dim, dim) of one dim; got {first.shape} and {last.shape}."
        )
    if rounds < 1 or num_steps < 1:
        raise ValueError(f"rounds and num_steps must be at least 1; got {rounds}, {num_steps}.")
    pairs = np.zeros_like(first) if cross is None else np.asarray(cross, np.float64)
    found = []
    for _ in range(rounds):
        matrix = _flow(first, last, pairs, num_steps, rule)
        pairs = first @ matrix.T
        image = matrix @ pairs
        cost = float(np.trace(first) + np.trace(image) - 2 * np.trace(pairs))
        found.append(LinearRound(matrix, cost))
    return found


def _flow(first: Matrix, last: Matrix, pairs: Matrix, num_steps: int, rule: Rule) -> Matrix:
    """The matrix to which `dM/dt = B_t M` takes the identity, by Runge-Kutta's method."""

    def velocity(t: float, matrix: Matrix) -> Matrix:
        covariance = (1 - t) ** 2 * first + t**2 * last + t * (1 - t) * (pairs + pairs.T)
        moved = (1 - t) * (pairs.T - first) + t * (last - pairs)
        return rule(moved, covariance) @ matrix

    matrix, h = np.eye(len(first)), 1 / num_steps
    for k in range(num_steps):
        t = k * h
        a = velocity(t, matrix)
        b = velocity(t + h / 2, matrix + h / 2 * a)
        c = velocity(t + h / 2, matrix + h / 2 * b)
        d = velocity(t + h, matrix + h * c)
        matrix = matrix + h / 6 * (a + 2 * b + 2 * c + d)
    return matrix

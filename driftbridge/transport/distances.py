"""Distances of two weighted samples: exact, Gaussian and entropic transport.

Their neighbours: `one_dimensional`, `sliced`, `maximum_mean_discrepancy`.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from driftbridge.transport.exact import optimal_coupling
from driftbridge.transport.measures import mean_cost, moments, two_samples

# Epsilon as a share of the mean cost, unless given.
SHARE = 0.05


def wasserstein(
    x: Any,
    y: Any,
    p: float | int = 2,
    *,
    a: Any = None,
    b: Any = None,
    max_bytes: float = 2.0**32,
) -> float:
    """Wasserstein distance of two weighted samples, solved exactly.

    `W_p^p = min sum_ij P_ij |x_i - y_j|^p` over plans with row sums `a` and column sums `b`.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`; a vector is one column.
    - `p`: `>= 1`.
    - `a`, `b`: weights, each summing to one; equal if None.
    - `max_bytes`: memory that the solver may use.

    **Returns:** the distance, in the units of the data. Between two samples of one law it is not
    zero: `compare` gives that floor.

    **Raises:** as `optimal_coupling`, which takes the same arguments and also gives the plan, the
    solver and a certificate.
    """
    found = optimal_coupling(x, y, a, b, p, certificate=False, max_bytes=max_bytes)
    if found.status != "optimal":
        raise RuntimeError(f"{found.method} of {found.shape} points ended with: {found.status}.")
    return found.distance


def bures_wasserstein(
    mean0: ArrayLike,
    covariance0: ArrayLike,
    mean1: ArrayLike,
    covariance1: ArrayLike,
) -> float:
    """Wasserstein-2 distance of two Gaussians.

    `W_2^2 = |m0 - m1|^2 + tr(C0 + C1 - 2 (C0^{1/2} C1 C0^{1/2})^{1/2})`, the last term in the form
    `min_U |C0^{1/2} - C1^{1/2} U|_F^2` over orthogonal `U`, which cancels nothing.

    **Arguments:**

    - `mean0`, `mean1`: `(dim,)`.
    - `covariance0`, `covariance1`: `(dim, dim)`, symmetric and positive semidefinite.

    **Raises:** `ValueError` for shapes that do not fit, or a covariance with a negative eigenvalue.

    Bhatia, Jain and Lim (2019), Expositiones Mathematicae 37, equations (1) and (3).
    """
    means = np.asarray(mean0, np.float64), np.asarray(mean1, np.float64)
    roots = _root(covariance0, "covariance0"), _root(covariance1, "covariance1")
    dim = means[0].shape[0] if means[0].ndim == 1 else -1
    if means[1].shape != (dim,) or any(root.shape != (dim, dim) for root in roots):
        shapes = [np.shape(v) for v in (mean0, covariance0, mean1, covariance1)]
        raise ValueError(f"Expected shapes (d,), (d, d), (d,), (d, d); got {shapes}.")
    left, _, right = np.linalg.svd(roots[1] @ roots[0])
    difference = roots[0] - roots[1] @ (left @ right)
    return float(np.sqrt(np.sum((means[0] - means[1]) ** 2) + np.sum(difference**2)))


def gaussian_wasserstein(x: Any, y: Any, *, a: Any = None, b: Any = None) -> float:
    """`bures_wasserstein` of the means and covariances of two samples: a lower bound of `W_2`.

    The covariances are those of the empirical laws (divided by `n`), for which the bound holds.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`; a vector is one column.
    - `a`, `b`: weights, each summing to one; equal if None.

    Gelbrich (1990), Mathematische Nachrichten 147, theorem 2.1.
    """
    source, target = two_samples(x, y, a, b)
    return bures_wasserstein(*moments(source), *moments(target))


class SinkhornDivergence(NamedTuple):
    """Sinkhorn divergence of two samples, and how well it was solved.

    - `value`: `S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2`, in the units of the cost.
    - `epsilon`: the regularisation, for the cost `|x - y|^2 / 2`.
    - `status`: of the three problems in this order, "converged" or what else happened.
    - `lower`, `upper`: bounds of `W_2(x, y)` itself, certified by the first problem's potentials
      and its plan made feasible.
    """

    value: float
    epsilon: float
    status: tuple[str, str, str]
    lower: float
    upper: float

    @property
    def distance(self) -> float:
        """`(2 S)^(1/2)`, in the units of the data: it tends to `W_2` as epsilon tends to zero."""
        return float(np.sqrt(2 * max(self.value, 0.0)))

    @property
    def converged(self) -> bool:
        """Whether all three problems reached the tolerance."""
        return all(status == "converged" for status in self.status)


def sinkhorn_divergence(
    x: Any,
    y: Any,
    epsilon: float | None = None,
    *,
    a: Any = None,
    b: Any = None,
    tolerance: float = 1e-4,
    max_iterations: int = 10_000,
) -> SinkhornDivergence:
    """Entropic transport cost without its bias: zero for equal laws, positive for others.

    `S = OT_eps(x, y) - OT_eps(x, x) / 2 - OT_eps(y, y) / 2`, where `OT_eps` is the least value of
    `<C, P> + epsilon KL(P | a b)` for `C = |x - y|^2 / 2`.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`; a vector is one column.
    - `epsilon`: `> 0`; 5 % of the mean cost if None.
    - `a`, `b`: weights, each summing to one; equal if None.
    - `tolerance`, `max_iterations`: of each Sinkhorn problem.

    **Returns:** a `SinkhornDivergence`; look at its `status`.

    **Raises:** `ValueError` for arguments outside their range, or if all points are equal and no
    epsilon is given.

    Feydy et al. (2019), arXiv 1810.08278, equation (3) and theorem 1.
    """
    from driftbridge.transport.sinkhorn import sinkhorn

    source, target = two_samples(x, y, a, b)
    if epsilon is None:
        epsilon = SHARE * mean_cost(source, target)
        if epsilon == 0:
            raise ValueError("all points are equal, so epsilon has no scale: give epsilon.")
    plans = [
        sinkhorn(
            first.points, second.points, epsilon=epsilon, a=first.weights, b=second.weights,
            tolerance=tolerance, max_iterations=max_iterations,
        )
        for first, second in ((source, target), (source, source), (target, target))
    ]  # fmt: skip
    lower, upper = plans[0].certificate
    across, within_x, within_y = (plan.dual for plan in plans)
    return SinkhornDivergence(
        value=float(across - (within_x + within_y) / 2),
        epsilon=float(epsilon),
        status=(plans[0].status, plans[1].status, plans[2].status),
        lower=float(np.sqrt(2 * max(lower, 0.0))),
        upper=float(np.sqrt(2 * max(upper, 0.0))),
    )


def _root(covariance: ArrayLike, name: str) -> Float[np.ndarray, "dim dim"]:
    """Symmetric square root."""
    matrix = np.asarray(covariance, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be a square matrix; got shape {matrix.shape}.")
    # eigh reads one triangle: an asymmetric matrix would pass unseen. Covariances may have been
    # computed in float32.
    allowed = 1e-6 * len(matrix) * np.max(np.abs(matrix))
    if np.max(np.abs(matrix - matrix.T)) > allowed:
        raise ValueError(f"{name} must be symmetric; it differs from its transpose.")
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -allowed:
        raise ValueError(
            f"{name} must be positive semidefinite; its least eigenvalue is {values[0]:.3g}."
        )
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

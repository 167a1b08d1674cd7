"""Goodness of fit: whether points are from a target of which the score is known."""

from typing import Any

import numpy as np
from jaxtyping import Array, Key

from driftbridge.targets.base import Target
from driftbridge.targets.stein import KSD, centred_and_scores, check, stein_statistics
from driftbridge.transport.points import as_rows


def goodness_of_fit(
    target: Target,
    x: Any,
    *,
    kernel: str = "imq",
    beta: float = -0.5,
    scale: float | None = None,
    num_bootstrap: int = 500,
    chunk: int = 512,
    key: int | Key[Array, ""] = 0,
) -> KSD:
    """Test whether independent points are from a target, by the kernel Stein discrepancy.

    `KSD^2 = E u(x, y)`, with the score `s` of the target and

    `u(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + div_x grad_y k`.

    Nothing is drawn from the target, and its normalisation is not
    needed. The p-value compares the V-statistic with those of random signs, one for each point
    (wild bootstrap). Draws of a Markov chain are dependent: `samplers.kernel_stein_discrepancy`
    takes them, with signs for blocks of draws. Time grows as `n^2`, memory as `n chunk`.

    **Arguments:**

    - `x`: independent points `(n, dim)`.
    - `kernel`: "imq", `(1 + r^2 / scale^2)^beta`, or "gaussian", `exp(-r^2 / (2 scale^2))`.
    - `beta`: in (-1, 0), for "imq".
    - `scale`: `> 0`, in the coordinates of `x`. None is the median distance of points that differ.
    - `num_bootstrap`: random vectors of signs; the least p-value is `1 / (num_bootstrap + 1)`.
    - `chunk`: rows of the matrix `u` held at once.
    - `key`: seed of the signs.

    **Returns:** a `KSD`.

    **Raises:** `ValueError` for arguments outside their range, fewer than two points, points that
    are all equal, or a point or score that is not finite.

    Chwialkowski, Strathmann and Gretton (2016), arXiv 1602.02964, section 4; Liu, Lee and Jordan
    (2016), arXiv 1602.03253.
    """
    check(kernel, beta, scale, 1, num_bootstrap, chunk)
    points = np.asarray(as_rows(x, "x", target.dim))
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(
            f"x must have shape (n, {target.dim}) with n at least 2; got {points.shape}."
        )
    z, scores = centred_and_scores(target, points, chunk)
    return stein_statistics(
        z, scores, kernel=kernel, beta=beta, scale=scale, num_bootstrap=num_bootstrap, chunk=chunk,
        key=key,
    )  # fmt: skip

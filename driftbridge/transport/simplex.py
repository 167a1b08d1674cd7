"""Weights on the simplex with a bound on their effective sample size."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class BoundedSimplex(NamedTuple):
    """Weights `w >= 0` with sum one and effective sample size `1 / sum w^2 >= ess_min`.

    A convex set: the simplex cut by a ball about zero.

    - `ess_min`: in [1, n]; 1 is the whole simplex, `n` the equal weights alone.
    """

    ess_min: float

    def project(self, v: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The nearest weights to `v`.

        With the multiplier of the ball they are the projection to the simplex of `t v`, for the
        largest `t <= 1` that meets the bound.
        """
        return self._projected(v, 1.0)

    def least(self, slope: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The weights with the least `slope . w`: projections of `-t slope` for the largest `t`."""
        return self._projected(-slope, np.inf)

    def tilt(self, logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The weights of least `KL(w | exp logits)`: all positive.

        With multipliers `c` of the sum and `m` of the squares they solve
        `log w + m w = logits + c`, so `m w = omega(logits + c + log m)` with Wright's function.
        """
        from scipy.optimize import brentq
        from scipy.special import wrightomega

        logits = logits - np.max(logits)
        weights = np.exp(logits)
        weights /= weights.sum()
        if effective_size(weights) >= self.ess_min:
            return weights
        if self.ess_min >= len(logits):
            return np.full(len(logits), 1 / len(logits))

        def at(log_m):
            m = np.exp(log_m)
            # Sum of omega(logits + s) is convex and increasing in s: Newton from below overshoots
            # once and then falls to the root.
            s = log_m
            for _ in range(100):
                omega = wrightomega(logits + s)
                step = (omega.sum() - m) / np.sum(omega / (1 + omega))
                s -= step
                if abs(step) < 1e-13 * (1 + abs(s)):
                    break
            weights = wrightomega(logits + s)
            return weights / weights.sum()

        # Where the bound holds: m w is then far below 1, or far above the range of the logits.
        low, high = -10.0, np.log(len(logits) * (10 + np.ptp(logits)) * 1e6)
        root = brentq(lambda log_m: effective_size(at(log_m)) - self.ess_min, low, high, xtol=1e-12)
        return at(root)

    def _projected(self, v: Float[np.ndarray, " n"], largest: float) -> Float[np.ndarray, " n"]:
        """The projection of `t v` to the simplex, for the largest `t <= largest` that is allowed.

        It is `(t v - theta)_+`. While its `k` largest entries are positive, with their sum `S` and
        sum of squares `Q`, `theta = (t S - 1) / k` and `sum w^2 = t^2 (Q - S^2 / k) + 1 / k`. That
        holds up to `t (S - k v_k) = 1`; the sum of squares grows with `t`, and `k` falls.
        """
        v = v - np.max(v)
        ordered = np.sort(v)[::-1]
        k = np.arange(1, len(v) + 1)
        sums = np.cumsum(ordered)
        spread = np.maximum(np.cumsum(ordered**2) - sums**2 / k, 0)
        reach = np.maximum.accumulate(np.maximum(sums - k * ordered, 0))
        t = largest
        # Sum of squares at the t where the k-th entry reaches zero; ties at the top never do.
        with np.errstate(divide="ignore", invalid="ignore"):
            squares = np.where(reach > 0, spread / reach**2, 0) + 1 / k
        beyond = np.flatnonzero(squares > 1 / self.ess_min)
        if len(beyond):
            last = beyond[-1]
            room = max(1 / self.ess_min - 1 / k[last], 0)
            t = min(t, np.sqrt(room / spread[last]) if spread[last] > 0 else largest)
        if np.isinf(t):
            weights = (v == 0).astype(np.float64)
        else:
            count = np.count_nonzero(t * reach < 1)
            weights = np.maximum(t * v - (t * sums[count - 1] - 1) / count, 0)
        return weights / weights.sum()


def effective_size(weights: Float[np.ndarray, " n"]) -> float:
    """`(sum w)^2 / sum w^2`: as many equal weights give a mean of the same variance."""
    return float(np.sum(weights) ** 2 / np.sum(weights**2))

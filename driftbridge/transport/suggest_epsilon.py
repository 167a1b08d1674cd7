"""A volatility for the draws of a learned interpolant, of what its two networks miss."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.fields import Field, column
from driftbridge.transport.interpolant_losses import VelocityLoss
from driftbridge.transport.interpolant_map import StochasticInterpolantMap

Squares = tuple[Float[Array, ""], Float[Array, ""]]

# Share of a mean square that is told from rounding.
ROUNDING = 1e-10


def suggest_epsilon(
    fitted: StochasticInterpolantMap,
    reference: StochasticInterpolantMap,
    coupling: Coupling,
    key: int | Key[Array, ""] = 0,
    num_pairs: int = 4096,
) -> float:
    """The volatility that makes a bound on the error of the draws least: a heuristic.

    A path of volatility `e` whose velocity is off by `db` and whose score by `ds` has
    `KL(target || draws) <= E int |db|^2 / e + e |ds|^2 / 4 dt`, least at
    `e = 2 sqrt(E |db|^2 / E |ds|^2)`. What the networks miss is not known; it is taken as what
    separates them from a reference, in the mean over held-out pairs, and where the score is not
    trusted in full it counts by as much as it is. With the truth as reference the two means are the
    excesses of the losses; with a network they are too small by what it misses itself.

    **Arguments:**

    - `fitted`: a map that draws.
    - `reference`: a better one between the same laws: of a larger network on more data, or of a
      known field.
    - `coupling`: pairs of held-out points, coupled as those of the fit.
    - `key`, `num_pairs`: of the points.

    **Returns:** a number for `dataclasses.replace(fitted, epsilon=...)`.

    **Raises:** `ValueError` where the reference is the map itself.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), theorem 23 and remark 24.
    """
    found = _apart(fitted, reference, coupling, as_key(key), num_pairs)
    (velocity, of_velocity), (score, of_score) = ((float(a), float(b)) for a, b in found)
    if not (velocity > ROUNDING * of_velocity and score > ROUNDING * of_score):
        raise ValueError(
            "the reference is as the map: its mean squared distances are "
            f"{velocity:.3g} in velocity and {score:.3g} in score."
        )
    return 2 * math.sqrt(velocity / score)


@eqx.filter_jit
def _apart(
    fitted: Any, reference: Any, coupling: Coupling, key: Key[Array, ""], n: int
) -> tuple[Squares, Squares]:
    """Mean squares of what separates velocities, and scores, in the frame of the first map, each
    beside that of the second map's own."""
    field: Field = fitted.field
    batch = VelocityLoss(coupling, fitted.frame, field.schedule, field.gamma).batch(key, n)
    t, u = batch.t, batch.path + column(field.gamma(batch.t)) * batch.z
    x = fitted.frame.leave(t, u)

    def squares(velocity, score):
        # A velocity goes through the frame as a vector does, a score as its dual.
        inner = jax.jvp(lambda x: fitted.frame.enter(t, x), (x,), (velocity,))[1]
        dual = jax.vjp(lambda u: fitted.frame.leave(t, u), u)[1](score)[0]
        return jnp.mean(inner**2), jnp.mean(column(field.trust(t)) * dual**2)

    velocity, score = reference._velocity(x, t), reference._score(x, t)
    apart = squares(fitted._velocity(x, t) - velocity, fitted._score(x, t) - score)
    own = squares(velocity, score)
    return (apart[0], own[0]), (apart[1], own[1])

"""A volatility for the draws of a learned interpolant, of what its two networks miss."""

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
    of_velocity, of_score = _apart(fitted, reference, coupling, as_key(key), num_pairs)
    if not (float(of_velocity) > 0 and float(of_score) > 0):
        raise ValueError(
            "the reference is as the map: its mean squared distances are "
            f"{float(of_velocity):.3g} in velocity and {float(of_score):.3g} in score."
        )
    return 2 * float(jnp.sqrt(of_velocity / of_score))


@eqx.filter_jit
def _apart(
    fitted: Any, reference: Any, coupling: Coupling, key: Key[Array, ""], n: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean squares of what separates velocities, and scores, in the frame of the first."""
    field: Field = fitted.field
    batch = VelocityLoss(coupling, fitted.frame, field.schedule, field.gamma).batch(key, n)
    t, u = batch.t, batch.path + column(field.gamma(batch.t)) * batch.z
    x = fitted.frame.leave(t, u)
    velocity = fitted._velocity(x, t) - reference._velocity(x, t)
    score = fitted._score(x, t) - reference._score(x, t)
    # A velocity goes through the frame as a vector does, a score as its dual.
    velocity = jax.jvp(lambda x: fitted.frame.enter(t, x), (x,), (velocity,))[1]
    score = jax.vjp(lambda u: fitted.frame.leave(t, u), u)[1](score)[0]
    return jnp.mean(velocity**2), jnp.mean(column(field.trust(t)) * score**2)

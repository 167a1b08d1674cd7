"""The Wasserstein-Fisher-Rao distance between points with mass, and the paths that attain it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

# Least angle, at which a path is a straight line to the last digits of float32.
SMALLEST = 1e-3


class Travelled(NamedTuple):
    """Points with mass on their way: places, masses, velocities and growths `(d log m / dt)`."""

    place: Float[Array, "n dim"]
    mass: Float[Array, " n"]
    velocity: Float[Array, "n dim"]
    growth: Float[Array, " n"]


def wfr_diracs(
    x: Float[ArrayLike, "*n dim"],
    y: Float[ArrayLike, "*n dim"],
    source_mass: Float[ArrayLike, "*n"] | float,
    target_mass: Float[ArrayLike, "*n"] | float,
    delta: float,
) -> Float[np.ndarray, "*n"]:
    """The squared Wasserstein-Fisher-Rao distance between a mass at `x` and a mass at `y`.

    `2 delta^2 (m0 + m1 - 2 sqrt(m0 m1) cos(min(|x - y| / (2 delta), pi / 2)))`, the least value of
    `int (|v|^2 + delta^2 g^2) m / 2 dt` with velocity `v` and growth `g`. Beyond the distance
    `pi delta` nothing is moved: one mass fades and the other grows. It tends to
    `m |x - y|^2 / 2` for equal masses and large `delta`.

    **Arguments:** `x`, `y`: `(dim,)`, or `(n, dim)` for many; masses `>= 0`; `delta > 0`.

    Chizat, Peyré, Schmitzer and Vialard (2018), "An interpolating distance between optimal
    transport and Fisher-Rao metrics", theorem 4.1; Liero, Mielke and Savaré (2018), section 8.
    """
    first, second = (np.asarray(m, np.float64) for m in (source_mass, target_mass))
    if not 0 < delta < np.inf or np.any(first < 0) or np.any(second < 0):
        raise ValueError(
            f"delta must be positive and finite, and masses at least 0; got delta = {delta}, "
            f"masses {source_mass} and {target_mass}."
        )
    moved = np.asarray(y, np.float64) - np.asarray(x, np.float64)
    angle = np.minimum(np.linalg.norm(moved, axis=-1) / (2 * delta), np.pi / 2)
    # As squares, which keep their digits where masses and places are close.
    roots = (np.sqrt(first) - np.sqrt(second)) ** 2
    turned = 4 * np.sqrt(first * second) * np.sin(angle / 2) ** 2
    return np.asarray(2 * delta**2 * (roots + turned))


def travelled(
    x: Float[Array, "n dim"],
    y: Float[Array, "n dim"],
    source_mass: Float[Array, " n"],
    target_mass: Float[Array, " n"],
    t: Float[Array, " n"],
    delta: Float[Array, ""],
) -> Travelled:
    """Masses on the shortest paths from `x` to `y`, at times `t`.

    In the plane with radius `sqrt(m)` and the angle `|x_t - x| / (2 delta)` the path is a chord:

    `m_t = (1 - t)^2 m0 + t^2 m1 + 2 t (1 - t) sqrt(m0 m1) cos a`, `a = |y - x| / (2 delta)`,
    `tan a_t = t sqrt(m1) sin a / ((1 - t) sqrt(m0) + t sqrt(m1) cos a)`,
    `x_t = x + (y - x) a_t / a`.

    Masses must be positive, one of the two at least. Pairs farther apart than `pi delta` take the
    path of the angle `pi / 2`, stretched so that it ends at `y`: no shortest one.

    Liero, Mielke and Savaré (2018), arXiv 1508.07941, section 8.2; Chizat et al. (2018), section 4.
    """
    moved = y - x
    distance = jnp.sqrt(jnp.sum(moved**2, axis=1))
    angle = jnp.clip(distance / (2 * delta), SMALLEST, np.pi / 2)
    start, end = jnp.sqrt(source_mass), jnp.sqrt(target_mass)
    along = (1 - t) * start + t * end * jnp.cos(angle)
    across = t * end * jnp.sin(angle)
    mass = along**2 + across**2
    share = jnp.arctan2(across, along) / angle
    # Equal areas in equal times: mass times the rate of the angle is constant.
    rate = start * end * jnp.sin(angle) / angle / mass
    slopes = along * (end * jnp.cos(angle) - start) + across * end * jnp.sin(angle)
    return Travelled(x + share[:, None] * moved, mass, rate[:, None] * moved, 2 * slopes / mass)

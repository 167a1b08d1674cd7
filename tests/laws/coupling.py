"""One Brownian path, and the noises that make samplers of any step size follow it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from driftbridge.samplers.kinetic import KLMC, RandomizedMidpointKinetic
from driftbridge.samplers.langevin import LMC, RandomizedMidpoint
from driftbridge.samplers.ornstein_uhlenbeck import fly, free_flight
from driftbridge.samplers.splitting import ABOBA, BAOAB, BUB, UBU
from tests.laws.linear_probe import phase_of


class BrownianPath(NamedTuple):
    """A path on a fine grid of spacing `fine`, arrays of shape `(times, paths)`.

    - `w`: the Brownian motion of the overdamped dynamics.
    - `x`, `v`: the free flight from `(0, 0)` of the kinetic dynamics, driven by its own motion.
    """

    fine: float
    friction: float
    w: jax.Array
    x: jax.Array
    v: jax.Array

    def increment(self, i, j):
        """Standard normal of the Brownian motion from time `i` to time `j`, arrays of indices."""
        w = jnp.take_along_axis
        return (w(self.w, j, 0) - w(self.w, i, 0)) / jnp.sqrt((j - i) * self.fine)

    def normals(self, i, j):
        """The two standard normals of the free flight from time `i` to time `j`."""
        take = jnp.take_along_axis
        flight = free_flight(self.friction, (j - i) * self.fine)
        velocity = take(self.v, i, 0)
        nv = take(self.v, j, 0) - flight.decay * velocity
        nx = take(self.x, j, 0) - take(self.x, i, 0) - flight.e1 * velocity
        return nv / flight.velocity_noise, (nx - flight.slope * nv) / flight.position_noise


def brownian_path(key, fine, friction, num_steps, num_paths) -> BrownianPath:
    """Draw a path of `num_steps` fine steps."""
    z = jax.random.normal(key, (3, num_steps, num_paths))
    flight = free_flight(friction, fine)

    def move(phase, z):
        phase = fly(*phase, flight, *z)
        return phase, phase

    zero = jnp.zeros(num_paths)
    _, (x, v) = jax.lax.scan(move, (zero, zero), (z[0], z[1]))
    w = jnp.cumsum(jnp.sqrt(fine) * z[2], axis=0)
    start = jnp.zeros((1, num_paths))
    return BrownianPath(fine, friction, *(jnp.concatenate([start, leaf]) for leaf in (w, x, v)))


def grid(path, pieces):
    """Indices of the beginning and end of every step of `pieces` fine steps, for every path."""
    steps = (path.w.shape[0] - 1) // pieces
    i = jnp.broadcast_to(jnp.arange(steps).reshape(-1, 1) * pieces, (steps, path.w.shape[1]))
    return i, i + pieces


def interior(key, i, pieces):
    """A random time within each step: an odd multiple of the fine step, as the midpoint rule.

    With 16 nodes at the smallest step its error is below a thousandth of the fluctuation.
    """
    return i + 2 * jax.random.randint(key, i.shape, 0, pieces // 2) + 1


def lmc(path, pieces, key):
    return jnp.expand_dims(path.increment(*grid(path, pieces)), 2)


def randomized_midpoint(path, pieces, key):
    i, j = grid(path, pieces)
    k = interior(key, i, pieces)
    before, after = path.increment(i, k), path.increment(k, j)
    noise = RandomizedMidpoint().noise(key, jnp.zeros(1))
    return noise._replace(
        uniform=(k - i) / pieces,
        before=jnp.expand_dims(before, 2),
        after=jnp.expand_dims(after, 2),
    )


def whole(path, pieces, key):
    return jnp.expand_dims(jnp.stack(path.normals(*grid(path, pieces)), axis=2), 3)


def velocity_alone(path, pieces, key):
    return whole(path, pieces, key)[:, :, :1]


def halves(path, pieces, key):
    i, j = grid(path, pieces)
    k = i + pieces // 2
    return jnp.expand_dims(jnp.stack([*path.normals(i, k), *path.normals(k, j)], axis=2), 3)


def randomized_midpoint_kinetic(path, pieces, key):
    i, j = grid(path, pieces)
    k = interior(key, i, pieces)
    noise = RandomizedMidpointKinetic().noise(key, jnp.zeros(1))
    return noise._replace(
        uniform=(k - i) / pieces,
        before=jnp.expand_dims(jnp.stack(path.normals(i, k), axis=2), 3),
        after=jnp.expand_dims(jnp.stack(path.normals(k, j), axis=2), 3),
    )


# Noise with leading axes `(steps, paths)` that follows a path in steps of `pieces` fine steps.
# Words with O follow the velocity's increment; OBABO, whose merged O straddles two steps, is BAOAB
# seen at another time and has no entry.
FOLLOW = {
    LMC: lmc,
    RandomizedMidpoint: randomized_midpoint,
    KLMC: whole,
    RandomizedMidpointKinetic: randomized_midpoint_kinetic,
    BAOAB: velocity_alone,
    ABOBA: velocity_alone,
    UBU: halves,
    BUB: whole,
}


def end(sampler, target, start, noises):
    """Phases at the end, shape `(paths, 1 or 2)`, from phases `start` of shape `(paths, 2)`."""

    def begin(phase):
        state = sampler.init(target, phase[:1])
        if "velocity" not in state._fields:
            return state
        return state._replace(velocity=phase[1:])

    def step(states, noise):
        return jax.vmap(lambda s, n: sampler.step(target, s, n)[0])(states, noise), None

    return jax.vmap(phase_of)(jax.lax.scan(step, jax.vmap(begin)(start), noises)[0])


def root_mean_square(phases):
    """Over paths, of the distance in phase space."""
    return float(np.sqrt(np.mean(np.sum(np.asarray(phases) ** 2, axis=1))))

"""The stationary density of an implemented step in one dimension, on a grid, without Monte Carlo.

Given all noise but the last normal, a step is Gaussian in that normal: its mean and spread are
read off the implemented step, and the transition matrix is their mixture by quadrature.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import roots_hermitenorm

from driftbridge.samplers.langevin import LMC


def quadrature(sampler, uniforms=10, normals=16):
    """Weights and noises over all but the last normal, and how to set that normal."""
    if isinstance(sampler, LMC):
        return np.ones(1), jnp.zeros((1, 1)), lambda noise, z: jnp.full_like(noise, z)
    u, wu = np.polynomial.legendre.leggauss(uniforms)
    z, wz = roots_hermitenorm(normals)
    weights = np.outer(wu / 2, wz / wz.sum()).reshape(-1)
    noise = sampler.noise(jax.random.key(0), jnp.zeros(1))
    noises = noise._replace(
        uniform=jnp.repeat(jnp.asarray((u + 1) / 2), normals),
        before=jnp.tile(jnp.asarray(z), uniforms).reshape(-1, 1),
        after=jnp.zeros((uniforms * normals, 1)),
    )
    return weights, noises, lambda noise, z: noise._replace(after=jnp.full(1, z))


def transition_matrix(sampler, target, grid):
    """Probabilities from each grid point to each, rows normalised."""
    weights, noises, last = quadrature(sampler)

    @jax.jit
    def outcomes(z):
        def one(x, noise):
            state = sampler.init(target, jnp.expand_dims(x, 0))
            return sampler.step(target, state, last(noise, z))[0].position[0]

        return jax.vmap(lambda x: jax.vmap(lambda n: one(x, n))(noises))(jnp.asarray(grid))

    mean = np.asarray(outcomes(0.0))
    spread = np.asarray(outcomes(1.0)) - mean
    matrix = np.zeros((len(grid), len(grid)))
    for q, weight in enumerate(weights):
        distance = (grid[None, :] - mean[:, q, None]) / spread[:, q, None]
        matrix += weight * np.exp(-(distance**2) / 2) / spread[:, q, None]
    return matrix / matrix.sum(axis=1, keepdims=True)


def stationary_density(matrix, spacing):
    """The invariant density of a transition matrix."""
    size = len(matrix)
    system = np.vstack([matrix.T - np.eye(size), np.ones(size)])[1:]
    weights = np.linalg.solve(system, np.eye(size)[-1])
    return weights / spacing


def wasserstein(grid, density, other):
    """W2 between two densities on a grid, by inverting cumulative distributions."""
    first, second = (CubicSpline(grid, p).antiderivative() for p in (density, other))
    inner = (first(grid) > 1e-11) & (first(grid) < 1 - 1e-11)
    x, level = grid[inner], first(grid[inner])
    slope, y = CubicSpline(grid, other), grid[inner]
    for _ in range(20):
        y = y - np.clip((second(y) - level) / slope(y), -0.05, 0.05)
    return np.sqrt(np.trapezoid(density[inner] * (y - x) ** 2, x))

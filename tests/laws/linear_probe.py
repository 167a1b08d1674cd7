"""The linear probe: exact stationary moments of an implemented step, without Monte Carlo.

On a quadratic target one step is affine in phase `(x, v)` and in the normals of its noise,
`phase' = A phase + B z`, where `A` and `B` depend on what else is random (a uniform, events).
The stationary second moment solves `S = E[A S A' + B B']`.
"""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers.kinetic import unset
from tests.laws.targets import Quadratic


class Affine(NamedTuple):
    """One step on a quadratic target, at one value of what is random beside the normals."""

    drift: np.ndarray
    noise: np.ndarray


def phase_of(state):
    """`(x, v)`, or `(x,)` for a state without velocity."""
    return jnp.concatenate(
        [state.position, *([state.velocity] if "velocity" in state._fields else [])]
    )


def state_of(sampler, target, phase, is_fresh=False):
    """The state at a phase; what it carries (scores) is that of its position."""
    state = sampler.init(target, phase[: target.dim])
    if "velocity" in state._fields:
        velocity = phase[target.dim :]
        state = state._replace(velocity=jnp.where(is_fresh, unset(velocity), velocity))
    return state


def split_noise(noise, dim):
    """The normals of a noise as one vector, and how to put such a vector back.

    Normals are the floating leaves whose last axis is the dimension; other leaves stay.
    """
    leaves, treedef = jax.tree.flatten(noise)
    is_normal = [
        jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.shape[-1:] == (dim,) for leaf in leaves
    ]
    vector, unravel = ravel_pytree(
        [leaf for leaf, yes in zip(leaves, is_normal, strict=True) if yes]
    )

    def join(vector):
        normals = iter(unravel(vector))
        return treedef.unflatten(
            [next(normals) if yes else leaf for leaf, yes in zip(leaves, is_normal, strict=True)]
        )

    return vector, join


def affine(sampler, noise, curvature=1.0, is_fresh=False) -> Affine:
    """`A` and `B` of the implemented step by differentiation."""
    target = Quadratic(curvature)
    normals, join = split_noise(noise, target.dim)

    def step(phase, normals):
        state = state_of(sampler, target, phase, is_fresh)
        return phase_of(sampler.step(target, state, join(normals))[0])

    size = 1 + sampler.facts.kinetic
    return Affine(*jax.jacfwd(step, (0, 1))(jnp.zeros(size), jnp.zeros_like(normals)))


def nodes(sampler, count=40):
    """Weights, and noises with a leading axis, over all that is random beside the normals.

    A field `uniform` is integrated by Gauss-Legendre, `is_event` by summing over all patterns.
    """
    noise = sampler.noise(jax.random.key(0), jnp.zeros(1))
    fields = getattr(noise, "_fields", ())
    if "uniform" in fields:
        x, w = np.polynomial.legendre.leggauss(count)
        return w / 2, repeat(noise, count)._replace(uniform=jnp.asarray((x + 1) / 2))
    if "is_event" in fields:
        (k,) = noise.is_event.shape
        patterns = np.array(list(itertools.product([False, True], repeat=k)))
        weights = np.prod(np.where(patterns, 1 / k, 1 - 1 / k), axis=1)
        return weights, repeat(noise, len(patterns))._replace(is_event=jnp.asarray(patterns))
    return np.ones(1), repeat(noise, 1)


def repeat(tree, count):
    """The tree with a new leading axis of `count` equal entries."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


@eqx.filter_jit
def affine_at(sampler, curvature, noises, is_fresh) -> Affine:
    """The affine maps at noises with a leading axis."""
    return jax.vmap(lambda noise: affine(sampler, noise, curvature, is_fresh))(noises)


def probe(sampler, curvature=1.0, is_fresh=False) -> tuple[np.ndarray, Affine]:
    """Weights and the affine maps at all nodes, with a leading axis."""
    weights, noises = nodes(sampler)
    # Numbers as arrays: one compiled program for all step sizes.
    numbers = cast_floating((sampler, curvature), float)
    maps = affine_at(*numbers, noises, jnp.asarray(is_fresh))
    return weights, Affine(*map(np.asarray, maps))


def push(weights, maps, moment):
    """The second moment after one step from a phase of second moment `moment`."""
    moved = np.einsum("q,qij,jk,qlk->il", weights, maps.drift, moment, maps.drift)
    return moved + np.einsum("q,qij,qkj->ik", weights, maps.noise, maps.noise)


def squared(weights, maps):
    """The matrix of `S -> E[A S A']` on flattened moments."""
    size = maps.drift.shape[-1]
    return np.einsum("q,qij,qkl->ikjl", weights, maps.drift, maps.drift).reshape(size**2, size**2)


def stationary(sampler, curvature=1.0) -> np.ndarray:
    """The stationary second moment of the phase."""
    weights, maps = probe(sampler, curvature)
    size = maps.drift.shape[-1]
    added = np.einsum("q,qij,qkj->ik", weights, maps.noise, maps.noise)
    solution = np.linalg.solve(np.eye(size**2) - squared(weights, maps), added.reshape(-1))
    return solution.reshape(size, size)


def mean_square_rate(sampler, curvature=1.0) -> float:
    """Factor a step by which two chains with common noise approach in mean square."""
    return float(np.max(np.abs(np.linalg.eigvals(squared(*probe(sampler, curvature))))))

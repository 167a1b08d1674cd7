"""Draws in the user's names: constrained in blocks of one size, by one program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from driftbridge.targets.base import Target

# Positions constrained at once; the last block is padded, so no number of draws compiles again.
BLOCK = 1024


@jax.jit
def _constrain(target: Target, positions):
    return jax.vmap(target.constrain)(positions)


@jax.jit
def _log_density(target: Target, positions):
    return jax.lax.map(target.log_density, positions, batch_size=64)


def _in_blocks(function, positions: np.ndarray):
    """Apply a batched function to `(chains, draws, dim)`; leaves become `(chains, draws, ...)`."""
    chains, draws, *event = positions.shape
    flat = np.reshape(positions, (chains * draws, *event))
    outs = []
    for start in range(0, len(flat), BLOCK):
        part = flat[start : start + BLOCK]
        padded = np.concatenate([part, np.repeat(part[-1:], BLOCK - len(part), axis=0)])
        out = function(jnp.asarray(padded))
        outs.append(jax.tree.map(lambda leaf, kept=part: np.asarray(leaf)[: len(kept)], out))
    return jax.tree.map(
        lambda *parts: np.concatenate(parts).reshape(chains, draws, *parts[0].shape[1:]), *outs
    )


def parameter_shapes(target: Target, dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, in the order of `target.constrain`."""
    order: list[str] = []

    def constrain(x):
        out = target.constrain(x)
        order.extend(out)  # JAX sorts the keys of a dict that leaves a program
        return out

    shapes = jax.eval_shape(constrain, jax.ShapeDtypeStruct((target.dim,), dtype))
    return {name: shapes[name] for name in order}


def constrained(target: Target, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters by name, each `(chains, draws, *event)`, of positions `(chains, draws, dim)`."""
    shapes = parameter_shapes(target, positions.dtype)
    if not positions.size:
        lead = positions.shape[:2]
        return {name: np.zeros((*lead, *s.shape), s.dtype) for name, s in shapes.items()}
    values = _in_blocks(partial(_constrain, target), positions)
    return {name: values[name] for name in shapes}


def log_densities(target: Target, positions: np.ndarray) -> np.ndarray:
    """Log density `(chains, draws)` of positions `(chains, draws, dim)`."""
    return _in_blocks(partial(_log_density, target), positions)

"""Draws in the user's names: constrained in blocks of one size, by one program."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from driftbridge.targets.base import Target

# Positions constrained at once; the last block is padded, so no number of draws compiles again.
BLOCK = 1024


class Parameters(eqx.Module):
    """Parameters in the order of `target.constrain`; JAX sorts the keys of a dict."""

    values: tuple[Any, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def named(self) -> dict[str, Any]:
        """Values by name, in order."""
        return dict(zip(self.names, self.values, strict=True))


@jax.jit
def _one(target: Target, position) -> Parameters:
    parameters = target.constrain(position)
    return Parameters(tuple(parameters.values()), tuple(parameters))


@jax.jit
def _constrain(target: Target, positions) -> Parameters:
    return jax.vmap(partial(_one, target))(positions)


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
    return jax.eval_shape(_one, target, jax.ShapeDtypeStruct((target.dim,), dtype)).named()


def constrained(target: Target, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters by name, each `(chains, draws, *event)`, of positions `(chains, draws, dim)`."""
    if not positions.size:
        lead = positions.shape[:2]
        shapes = parameter_shapes(target, positions.dtype)
        return {name: np.zeros((*lead, *s.shape), s.dtype) for name, s in shapes.items()}
    return _in_blocks(partial(_constrain, target), positions).named()


def log_densities(target: Target, positions: np.ndarray) -> np.ndarray:
    """Log density `(chains, draws)` of positions `(chains, draws, dim)`."""
    return _in_blocks(partial(_log_density, target), positions)

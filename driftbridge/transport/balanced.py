"""Coordinates in which the affine map between two samples is the identity."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from driftbridge.transport.affine import bures, gaussians
from driftbridge.transport.points import Sample


class Balanced(NamedTuple):
    """Coordinates `u = S (x - m0) / s`, `v = S^{-1} (y - m1) / s` with `S^2` the affine map.

    `x . y` becomes `s^2 u . v`, so that gradients of convex functions stay such; both samples have
    the same covariance, and the affine map is the identity.
    """

    root: Float[np.ndarray, "dim dim"]
    inverse: Float[np.ndarray, "dim dim"]
    scale: float
    source_mean: Float[np.ndarray, " dim"]
    target_mean: Float[np.ndarray, " dim"]

    @classmethod
    def of(cls, source: Sample, target: Sample, shrunk: bool) -> "Balanced":
        first, second = gaussians(source, target, shrunk)
        values, vectors = np.linalg.eigh(bures(first.covariance, second.covariance).matrix)
        roots = np.sqrt(np.maximum(values, np.finfo(np.float32).eps * values[-1]))
        root = (vectors * roots) @ vectors.T
        scale = np.sqrt(np.trace(root @ first.covariance @ root) / len(root))
        return cls(root, (vectors / roots) @ vectors.T, float(scale), first.mean, second.mean)

    def source(self, x: np.ndarray) -> np.ndarray:
        return (((x - self.source_mean) @ self.root) / self.scale).astype(x.dtype)

    def target(self, y: np.ndarray) -> np.ndarray:
        return (((y - self.target_mean) @ self.inverse) / self.scale).astype(y.dtype)

"""Rotated Gaussians that several benchmarks share."""

import numpy as np

from driftbridge.targets import DenseGaussian


def rotated(values: np.ndarray, seed: int = 0) -> DenseGaussian:
    """A centred Gaussian with these eigenvalues in random directions."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    covariance, precision = (basis * values) @ basis.T, (basis / values) @ basis.T
    numbers = (np.zeros(len(values)), covariance, precision)
    return DenseGaussian(*(np.asarray(a, np.float32) for a in numbers))

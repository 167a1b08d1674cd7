"""What stopping rules ask about a run."""

from typing import NamedTuple

import numpy as np


class Diagnosis(NamedTuple):
    """Mixing of every parameter; arrays follow `names`.

    `error` is the Monte Carlo standard error of the mean in posterior standard deviations, NaN
    where it was not asked for.
    """

    names: tuple[str, ...]
    r_hat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    error: np.ndarray

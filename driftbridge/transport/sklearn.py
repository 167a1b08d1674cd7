"""Maps between data sets as a scikit-learn transformer."""

from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from driftbridge.runtime.codec import decode, encode
from driftbridge.transport.base import Invertible, TransportMap
from driftbridge.transport.fit import fit_map

DTYPES: Any = (np.float64, np.float32)
# Points of the standard normal sample that stands for a target that is not given.
NORMAL_POINTS = 1000


class DistributionAligner(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Carries the law of `X` to the law of a target sample.

    In a pipeline `fit(X, y)` has labels as `y`; so the target is an argument of the constructor.
    Computes in float64 where `X` is float64.

    **Arguments:**

    - `target`: points `(m, n_features)` with the columns of `X`; None for a standard normal sample
      of 1000 points, which makes this a map to Gaussian coordinates.
    - `method`: as in `driftbridge.fit_map`.
    - `random_state`: a seed, a NumPy `RandomState`, or None for a fresh seed at each fit.

    **Attributes** after `fit`: `map_`, the `TransportMap`; `n_features_in_`, `feature_names_in_`.
    """

    def __init__(self, target: Any = None, method: Any = "auto", random_state: Any = 0):
        self.target = target
        self.method = method
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "DistributionAligner":
        """Fit the map from `X` to the target; `y` is not used.

        **Arguments:** `X`: `(n, n_features)`; `sample_weight`: `(n,)`, nonnegative, of any sum.
        """
        # Values that are not finite are refused by the fit, which names their row.
        X = validate_data(self, X, dtype=DTYPES, ensure_min_samples=2, ensure_all_finite=False)
        seed = _seed(self.random_state)
        with jax.enable_x64(X.dtype == np.float64):
            self.map_: TransportMap = fit_map(
                X,
                self._target(X, seed),
                self.method,
                seed,
                source_weights=_normalised(sample_weight),
            )
        return self

    def fit_pair(self, X: Any, Y: Any) -> "DistributionAligner":
        """Fit the map from `X` to `Y`, which becomes the target."""
        self.target = Y
        return self.fit(X)

    def transform(self, X: Any) -> Any:
        """The images of rows `(n, n_features)`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=DTYPES, reset=False, ensure_all_finite=False)
        with jax.enable_x64(X.dtype == np.float64):
            return self.map_(X).astype(X.dtype, copy=False)

    def inverse_transform(self, X: Any) -> Any:
        """The rows whose images are given.

        **Raises:** `NotSupported` for a method without an inverse.
        """
        check_is_fitted(self)
        if not isinstance(self.map_, Invertible):
            return self.map_.inverse(X)  # raises, naming the methods that have one
        X = check_array(X, dtype=DTYPES, ensure_all_finite=False)
        with jax.enable_x64(X.dtype == np.float64):
            return self.map_.inverse(X).astype(X.dtype, copy=False)

    def __getstate__(self) -> Any:
        state: Any = super().__getstate__()
        if "map_" in state:  # arrays of the host keep float64 where x64 is off
            return state | {"map_": encode(state["map_"])}
        return state

    def __setstate__(self, state: Any) -> None:
        if "map_" in state:
            tree, arrays = state["map_"]
            with jax.enable_x64(any(array.dtype == np.float64 for array in arrays)):
                state = state | {"map_": decode(tree, arrays)}
        super().__setstate__(state)

    def _target(self, X: np.ndarray, seed: int) -> Any:
        if self.target is None:
            size = (NORMAL_POINTS, X.shape[1])
            return np.random.default_rng(seed).normal(size=size).astype(X.dtype)
        dtype: Any = X.dtype
        target = check_array(
            self.target, dtype=dtype, ensure_min_samples=2, ensure_all_finite=False
        )
        names = getattr(self.target, "columns", None)
        mine = getattr(self, "feature_names_in_", None)
        if names is not None and mine is not None and list(names) != list(mine):
            raise ValueError(
                f"target must have the columns of X, {', '.join(mine)}; it has "
                f"{', '.join(map(str, names))}."
            )
        return target


def _seed(random_state: Any) -> int:
    """An integer seed, drawn where none is given."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _normalised(weights: Any) -> np.ndarray | None:
    if weights is None:
        return None
    values = np.asarray(weights, np.float64)
    if not values.sum() > 0:
        raise ValueError(
            "sample_weight is zero in all rows, or their sum is; give some row a positive weight."
        )
    return values / values.sum()

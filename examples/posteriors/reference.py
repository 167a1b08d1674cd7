"""Data and reference values of a posterior, from a folder of files or from the repository."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from driftbridge.samplers import diagnostics

REPOSITORY = Path(__file__).parent.parent / "data"
PROBABILITIES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Reference:
    """What is known of a posterior, parameter by parameter, each with its own standard error.

    - `parameters`: names; entries of vectors count from 1, as in Stan.
    - `mean`, `standard_deviation`, `mean_error`, `standard_deviation_error`: in that order.
    - `quantiles`, `quantile_errors`: at `PROBABILITIES`, empty where there are no draws.
    """

    parameters: list[str]
    mean: list[float]
    standard_deviation: list[float]
    mean_error: list[float]
    standard_deviation_error: list[float]
    quantiles: dict[str, list[float]]
    quantile_errors: dict[str, list[float]]


@dataclass(frozen=True)
class Posterior:
    """Data and reference of one posterior."""

    data: dict[str, Any]
    reference: Reference


def load(name: str, folder: Path | None) -> Posterior | None:
    """A posterior by its name; None where there is no folder and the repository has no such data.

    **Raises:** `FileNotFoundError` where there is a folder without it.
    """
    if folder is None:
        path = REPOSITORY / f"{name}.json"
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        data = {key: unmasked(value) for key, value in kept["data"].items()}
        return Posterior(data, Reference(**kept["reference"]))
    for source, read in (("posteriordb", from_draws), ("inference_gym", from_moments)):
        index = folder / source / "index.json"
        if not index.exists():
            raise FileNotFoundError(
                f"{folder} has no {source}/index.json: give the folder that holds posteriordb/ and "
                "inference_gym/."
            )
        for entry in json.loads(index.read_text()):
            if entry["name"] == name:
                return read(folder / source, entry)
    raise FileNotFoundError(f"no index.json in {folder} has the posterior {name}.")


def unmasked(value):
    """NaN where a list has null: JSON knows no NaN."""
    return [np.nan if v is None else v for v in value] if isinstance(value, list) else value


def from_draws(folder: Path, entry: dict[str, Any]) -> Posterior:
    """A posterior of posteriordb: data as JSON, and draws `(chain, draw, parameter)`."""
    data = json.loads((folder / entry["data"]).read_text())
    draws = np.load(folder / entry["draws"])["draws"].astype(float)
    return Posterior(data, summary(entry["parameters"], draws))


def summary(parameters: list[str], draws: np.ndarray) -> Reference:
    """Moments and quantiles of reference draws with their Monte Carlo errors."""
    quantiles = np.quantile(draws, PROBABILITIES, axis=(0, 1))
    errors = np.stack([diagnostics.mcse_quantile(draws, p) for p in PROBABILITIES])
    return Reference(
        parameters,
        draws.mean(axis=(0, 1)).tolist(),
        draws.std(axis=(0, 1)).tolist(),
        diagnostics.mcse_mean(draws).tolist(),
        diagnostics.mcse_sd(draws).tolist(),
        dict(zip(parameters, quantiles.T.tolist(), strict=True)),
        dict(zip(parameters, errors.T.tolist(), strict=True)),
    )


def from_moments(folder: Path, entry: dict[str, Any]) -> Posterior:
    """A posterior of inference_gym: arrays named `data.x`, `mean.x` and `standard_deviation.x`."""
    arrays = np.load(folder / entry["file"])
    parts = {key.split(".", 1)[1]: arrays[key] for key in arrays if key.startswith("mean.")}
    names, means, deviations = [], [], []
    for part, mean in parts.items():
        names += [f"{part}[{i + 1}]" for i in range(mean.size)] if mean.ndim else [part]
        means += np.ravel(mean).tolist()
        deviations += np.ravel(arrays[f"standard_deviation.{part}"]).tolist()
    exact = [0.0] * len(names)
    data = {key[5:]: arrays[key] for key in arrays if key.startswith("data.")}
    return Posterior(data, Reference(names, means, deviations, exact, exact, {}, {}))

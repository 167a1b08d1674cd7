"""The six posteriors: how each target is made of its data, and what its run needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import driftbridge as db
from examples.posteriors import models

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One posterior.

    - `name`: of its files.
    - `target`: makes the target from the data; arrays are float64 on the host, and computed with
      in the precision of the run.
    - `scales`: the parameters that are also compared by quantiles.
    - `float64`: whether the run needs double precision.
    - `acceptance`: the rate adjusted kernels are tuned to, None for the kernel's own.
    - `bias`: the relative bias of the variance that unadjusted kernels are tuned to.
    - `patience`: multiplies the transitions for each kept draw of the kernels named `SLOW`.
    - `radius`: starts are drawn from a cube of this half side. The mixture has a mode of no mass
      (a wide and a narrow component with one mean, log density lower by 450) that one chain in
      forty reaches from the usual cube of 2 and none of 2000 from one of 0.5.
    """

    name: str
    target: Callable[[Data], db.Target]
    scales: tuple[str, ...]
    float64: bool = False
    acceptance: float | None = None
    bias: float = 0.05
    patience: int = 1
    radius: float = 2.0


def kidscore(data: Data) -> db.Target:
    hs, iq = array(data["mom_hs"]), array(data["mom_iq"])
    predictors = np.stack([np.ones_like(iq), hs, iq, hs * iq], axis=1)
    q, r = np.linalg.qr(predictors)
    scale = np.sqrt(len(iq))
    return db.from_numpyro(
        models.regression,
        y=array(data["kid_score"]),
        design=q * scale,
        back=np.linalg.inv(r) * scale,
    )


def brownian_motion(data: Data) -> db.Target:
    observed = array(data["observed_locs"])
    hidden = np.flatnonzero(np.isnan(observed))
    start, end = hidden[0], hidden[-1] + 1
    return db.from_numpyro(
        models.brownian_motion,
        before=observed[:start],
        after=observed[end:],
        missing=int(end - start),
    )


def array(values) -> np.ndarray:
    """Numbers of a data file."""
    return np.asarray(values, float)


CASES = (
    Case(
        "eight_schools-eight_schools_noncentered",
        lambda data: db.from_numpyro(
            models.eight_schools, y=array(data["y"]), sigma=array(data["sigma"])
        ),
        scales=("tau",),
        # The tail of tau is heavy, and the larger tau the stiffer theta_raw: larger steps are
        # unstable there.
        acceptance=0.9,
        bias=0.01,
        patience=4,
    ),
    Case("kidiq-kidscore_interaction", kidscore, scales=("sigma",)),
    Case(
        "arK-arK",
        lambda data: db.from_numpyro(
            models.autoregression, y=array(data["y"]), order=int(data["K"])
        ),
        scales=("sigma",),
    ),
    Case(
        "low_dim_gauss_mix-low_dim_gauss_mix",
        lambda data: db.from_numpyro(models.normal_mixture, y=array(data["y"])),
        scales=("sigma[1]", "sigma[2]"),
        radius=0.5,
    ),
    Case(
        "gp_pois_regr-gp_pois_regr",
        lambda data: db.from_numpyro(
            models.poisson_process, x=array(data["x"]), k=array(data["k"])
        ),
        scales=("rho", "alpha"),
        float64=True,
    ),
    Case(
        "brownian_motion_unknown_scales_missing_middle_observations",
        brownian_motion,
        scales=("innovation_noise_scale", "observation_noise_scale"),
        # A funnel all the same: larger steps leave its neck out, or are unstable in it.
        acceptance=0.95,
        bias=0.01,
        patience=8,
    ),
)

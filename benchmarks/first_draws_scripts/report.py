"""What every script ends with: the moment at which it has its draws, and what they are."""

import json
import time

import numpy as np


def report(positions) -> None:
    """Print the time, then mean, standard deviation and least bulk ESS of `(chain, draw, dim)`."""
    positions = np.asarray(positions)
    now = time.time()
    from driftbridge.samplers import diagnostics

    values = positions.astype(np.float64)
    state = diagnostics.convergence(values)
    flat = values.reshape(-1, values.shape[-1])
    facts = {
        "time": now,
        "draws": len(flat),
        "ess_bulk": float(state.ess_bulk.min()),
        "r_hat": float(state.r_hat.max()),
        "mean": flat.mean(0).tolist(),
        "sd": flat.std(0).tolist(),
    }
    print(json.dumps(facts))

"""Four virtual devices against one: the same seed, chains laid over a mesh.

    python -m benchmarks.devices

On a strongly log-concave target draws agree to 1e-5 in units of the posterior sd (layouts differ in
the last bits, which contracting chains forget); on any target means and sds agree within Monte
Carlo error. A run stored on four devices is resumed on them, bit for bit.
"""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import tempfile
from pathlib import Path

import jax
import numpy as np

import driftbridge as db
from driftbridge.samplers import MALA, OBABO, JitteredHMC
from driftbridge.targets import DiagonalGaussian, EightSchoolsNonCentered

SCALES = np.array([1.0, 2.0, 0.5, 1.0])


def main() -> int:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("chains",))
    print(f"{len(jax.devices())} devices")
    gaussian = DiagonalGaussian(np.zeros(4), SCALES)
    failures = 0

    def check(what: str, value: float, bound: float) -> None:
        nonlocal failures
        failures += not value <= bound
        print(f"  {what:<58} {value:10.3g}  at most {bound:g}  {'ok' if value <= bound else 'NO'}")

    settings = {"num_samples": 512, "num_warmup": 0, "num_chains": 8}
    for sampler in (OBABO(0.5), JitteredHMC(0.5)):
        one = db.sample(gaussian, sampler, **settings)
        four = db.sample(gaussian, sampler, mesh=mesh, **settings)
        apart = np.abs(one.positions - four.positions) / SCALES
        check(f"{type(sampler).__name__}: largest difference of draws (sd)", apart.max(), 1e-5)

    settings = {"num_samples": 4000, "num_warmup": 500, "num_chains": 8}
    one = db.sample(EightSchoolsNonCentered(), JitteredHMC(), **settings).statistics
    four = db.sample(EightSchoolsNonCentered(), JitteredHMC(), mesh=mesh, **settings).statistics
    error = np.hypot(one["mcse_mean"], four["mcse_mean"])
    z = np.abs(one["mean"] - four["mean"]) / error
    check("eight schools, tuned: difference of means (standard errors)", z.max(), 5)

    with tempfile.TemporaryDirectory() as folder:
        settings = {"num_warmup": 200, "num_chains": 8, "mesh": mesh}
        whole = db.sample(gaussian, MALA(), num_samples=1000, **settings)
        db.sample(gaussian, MALA(), num_samples=400, store=Path(folder) / "run", **settings)
        resumed = db.resume(Path(folder) / "run", num_samples=1000, mesh=mesh)
        apart = np.abs(whole.positions - resumed.positions).max()
        check("resumed on four devices: largest difference of draws", apart, 0.0)
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())

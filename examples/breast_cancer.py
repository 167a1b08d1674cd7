"""Which cell measurements go with a malignant tumour: a Bayesian logistic regression.

569 tumours, 30 measurements of their cell nuclei, and whether each was malignant: the data of
Wolberg, Street and Mangasarian (1995) that scikit-learn ships. Several measurements are nearly
copies of one another (radius, perimeter, area), so the posterior is correlated and many
coefficients stay uncertain; the table says which ones are not.

    python examples/breast_cancer.py --out demo
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

import driftbridge as db
from driftbridge import report
from driftbridge.samplers import JitteredHMC


def posterior() -> db.GLM:
    """The regression of malignancy on an intercept and standardised measurements."""
    data = load_breast_cancer()
    measurements = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    X = np.column_stack([np.ones(len(measurements)), measurements])
    malignant = 1 - data.target  # scikit-learn codes benign as 1
    return db.GLM(X, malignant, "logistic", names=["intercept", *data.feature_names.tolist()])


def main(out: Path, num_samples: int = 2000, num_warmup: int = 1000) -> db.Draws:
    """Sample, print the table and the verdict, and write the report to `out`."""
    draws = db.sample(
        posterior(),
        JitteredHMC(),
        num_samples=num_samples,
        num_warmup=num_warmup,
        progress=True,
    )
    table = draws.summary().astype({"ess_bulk": int, "ess_tail": int}).round(3)
    print(table.to_string())
    verdict = draws.convergence
    print(f"\n{'Converged' if verdict.converged else 'NOT converged'}: {verdict.sentence}.")

    out.mkdir(parents=True, exist_ok=True)
    print(f"Report: {report.write(draws, out / 'report.html')}")
    return draws


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the report")
    main(parser.parse_args().out)

"""The score of a logistic regression beside its two matrix products and beside autodiff.

Breast cancer data of scikit-learn, standardised, with an intercept: n = 569, d = 31, float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

from benchmarks.timing import (
    Row,
    at_least,
    at_most,
    count_for,
    finish,
    options,
    paired,
    repeat,
    unjudged,
)
from driftbridge.targets import GLM

PRIOR_SCALE = 2.5


def data() -> tuple[np.ndarray, np.ndarray]:
    """Design and outcomes."""
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    return np.c_[np.ones(len(X)), X].astype(np.float32), y.astype(np.float32)


def log_density(x, X, y):
    """The same posterior as users write it."""
    eta = X @ x
    return jnp.sum(y * eta - jax.nn.softplus(eta)) - jnp.sum((x / PRIOR_SCALE) ** 2) / 2


def log_density_of_margins(x, X, y):
    """The other usual spelling, with the signs of the outcomes inside the softplus."""
    margins = (2 * y - 1) * (X @ x)
    return -jnp.sum(jax.nn.softplus(-margins)) - jnp.sum((x / PRIOR_SCALE) ** 2) / 2


def products(x, X, transposed):
    """Two matrix products of the problem's shapes, each in its fastest layout."""
    if x.shape[0] == 1:
        return (transposed @ (x[0] @ transposed))[None]
    return (x @ transposed) @ X


def chained(evaluate):
    """A step whose input is a small move from `start` by the output before, so values stay finite.

    The move is below the inverse of the largest eigenvalue of the products, and uses the log
    density where `evaluate` returns one, as samplers that carry it do.
    """

    def step(carry, *arguments):
        start, x = carry
        out = evaluate(x, *arguments)
        if isinstance(out, tuple):
            value, out = out
            out = out + 1e-4 * value[:, None]
        return start, start + 1e-5 * out

    return step


def measure(num_chains: int, pairs: int, seconds: float) -> list[Row]:
    """The rows of one number of chains."""
    X, y = data()
    target = GLM(X, y, "logistic", "gaussian")
    start = 0.1 * jax.random.normal(jax.random.key(0), (num_chains, target.dim))
    X, y, transposed = jnp.asarray(X), jnp.asarray(y), jnp.asarray(np.ascontiguousarray(X.T))

    def autodiff(density):
        return jax.vmap(jax.value_and_grad(density), (0, None, None))

    evaluations = {
        "products": (products, X, transposed),
        "score": (lambda x, target: jax.vmap(target.score)(x), target),
        "value and score": (lambda x, target: jax.vmap(target.value_and_score)(x), target),
        "autodiff": (autodiff(log_density), X, y),
        "autodiff of margins": (autodiff(log_density_of_margins), X, y),
    }
    check(evaluations, start)
    runs = {k: repeat(chained(f), (start, start), *args) for k, (f, *args) in evaluations.items()}
    count = count_for(list(runs.values()), seconds)
    timings = paired(
        {name: partial(run, count) for name, run in runs.items()},
        pairs,
        control=("products", "autodiff", "autodiff of margins"),
    )
    label = f"C = {num_chains}: "
    peers = "autodiff of margins"
    return [
        at_most(1.7, label + "score / products", timings, "score", "products", count),
        at_least(3, label + "autodiff / score", timings, "autodiff", "score", count),
        unjudged(label + f"{peers} / score", timings, peers, "score", count),
        unjudged(
            label + "value and score / products", timings, "value and score", "products", count
        ),
        unjudged(
            label + "autodiff / value and score", timings, "autodiff", "value and score", count
        ),
    ]


def check(evaluations, start) -> None:
    """Refuse to time results that differ by more than float32 sums do, 1e-4 of the largest."""
    results = {}
    for name, (evaluate, *arguments) in evaluations.items():
        out = jax.jit(evaluate)(start, *arguments)
        results[name] = np.asarray(out[1] if isinstance(out, tuple) else out)
    for name in ("value and score", "autodiff", "autodiff of margins"):
        scale = np.abs(results[name]).max()
        np.testing.assert_allclose(results["score"], results[name], rtol=0, atol=1e-4 * scale)


def main() -> int:
    chosen = options(__doc__)
    chains, pairs, seconds = ((1, 4), 3, 2e-3) if chosen.small else ((1, 4, 64, 1024), 15, 3e-2)
    rows = [row for num_chains in chains for row in measure(num_chains, pairs, seconds)]
    return finish("gradient", rows, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

"""Simulation-based calibration: whether the posterior draws of a sampler are the posterior.

    python -m benchmarks.calibration [--replications N] [--small] [--save] [--strict]

In each replication parameters come from the prior and data from the model, so the truth is one more
draw of the posterior, and its rank among independent draws is uniform. Here these are the last
draws of 63 chains (64 of the ensemble of `db.sample`), which start from the prior independently of
the truth. A row passes where the empirical distribution of every quantity's ranks lies within its
simultaneous band, of level 95 % for all rows that must pass together (Bonferroni): the p-values
below are those of leaving the bands. Langevin Monte Carlo at a large step, and the same kernels
stopped after three steps, must fail. The status is 1 where a verdict is not as it should be.

Exact draws of the conjugate model are the control: they show that the ranks are counted right.

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv 1804.06788; Säilynoja, Bürkner and
Vehtari (2022), arXiv 2103.10522, section 2.2.
"""

import abc
import argparse
import contextlib
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.special import bdtr, bdtrc, gammaln

import driftbridge as db
from benchmarks.timing import machine, options, record
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers import HMC, LMC, MALA, MALT, JitteredHMC, Sampler, run
from driftbridge.targets.base import Target

CHAINS = 63
LEVEL = 0.05
# Replications that share a batch: the noise of each fills a cache by itself.
BATCH = 50


class Model(Target):
    """A posterior whose prior and data can be drawn; `y` is a leaf, so data compile nothing."""

    y: eqx.AbstractVar[Float[Array, " n"]]
    names: eqx.AbstractVar[tuple[str, ...]]

    def log_density(self, x):
        return self.log_prior(x) + self.log_likelihood(x)

    @abc.abstractmethod
    def quantities(self, x: Float[Array, " dim"]) -> Float[Array, " quantities"]:
        """What is ranked, the log likelihood last."""

    def log_prior(self, x):
        return -jnp.sum(x**2) / 2

    @abc.abstractmethod
    def log_likelihood(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log density of the data."""

    def prior(self, key: Key[Array, ""]) -> Float[Array, " dim"]:
        """One draw of the prior: standard normal in these coordinates."""
        return jax.random.normal(key, (self.dim,))

    @abc.abstractmethod
    def simulate(self, key: Key[Array, ""], x: Float[Array, " dim"]) -> Float[Array, " n"]:
        """Data for the parameters `x`."""


DESIGN = np.random.default_rng(5).normal(size=(20, 3)).astype(np.float32) * [1.0, 0.5, 2.0]


class Linear(Model):
    """Twenty normal outcomes with unit noise: the posterior is normal, in closed form."""

    y: Float[Array, " n"]
    names: tuple[str, ...] = eqx.field(static=True, default=("a", "b", "c", "log lik."))
    dim: int = eqx.field(static=True, default=3)

    def predictor(self, x):
        return jnp.asarray(DESIGN, x.dtype) @ x

    def log_likelihood(self, x):
        return -jnp.sum((self.y - self.predictor(x)) ** 2) / 2

    def simulate(self, key, x):
        return self.predictor(x) + jax.random.normal(key, self.y.shape)

    def quantities(self, x):
        return jnp.append(x, self.log_likelihood(x))

    def exact(self, key: Key[Array, ""], count: int) -> Float[Array, "count dim"]:
        """Independent draws of the posterior."""
        covariance = np.linalg.inv(np.eye(3) + DESIGN.T @ DESIGN)
        gain, root = covariance @ DESIGN.T, np.linalg.cholesky(covariance)
        mean = jnp.asarray(gain, self.y.dtype) @ self.y
        normal = jax.random.normal(key, (count, 3), self.y.dtype)
        return mean[None] + normal @ jnp.asarray(root.T, self.y.dtype)


class Logistic(Linear):
    """Twenty binary outcomes, three coefficients."""

    def log_likelihood(self, x):
        return jnp.sum(jax.nn.log_sigmoid((2 * self.y - 1) * self.predictor(x)))

    def simulate(self, key, x):
        rate = jax.nn.sigmoid(self.predictor(x))
        return jax.random.bernoulli(key, rate).astype(x.dtype)


ERRORS = (1.5, 1.0, 1.6, 1.1, 0.9, 1.1, 1.0, 1.8)


class Schools(Model):
    """Eight groups, non-centred: `theta_j = mu + tau z_j`; `mu` has sd 2, `log tau` sd 1/2."""

    y: Float[Array, " n"]
    names: tuple[str, ...] = eqx.field(
        static=True, default=("mu", "log tau", "theta 1", "theta 8", "log lik.")
    )
    dim: int = eqx.field(static=True, default=10)

    def theta(self, x):
        return 2 * x[0] + jnp.exp(x[1] / 2) * x[2:]

    def log_likelihood(self, x):
        return -jnp.sum(((self.y - self.theta(x)) / jnp.asarray(ERRORS, x.dtype)) ** 2) / 2

    def simulate(self, key, x):
        normal = jax.random.normal(key, self.y.shape)
        return self.theta(x) + jnp.asarray(ERRORS, x.dtype) * normal

    def quantities(self, x):
        theta = self.theta(x)
        return jnp.stack([x[0], x[1], theta[0], theta[7], self.log_likelihood(x)])


MODELS: dict[str, Model] = {
    "linear": Linear(jnp.zeros(20)),
    "logistic": Logistic(jnp.zeros(20)),
    "schools": Schools(jnp.zeros(8)),
}


def with_data(model: Model, key: Key[Array, ""]) -> tuple[Model, Float[Array, " dim"]]:
    """The posterior of simulated data, and the truth they came from."""
    prior, data = jax.random.split(key)
    truth = model.prior(prior)
    return eqx.tree_at(lambda m: m.y, model, model.simulate(data, truth)), truth


def rank(model: Model, truth, draws):
    """How many of the draws lie below the truth, by quantity."""
    at = jax.vmap(model.quantities)
    return jnp.sum(at(draws) < at(truth[None]), axis=0)


@partial(jax.jit, static_argnames=("draw", "replications"))
def ranks_of(model: Model, draw: Callable, numbers: Any, key: Key[Array, ""], replications: int):
    """Ranks `(replications, quantities)`, `draw(model, numbers, key)` giving posterior draws."""

    def one(key):
        data, chain = jax.random.split(key)
        posterior, truth = with_data(model, data)
        return rank(posterior, truth, draw(posterior, numbers, chain))

    return jax.lax.map(one, jax.random.split(key, replications), batch_size=BATCH)


def last_draws(num_steps: int) -> Callable:
    """The positions of 63 chains from the prior after so many transitions."""

    def draw(model, sampler, key):
        start, chain = jax.random.split(key)
        positions = jax.vmap(model.prior)(jax.random.split(start, CHAINS))
        found, _ = run(model, sampler, positions, chain, num_samples=1, thin=num_steps)
        return found.position[0]

    return draw


def exact_draws(model, _, key):
    """Independent draws of a conjugate posterior."""
    return model.exact(key, CHAINS)


def by_kernel(sampler: Sampler, num_steps: int) -> Callable:
    """Ranks by chains of a kernel as it is, all replications in one program."""

    def ranks(model, key, replications):
        numbers = cast_floating(sampler, jnp.float32)
        return ranks_of(model, last_draws(num_steps), numbers, key, replications), CHAINS

    return ranks


def by_exact(model, key, replications):
    """Ranks by exact draws."""
    return ranks_of(model, exact_draws, None, key, replications), CHAINS


@jax.jit
def _data(model, key):
    return with_data(model, key)


_rank = jax.jit(rank)


def by_sample(model, key, replications):
    """Ranks by `db.sample(target)`: its ensemble, start and warm-up, and 32 draws of each chain."""
    rows, count = [], 0
    for i in range(replications):
        posterior, truth = _data(model, jax.random.fold_in(key, i))
        with contextlib.redirect_stderr(io.StringIO()):  # so few draws have not converged
            draws = db.sample(posterior, key=i, num_chains=64, num_samples=32)
        last = jnp.asarray(draws.positions[:, -1])
        count = len(last)
        rows.append(_rank(posterior, truth, last))
    return jnp.stack(rows), count


FLAGSHIP = "db.sample(target)"
# Model, sampler, how it ranks, and whether it must pass. Steps of the kernels accept some 0.6 to
# 0.9 of their moves; the numbers of transitions are several times those after which the ranks no
# longer change.
ROWS: tuple[tuple[str, str, Callable, bool], ...] = (
    ("linear", "exact draws", by_exact, True),
    ("linear", "MALA", by_kernel(MALA(0.02), 500), True),
    ("linear", "LMC, large step", by_kernel(LMC(0.02), 500), False),
    ("logistic", FLAGSHIP, by_sample, True),
    ("logistic", "MALA", by_kernel(MALA(0.25), 200), True),
    ("logistic", "MALT", by_kernel(MALT(0.4, 1.0, 4), 60), True),
    ("logistic", "HMC", by_kernel(HMC(0.4, 1.2), 60), True),
    ("logistic", "LMC, large step", by_kernel(LMC(0.4), 200), False),
    ("logistic", "MALA, stopped early", by_kernel(MALA(0.25), 3), False),
    ("schools", FLAGSHIP, by_sample, True),
    ("schools", "MALA", by_kernel(MALA(0.05), 1500), True),
    ("schools", "MALT", by_kernel(MALT(0.35, 1.0, 5), 150), True),
    ("schools", "JitteredHMC", by_kernel(JitteredHMC(0.35, 1.5), 150), True),
    ("schools", "LMC, large step", by_kernel(LMC(0.06), 500), False),
)


def band_p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Probability that uniform ranks leave the simultaneous band that these just leave.

    The counts `c_i` of ranks below `i` are binomial for each `i = 1, ..., num_draws` and a Markov
    chain in `i`. With `g` the least two-sided p-value of them, the band of pointwise level `g`
    holds all counts with a probability that is summed along that chain.

    **Arguments:**

    - `ranks`: integers from 0 to `num_draws`.

    Säilynoja, Bürkner and Vehtari (2022), arXiv 2103.10522, section 2.2 and algorithm 1.
    """
    total, points = len(ranks), np.arange(1, num_draws + 1) / (num_draws + 1)
    counts = np.searchsorted(np.sort(ranks), np.arange(1, num_draws + 1))
    every = np.arange(total + 1)

    def two_sided(count, point):
        return 2 * np.minimum(bdtr(count, total, point), bdtrc(count - 1, total, point))

    least = float(np.min(two_sided(counts, points)))
    if least < 1e-10:  # the sum would be one, but for rounding: Bonferroni's bound is sharp enough
        return min(1.0, least * num_draws)
    log_factorial = gammaln(np.arange(total + 2) + 1.0)
    held, mass, before = np.zeros(1, int), np.ones(1), 0.0
    for point in points:
        inside = every[two_sided(every, point) > least]
        chance = (point - before) / (1 - before)
        n, k = total - held[:, None], inside[None] - held[:, None]
        is_possible = (k >= 0) & (k <= n)
        k = np.clip(k, 0, n)
        log_choose = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
        law = np.exp(log_choose + k * np.log(chance) + (n - k) * np.log1p(-chance))
        mass = mass @ np.where(is_possible, law, 0.0)
        held, before = inside, point
    return float(1 - mass.sum())


def judge(
    rows: Sequence[tuple[str, str, Callable, bool]], replications: int, seed: int = 0
) -> list[dict]:
    """The p-values of every row, and its verdict."""
    tests = sum(len(MODELS[model].names) for model, _, _, must_pass in rows if must_pass)
    found = []
    for i, (model, name, ranking, must_pass) in enumerate(rows):
        begin = time.perf_counter()
        key = jax.random.fold_in(jax.random.key(seed), i)
        ranks, num_draws = ranking(MODELS[model], key, replications)
        p = [band_p_value(np.asarray(column), num_draws) for column in ranks.T]
        worst = int(np.argmin(p))
        passes = p[worst] >= LEVEL / max(tests, 1)
        found.append(
            {
                "model": model,
                "sampler": name,
                "replications": replications,
                "p": dict(zip(MODELS[model].names, p, strict=True)),
                "worst": MODELS[model].names[worst],
                "passes": bool(passes),
                "must_pass": must_pass,
                "as_it_should": bool(passes == must_pass),
                "seconds": time.perf_counter() - begin,
            }
        )
        print(line(found[-1]), flush=True)
    return found


HEAD = "| model | sampler | worst quantity | p | verdict | should | s |\n" + "| --- " * 7 + "|"


def line(row: dict) -> str:
    """One row as Markdown."""
    words = ("passes" if row["passes"] else "fails", "pass" if row["must_pass"] else "fail")
    return (
        f"| {row['model']} | {row['sampler']} | {row['worst']} | {row['p'][row['worst']]:.2g} | "
        f"{words[0]} | {words[1]}{'' if row['as_it_should'] else ' (NOT AS IT SHOULD)'} | "
        f"{row['seconds']:.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--replications", type=int, default=1000)
    given, rest = parser.parse_known_args(arguments)
    chosen = options(__doc__, rest)
    print(machine(), end="\n\n")
    print(HEAD)
    rows = judge(ROWS, 100 if chosen.small else given.replications)
    good = all(row["as_it_should"] for row in rows)
    print(f"\nverdicts as they should be: {sum(r['as_it_should'] for r in rows)} of {len(rows)}")
    record("calibration", rows, good, chosen)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())

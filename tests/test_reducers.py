"""Reducers against NumPy on all draws at once, and stopping rules on their grid."""

import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.store import GRID
from driftbridge.samplers import (
    MALA,
    Covariance,
    Grouped,
    Mean,
    Mixing,
    Quantiles,
    UniformStart,
    diagnostics,
)
from driftbridge.targets import DiagonalGaussian

RNG = np.random.default_rng(0)
# Far from zero, so that uncompensated sums of squares would lose every digit.
VALUES = RNG.normal(size=(4, 40 * GRID, 3)) * [1.0, 1e-3, 5.0] + [0.0, 1e5, -3.0]


def reduce(reducer, values):
    state = reducer.empty(values.shape[0], values.shape[2])
    for start in range(0, values.shape[1], GRID):
        state = reducer.update(state, values[:, start : start + GRID])
    return reducer.result(state)


def test_moments():
    flat = VALUES.reshape(-1, 3)
    found = reduce(Mean(), VALUES)
    # Float64 rounding of numbers near 1e5 with sd 1e-3: sd to 1e-7 relative.
    np.testing.assert_allclose(found["mean"], flat.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["sd"], flat.std(0, ddof=1), rtol=1e-7)
    found = reduce(Covariance(), VALUES)
    np.testing.assert_allclose(found["covariance"], np.cov(flat.T), rtol=1e-6, atol=1e-8)


def test_quantiles_stay_within_their_stated_error():
    reducer = Quantiles(size=256)
    found = reduce(reducer, VALUES)
    flat = np.sort(VALUES.reshape(-1, 3), axis=0)
    assert 0 < found["rank_error"] < 0.05
    for p, row in zip(reducer.probabilities, found["quantiles"], strict=True):
        for j, value in enumerate(row):
            rank = np.searchsorted(flat[:, j], value) / len(flat)
            # One further buffer entry for interpolation.
            assert abs(rank - p) <= found["rank_error"] + 2 / 256


def test_quantiles_of_sorted_input():
    # The worst order for a sampler of positions in the stream, and no matter for a sketch.
    values = np.sort(VALUES.reshape(-1, 3), axis=0).reshape(4, -1, 3)
    found = reduce(Quantiles(), values)
    exact = np.quantile(values.reshape(-1, 3), Quantiles().probabilities, axis=0)
    spread = values.reshape(-1, 3).std(0)
    assert (np.abs(found["quantiles"] - exact) / spread < 10 * found["rank_error"] + 0.01).all()


def autoregressive(rho, chains=4, draws=400 * GRID):
    noise = RNG.normal(size=(chains, draws))
    out = np.zeros_like(noise)
    out[:, 0] = noise[:, 0]
    for t in range(1, draws):
        out[:, t] = rho * out[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return out[..., None]


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_effective_draws_by_batch_means(rho):
    values = autoregressive(rho)
    found = reduce(Mixing(), values)
    truth = values.size * (1 - rho) / (1 + rho)
    # 50 batches of 8 blocks in each of 4 chains: relative sd sqrt(2 / 200) = .1; five of them.
    assert abs(found["ess"][0] / truth - 1) < 0.5


def test_r_hat_of_split_chains():
    values = autoregressive(0.0, draws=64 * GRID)
    shifted = values + np.array([0.0, 0.0, 0.0, 0.5])[:, None, None]
    for chains in (values, shifted):
        halves = chains.reshape(8, -1)
        n = halves.shape[1]
        between, within = halves.mean(1).var(ddof=1), halves.var(1, ddof=1).mean()
        expected = np.sqrt((n - 1) / n + between / within)
        # The number of blocks is a power of two, so batches make up the same halves.
        np.testing.assert_allclose(reduce(Mixing(), chains)["r_hat"][0], expected, rtol=1e-10)


def test_nested_r_hat():
    values = autoregressive(0.5, chains=16, draws=32 * GRID)
    found = reduce(Mixing(num_groups=4), values)["nested_r_hat"]
    np.testing.assert_allclose(found, diagnostics.nested_r_hat(values, 4), rtol=1e-10)


def test_short_runs_say_they_cannot_be_judged():
    draws = db.sample(
        DiagonalGaussian(np.zeros(2), np.ones(2)), MALA(0.5),
        num_samples=200, num_warmup=0, keep=[Mean()],
    )  # fmt: skip
    assert not draws.convergence.converged
    assert np.isnan(draws.convergence.r_hat).all()
    with pytest.raises(ValueError, match="keep="):
        _ = draws.positions


def test_until_looks_on_its_grid():
    until = db.Until(ess=1)
    looks, done = [], 0
    while done < 2000:
        done = until.next_look(done, GRID)
        looks.append(done)
    assert looks[:6] == [128, 256, 384, 512, 768, 1024]
    assert all(look % GRID == 0 for look in looks)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["draws", (Mean(),)])
def test_until_stops_when_its_conditions_hold(keep):
    target = DiagonalGaussian(np.zeros(2), np.ones(2))
    draws = db.sample(
        target,
        MALA(0.5),
        num_samples=db.Until(converged=True, mcse=0.02),
        num_warmup=300,
        keep=keep,
    )
    assert draws.convergence.converged
    assert draws.num_draws % GRID == 0
    assert (draws.statistics["mcse_mean"] <= 0.021 * draws.statistics["sd"]).all()


def test_until_says_what_is_not_met():
    target = DiagonalGaussian(np.zeros(2), np.ones(2))
    draws = db.sample(
        target, MALA(0.01), num_samples=db.Until(ess=1e6, max_draws=256), adapt=None, num_warmup=0
    )
    assert draws.num_draws == 256
    assert any("ESS" in finding.message for finding in draws.warnings)


@pytest.mark.parametrize("keep", ["memory", "store", "reducers"])
def test_until_judges_groups_of_chains_as_the_draws_do(keep, tmp_path, monkeypatch):
    seen, unmet = [], db.Until.unmet

    def watch(self, diagnosis):
        seen.append(diagnosis)
        return unmet(self, diagnosis)

    monkeypatch.setattr(db.Until, "unmet", watch)
    draws = db.sample(
        DiagonalGaussian(np.zeros(2), np.ones(2)),
        MALA(0.5),
        num_samples=db.Until(ess=1e9, max_draws=512),
        num_warmup=0,
        num_chains=16,
        init=Grouped(UniformStart(), 4),
        keep=[Mean()] if keep == "reducers" else "draws",
        store=tmp_path / "run" if keep == "store" else None,
    )
    assert np.array_equal(seen[-1].r_hat, draws.convergence.r_hat)


def test_until_takes_one_chain_for_other_conditions():
    target = DiagonalGaussian(np.zeros(2), np.ones(2))
    draws = db.sample(
        target, MALA(0.5), num_samples=db.Until(ess=20), num_chains=1, num_warmup=0
    )  # fmt: skip
    assert draws.metadata["unmet"] is None


class WithConstant(DiagonalGaussian):
    """Its second parameter is a constant that sums of it round."""

    def constrain(self, x):
        return {"a": x, "c": jnp.full((), 0.1, x.dtype) + 0 * x[0]}


@pytest.mark.parametrize("keep", ["draws", Mean(), [Covariance()]])
def test_constants_are_left_out_of_rules_and_verdicts(keep):
    draws = db.sample(
        WithConstant(np.zeros(2), np.ones(2)),
        MALA(0.5),
        num_samples=db.Until(ess=100, max_draws=2048),
        num_warmup=0,
        keep=keep,
    )
    assert draws.metadata["unmet"] is None
    assert draws.names == ("a[0]", "a[1]", "c")
    assert draws.convergence.reasons == ("", "", "constant")
    assert draws.convergence.worst in ("a[0]", "a[1]")
    table = draws.statistics
    assert table["sd"][2] == 0 and np.isnan(table["r_hat"][2]) and np.isnan(table["mcse_mean"][2])
    assert np.isfinite(table["mcse_mean"][:2]).all()


class OtherQuantiles(Quantiles):
    pass


def test_reducers_go_by_their_names():
    target = DiagonalGaussian(np.zeros(2), np.ones(2))
    settings = {"num_samples": 256, "num_warmup": 0}
    keep = [Quantiles((0.1,)), OtherQuantiles((0.9,))]
    found = db.sample(target, MALA(0.5), keep=keep, **settings).reductions
    assert (found["Quantiles"]["quantiles"] < found["OtherQuantiles"]["quantiles"]).all()
    one = db.sample(target, MALA(0.5), keep=Quantiles((0.1,)), **settings).reductions
    assert np.array_equal(one["Quantiles"]["quantiles"], found["Quantiles"]["quantiles"])
    with pytest.raises(ValueError, match=r"2 reducers Quantiles.*class OtherQuantiles"):
        db.sample(target, MALA(0.5), keep=[Quantiles((0.1,)), Quantiles((0.9,))], **settings)

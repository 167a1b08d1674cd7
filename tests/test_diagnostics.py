"""Diagnostics against ArviZ, closed forms and their invariances."""

import warnings

import numpy as np
import pytest

from driftbridge.samplers import diagnostics, estimators

SHAPES = [(4, 100), (1, 51), (2, 7), (3, 4), (4, 5), (2, 1001)]
PHI = np.array([-0.9, -0.3, 0.0, 0.5, 0.9, 0.99])


@pytest.fixture(scope="module")
def arviz():
    with warnings.catch_warnings():  # ArviZ 0.23 announces its successor at import.
        warnings.simplefilter("ignore")
        import arviz
    return arviz


def autoregressive(chains, draws, phi, seed=0):
    """Stationary AR(1) chains of unit variance, shape `(chains, draws, len(phi))`."""
    noise = np.random.default_rng(seed).normal(size=(draws, chains, len(phi)))
    out = noise.copy()
    for t in range(1, draws):
        out[t] = phi * out[t - 1] + np.sqrt(1 - phi**2) * noise[t]
    return out.swapaxes(0, 1)


STATISTICS = {
    "r_hat": (diagnostics.r_hat, lambda az, x: az.rhat(x)),
    "ess_bulk": (diagnostics.ess_bulk, lambda az, x: az.ess(x)),
    "ess_tail": (diagnostics.ess_tail, lambda az, x: az.ess(x, method="tail")),
    "ess_mean": (diagnostics.ess_mean, lambda az, x: az.ess(x, method="mean")),
    "ess_sd": (diagnostics.ess_sd, lambda az, x: az.ess(x, method="sd")),
    "ess_quantile": (
        lambda x: diagnostics.ess_quantile(x, 0.3),
        lambda az, x: az.ess(x, method="quantile", prob=0.3),
    ),
    "mcse_mean": (diagnostics.mcse_mean, lambda az, x: az.mcse(x)),
    "mcse_sd": (diagnostics.mcse_sd, lambda az, x: az.mcse(x, method="sd")),
    "mcse_quantile": (
        lambda x: diagnostics.mcse_quantile(x, 0.1),
        lambda az, x: az.mcse(x, method="quantile", prob=0.1),
    ),
    "hdi_low": (lambda x: diagnostics.hdi(x)[0], lambda az, x: az.hdi(x.ravel(), hdi_prob=0.94)[0]),
    "hdi_high": (
        lambda x: diagnostics.hdi(x)[1],
        lambda az, x: az.hdi(x.ravel(), hdi_prob=0.94)[1],
    ),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", STATISTICS)
def test_equals_arviz(arviz, name, shape):
    ours, theirs = STATISTICS[name]
    values = autoregressive(*shape, PHI)
    values[..., 1] = np.round(2 * values[..., 1])  # ties
    values[..., 2] = np.exp(5 * values[..., 2])  # heavy tail
    expected = [theirs(arviz, values[..., i]) for i in range(len(PHI))]
    # Same arithmetic in another order: relative round-off of sums of a thousand terms.
    np.testing.assert_allclose(ours(values), expected, rtol=1e-10, atol=1e-13)


def test_energy_diagnostic_equals_arviz(arviz):
    energy = autoregressive(5, 300, np.array([0.95]))[..., 0]
    np.testing.assert_allclose(diagnostics.e_bfmi(energy), arviz.bfmi(energy), rtol=1e-12)


def test_energy_diagnostic_of_one_draw_is_unknown():
    assert np.isnan(diagnostics.e_bfmi(np.ones((4, 1)))).all()


def test_energy_diagnostic_of_autoregression():
    # Successive differences of a stationary AR(1) have variance 2 (1 - phi).
    energy = autoregressive(4, 20_000, np.array([0.5]))[..., 0]
    # Ratio of two averages over at least 20000 / 3 effective draws: 5 sigma is about 0.06.
    np.testing.assert_allclose(diagnostics.e_bfmi(energy), 1.0, atol=0.06)


def test_effective_size_of_autoregression():
    phi = np.array([-0.3, 0.0, 0.5, 0.9])
    chains, draws = 16, 4000
    truth = chains * draws * (1 - phi) / (1 + phi)
    # The estimator truncates the autocorrelation where it drowns in noise; over 16 chains of at
    # least 200 correlation times its relative standard error is below 3 %.
    np.testing.assert_allclose(
        diagnostics.ess_mean(autoregressive(chains, draws, phi)), truth, rtol=0.15
    )


def test_rank_statistics_ignore_monotone_maps():
    values = autoregressive(4, 200, PHI)
    for function in (diagnostics.ess_bulk, diagnostics.ess_tail):
        # Order statistics move with the map; only the interpolated quantile's place between two
        # of them does not, and no draw lies strictly between.
        np.testing.assert_array_equal(function(values), function(np.arctan(values)))
    # A power of two changes no rounding, hence no tie between distances from the median.
    np.testing.assert_array_equal(diagnostics.r_hat(values), diagnostics.r_hat(4 * values))


def test_any_event_shape_and_any_block(monkeypatch):
    values = autoregressive(3, 40, PHI)
    whole = diagnostics.summarise(values)
    monkeypatch.setattr(diagnostics, "_BLOCK", 2 * 3 * 40)
    split = diagnostics.summarise(values.reshape(3, 40, 2, 3))
    assert list(whole) == list(split)
    for name in whole:
        assert split[name].shape == (2, 3)
        # Blocks change the layout of sums only.
        np.testing.assert_allclose(split[name].ravel(), whole[name], rtol=1e-13)


def test_what_cannot_be_judged_is_nan_with_a_reason():
    values = autoregressive(4, 50, np.zeros(6))
    values[..., 1] = 2.0
    values[1, 7, 2] = np.nan
    values[1, 7, 3] = np.inf
    values[..., 4] = np.arange(4)[:, None]
    expected = ["", "constant", "not finite", "not finite", "", ""]
    assert diagnostics.reasons(values).tolist() == expected
    table = diagnostics.summarise(values)
    for name in ("mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"):
        assert np.isnan(table[name][[1, 2, 3]]).all(), name
        assert not np.isnan(table[name][[0, 4, 5]]).any(), name
    assert table["r_hat"][4] == np.inf
    assert (table["mean"][1], table["sd"][1], table["hdi_3%"][1]) == (2.0, 0.0, 2.0)


def test_short_runs_and_single_chains():
    values = autoregressive(2, 3, np.zeros(2))
    assert diagnostics.reasons(values).tolist() == ["fewer than 4 draws"] * 2
    assert np.isnan(diagnostics.ess_bulk(values)).all()
    single = autoregressive(1, 4000, np.zeros(2))
    verdict = diagnostics.convergence(single)
    assert verdict.reasons == ("one chain", "one chain")
    assert np.isnan(verdict.r_hat).all() and (verdict.ess_bulk > 800).all()
    assert not verdict.converged
    assert diagnostics.summarise(autoregressive(1, 1, np.zeros(2)))["sd"].tolist() == [0, 0]


def nested_by_loops(x, groups):
    """The definition, one parameter of shape `(chains, draws)`."""
    per = len(x) // groups
    means, within = [], []
    for k in range(groups):
        chains = x[k * per : (k + 1) * per]
        means.append(np.mean([c.mean() for c in chains]))
        between = np.var([c.mean() for c in chains], ddof=1) if per > 1 else 0.0
        within.append(between + np.mean([c.var(ddof=1) for c in chains]))
    return np.sqrt(1 + np.var(means, ddof=1) / np.mean(within))


@pytest.mark.parametrize("groups", [2, 4, 12])
def test_nested_r_hat_is_its_definition(groups):
    values = autoregressive(12, 30, PHI)
    expected = [nested_by_loops(values[..., i], groups) for i in range(len(PHI))]
    np.testing.assert_allclose(diagnostics.nested_r_hat(values, groups), expected, rtol=1e-12)


def test_nested_r_hat_sees_groups_and_not_short_chains():
    exact = autoregressive(512, 10, np.zeros(1))
    shifted = exact + np.repeat(np.linspace(-1, 1, 8), 64)[:, None, None]
    # Means of 640 independent draws: B is chi2_7 / 7 / 640, below 0.006 with 5 sigma.
    assert diagnostics.nested_r_hat(exact, 8) < 1.01
    # Variance of eight equal steps over (-1, 1) is 24 / 49 * 7 / 8 = 3 / 7.
    assert diagnostics.nested_r_hat(shifted, 8) == pytest.approx(np.sqrt(1 + 3 / 7), abs=0.05)
    assert diagnostics.convergence(exact, groups=8).converged
    assert not diagnostics.convergence(shifted, groups=8).converged


def test_convergence_names_the_worst():
    values = autoregressive(4, 2000, np.array([0.0, 0.5, 0.0]))
    values[..., 2] = 1.0
    names = ["alpha", "beta", "one"]
    verdict = diagnostics.convergence(values, names=names)
    assert verdict.converged and verdict.worst == "beta" and verdict.reasons[2] == "constant"
    values[0, :, 0] += 1
    verdict = diagnostics.convergence(values, names=names)
    assert not verdict.converged and verdict.worst == "alpha"
    assert not diagnostics.convergence(values[:, :150, 1:2]).converged  # ESS below 800
    assert not diagnostics.convergence(values[..., 2:]).converged  # nothing varies
    values[0, 0, 1] = np.nan
    assert diagnostics.convergence(values, names=names).worst == "beta"


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        (lambda x: diagnostics.convergence(x[..., 0]), r"\(chains, draws, params\)"),
        (lambda x: diagnostics.convergence(x, groups=2), "at least 4 groups"),
        (lambda x: diagnostics.nested_r_hat(x, 5), "divide 12"),
        (lambda x: diagnostics.r_hat(x[:, :0]), r"\(12, 0, 6\)"),
    ],
)
def test_errors_name_the_value(call, cure):
    with pytest.raises(ValueError, match=cure):
        call(autoregressive(12, 8, PHI))


def test_constant_block_counts_every_draw():
    # An indicator without variation carries no correlation: ArviZ's convention.
    assert estimators.ess(np.ones((1, 2, 10))).tolist() == [20]


def test_a_passing_r_hat_never_reads_as_failing():
    assert diagnostics.r_hat_text(1.00961) == "1.0096"
    assert diagnostics.r_hat_text(1.00999999) == "1.00999999"
    assert [diagnostics.r_hat_text(v) for v in (1.0042, 1.0101, np.inf)] == [
        "1.004",
        "1.010",
        "inf",
    ]


def test_labels_follow_arviz():
    values = {"a": np.zeros((2, 4)), "b": np.zeros((2, 4, 2)), "L": np.zeros((2, 4, 1, 2))}
    flat, names = diagnostics.flatten(values, {"b": ("group",)}, {"group": ("x", "y")})
    assert flat.shape == (2, 4, 5)
    assert names == ("a", "b[x]", "b[y]", "L[0, 0]", "L[0, 1]")

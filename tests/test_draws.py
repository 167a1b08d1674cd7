"""Draws made of synthetic chains: names, tables, exports and findings."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import as_key, chain_keys, streams
from driftbridge.samplers.base import Facts, Info, Sampler, Wrapper
from driftbridge.samplers.draws import Draws
from driftbridge.samplers.findings import Finding, longest_stay, rate_is_above
from driftbridge.targets.base import Observations, Target

SCHOOLS = ("Choate", "Deerfield", "<b>Exeter</b>")


class Schools(Target):
    """A Gaussian on five coordinates: `mu`, `tau > 0` and three schools' `theta`."""

    y: jax.Array
    dim: int = eqx.field(static=True, default=5)

    def log_density(self, x):
        return -jnp.sum(x**2) / 2

    def constrain(self, x):
        return {
            "mu": x[0],
            "tau": jnp.exp(x[1]),
            "theta": x[0] + jnp.exp(x[1]) * x[2:],
            "L": jnp.stack([jnp.stack([jnp.ones_like(x[0]), x[0]]), x[2:4]]),
        }

    @property
    def dims(self):
        return {"theta": ("school",)}

    @property
    def coords(self):
        return {"school": SCHOOLS}

    @property
    def observations(self):
        def predict(key, parameters):
            theta = parameters["theta"]
            return {"y": theta + jax.random.normal(key, theta.shape, theta.dtype)}

        def log_likelihood(parameters):
            return {"y": -((self.y - parameters["theta"]) ** 2) / 2}

        return Observations({"y": self.y}, log_likelihood, predict)


class Adjusted(Sampler):
    """Facts without dynamics."""

    step_size: jax.Array | float = 0.25

    facts = Facts("adjusted", "1", "none", "none", adjusted=True)

    def init(self, target, position):
        raise NotImplementedError

    def noise(self, key, like):
        raise NotImplementedError

    def step(self, target, state, noise) -> tuple[None, Info]:
        raise NotImplementedError


class Unadjusted(Adjusted):
    facts = Facts("unadjusted", "1", "+h²/12", "none")


class Scaled(Wrapper):
    sampler: Sampler
    scale: jax.Array

    init, step = Adjusted.init, Adjusted.step


@pytest.fixture(scope="module")
def target():
    return Schools(jnp.array([1.0, -1.0, 0.5]))


def positions(chains=4, draws=1000, phi=0.3, seed=0):
    noise = np.random.default_rng(seed).normal(size=(draws, chains, 5))
    out = noise.copy()
    for t in range(1, draws):
        out[t] = phi * out[t - 1] + np.sqrt(1 - phi**2) * noise[t]
    return out.swapaxes(0, 1).astype(np.float32)


def make(target, x, *, tuned=None, metadata=None, **stats):
    shape = x.shape[:2]
    stats = {
        "acceptance_rate": np.full(shape, 0.8, np.float32),
        "is_divergent": np.zeros(shape, bool),
        "num_gradients": np.ones(shape, np.int32),
    } | stats
    return Draws(target, x, stats, tuned=tuned or Adjusted(), metadata=metadata)


@pytest.fixture(scope="module")
def good(target):
    return make(target, positions())


def names_of(draws):
    return [finding.name for finding in draws.warnings]


def test_parameters_are_the_constrained_positions(good):
    x = good.positions
    assert list(good.parameters) == ["mu", "tau", "theta", "L"]
    assert good.parameters["theta"].shape == (4, 1000, 3)
    np.testing.assert_array_equal(good.parameters["mu"], x[..., 0])
    # exp in float32, XLA's against numpy's: a few units in the last place.
    np.testing.assert_allclose(good.parameters["tau"], np.exp(x[..., 1]), rtol=1e-6)
    np.testing.assert_allclose(good.log_density, -np.sum(x**2, axis=2) / 2, rtol=1e-5)
    assert good.parameters["tau"].dtype == np.float32
    np.testing.assert_array_equal(good.column("theta[Deerfield]"), good.parameters["theta"][..., 1])
    with pytest.raises(KeyError, match="there is no parameter 'x'"):
        good.column("x")


def test_another_number_of_draws_compiles_nothing(target):
    def derive(draws):
        draws = make(target, positions(3, draws))
        draws.summary(), draws.log_density, draws.warnings, draws.to_xarray(predictive=True)

    derive(40)
    watch = Compilations()
    derive(777)
    assert watch.programs == 0


def test_given_parameters_and_log_density_are_used(target):
    x = positions(2, 10)
    lp = np.zeros((2, 10))
    given = {"mu": np.ones((2, 10))}
    draws = Draws(target, x, {"log_density": lp}, tuned=None, parameters=given)
    assert list(draws.parameters) == ["mu"] and draws.log_density is not None
    np.testing.assert_array_equal(draws.log_density, lp)


def test_summary_equals_arviz(x64):
    target = Schools(jnp.array([1.0, -1.0, 0.5]))
    draws = make(target, positions(4, 300).astype(np.float64))
    data = draws.to_arviz()
    with warnings.catch_warnings():  # ArviZ divides by the zero variance of the constant L[0, 0].
        warnings.simplefilter("ignore", RuntimeWarning)
        import arviz

        theirs = arviz.summary(data, round_to="none")
    ours = draws.summary()
    assert list(ours.index) == list(theirs.index) and list(ours.columns) == list(theirs.columns)
    assert "theta[Choate]" in ours.index and "L[1, 0]" in ours.index
    varies = [name for name in ours.index if name != "L[0, 0]"]
    # Round-off of sums over 1200 draws.
    np.testing.assert_allclose(ours.loc[varies], theirs.loc[varies], rtol=1e-9, atol=1e-12)
    row = ours.loc["L[0, 0]"]
    assert row["mean"] == 1 and row["sd"] == 0 and row["mcse_mean":].isna().all()


def test_trees_and_tables(good):
    tree = good.to_xarray(predictive=True)
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert list(tree["posterior"]["school"].values) == list(SCHOOLS)
    assert {"diverging", "lp", "acceptance_rate"} <= set(tree["sample_stats"].data_vars)
    theta = good.parameters["theta"]
    np.testing.assert_allclose(
        tree["log_likelihood"]["y"], -((np.array([1, -1, 0.5]) - theta) ** 2) / 2, rtol=1e-5
    )
    residual = tree["posterior_predictive"]["y"].values - theta
    # 12000 independent standard normals: five standard errors of their variance.
    assert np.var(residual) == pytest.approx(1, abs=5 * np.sqrt(2 / residual.size))
    assert len(np.unique(residual[..., 0])) > 3990  # a float32 collides now and then
    assert tree["observed_data"]["y"].shape == (3,)
    assert "log_likelihood" not in good.to_xarray().children
    frame = good.to_dataframe()
    assert list(frame.columns[:4]) == ["chain", "draw", "mu", "tau"]
    assert frame["tau"][1001] == good.parameters["tau"][1, 1]


@pytest.mark.slow
def test_predictions_share_no_key_with_the_run():
    class Keys(Schools):
        @property
        def observations(self):
            return Observations(
                {"y": self.y},
                lambda parameters: {"y": parameters["mu"]},
                lambda key, parameters: {"y": jax.random.key_data(key)},
            )

    draws = Draws(Keys(jnp.zeros(3)), np.zeros((2, 150, 5), np.float32), {}, tuned=None)
    predicted = draws.to_xarray(predictive=True, key=7)["posterior_predictive"]["y"].values
    used = {tuple(words) for words in predicted.reshape(-1, 2).tolist()}
    of_run = streams(as_key(7))
    chains = chain_keys(of_run.steps, np.arange(100))
    run = [*of_run, *chains, *chain_keys(of_run.start, np.arange(100))]
    assert len(used) == 300
    assert used.isdisjoint(tuple(jax.random.key_data(key).tolist()) for key in run)


def test_predictive_needs_observations(target):
    class Plain(Schools):
        @property
        def observations(self):
            return None

    draws = make(Plain(target.y), positions(2, 10))
    assert "observed_data" not in draws.to_xarray().children
    with pytest.raises(ValueError, match="Plain has no observations"):
        draws.to_arviz(predictive=True)


def test_warmup_goes_along(target):
    x = positions(2, 20)
    draws = Draws(target, x, {}, tuned=None, warmup=make(target, x))
    assert {"warmup_posterior", "warmup_sample_stats"} <= set(draws.to_xarray().children)


def test_good_draws_have_no_findings(good):
    assert good.convergence.converged and good.warnings == ()
    assert "converged: R-hat at most 1.00" in repr(good)
    assert "4 chains of 1000 draws, 9 parameters" in repr(good)
    assert "&lt;b&gt;Exeter" in good._repr_html_() and "<b>Exeter" not in good._repr_html_()


def test_chains_apart_are_named(target):
    x = positions()
    x[1, :, 1] += 2
    draws = make(target, x)
    found = draws.warnings[0]
    assert found.name == "not_converged" and found.parameter == "tau"
    assert "tau has R-hat" in found.message and found.value == draws.statistics["r_hat"][1]
    assert draws.worst(2)[0] == "tau" and "L[0, 0]" not in draws.worst(99)
    assert "NOT CONVERGED: tau" in repr(draws)


def test_too_few_draws_say_how_many(target):
    draws = make(target, positions(4, 150))
    assert "num_samples=" in draws.warnings[0].message
    wanted = int(draws.warnings[0].message.split("num_samples=")[1].split()[0])
    assert 150 < wanted < 3000
    assert "at least four chains" in make(target, positions(1, 3000)).warnings[0].message


def test_groups_use_the_nested_r_hat(target):
    x = positions(512, 20, phi=0.5)
    # Halves of ten draws with a correlation time of three: exact chains have R-hat^2 near 1.2. The
    # means of 64 chains have variance 0.0023, so the nested R-hat is below 1.01 with 5 sigma.
    assert names_of(make(target, x)) == ["not_converged"]
    assert names_of(make(target, x, metadata={"num_groups": 8})) == []


def test_divergences_by_chain(target):
    divergent = np.zeros((4, 1000), bool)
    divergent[2, :30] = divergent[0, :10] = True
    found = make(target, positions(), is_divergent=divergent).warnings
    assert [f.name for f in found] == ["divergences"]
    assert found[0].chains == (2,) and "chain 2" in found[0].message and found[0].value == 0.03


def test_a_rate_above_one_per_cent_is_told_from_chance():
    few, many = np.zeros(64, int), np.zeros(64, int)
    few[5], many[5] = 3, 12
    assert not rate_is_above(few, 256, 0.01).any()
    assert rate_is_above(many, 256, 0.01).nonzero()[0].tolist() == [5]
    assert rate_is_above(np.full(64, 4), 256, 0.01).all()  # together 256 of 16 384, 7 sigma
    counts = np.random.default_rng(0).binomial(256, 0.01, size=(1000, 64))
    alarms = np.mean([rate_is_above(row, 256, 0.01).any() for row in counts])
    # At most .05, and three standard errors of a share of 1000.
    assert 0 < alarms < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_stuck_chain_counts_thinned_steps(target):
    x = positions()
    x[3, 400:421] = x[3, 400]
    assert longest_stay([x]).tolist() == [0, 0, 0, 20]
    # Parts share one draw, and the stay goes across them.
    assert longest_stay([x[:, :408], x[:, 407:415], x[:, 414:]]).tolist() == [0, 0, 0, 20]
    assert "stuck" not in names_of(make(target, x))
    found = [f for f in make(target, x, metadata={"thin": 5}).warnings if f.name == "stuck"]
    assert found[0].chains == (3,) and found[0].value == 100


def test_slow_chain(target):
    rate = np.full((4, 1000), 0.8)
    rate[1] = 0.1
    found = make(target, positions(), acceptance_rate=rate).warnings
    assert [(f.name, f.chains) for f in found] == [("acceptance", (1,))]


def test_energy_finding_is_for_adjusted_kernels(target):
    energy = np.cumsum(np.random.default_rng(0).normal(size=(4, 1000)), axis=1)
    few = positions()[:, :100]
    found = make(target, few, energy=energy[:, :100]).warnings
    assert [f.name for f in found] == ["not_converged", "energy"]
    assert found[1].chains == (0, 1, 2, 3)
    # Where the tails are reached often enough they are not reached slowly.
    assert names_of(make(target, positions(), energy=energy)) == []
    assert names_of(make(target, positions(), energy=energy, tuned=Unadjusted())) == ["bias"]


def test_bias_of_unadjusted_kernels(target):
    tuned = Scaled(Unadjusted(np.float32(0.125)), np.ones(5))
    draws = make(target, positions(), tuned=tuned)
    assert names_of(draws) == ["bias"]
    message = draws.warnings[0].message
    assert "Scaled(Unadjusted)" in message and "+h²/12" in message and "h = 0.125" in message
    assert set(draws.tuned_numbers) == {"step_size", "scale"}


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"interrupted": True, "num_samples": 2000}, "interrupted"),
        ({"num_samples": 2000}, "fewer_draws"),
        ({"num_samples": 2000, "unmet": "ESS of tau is 90"}, "unmet"),
    ],
)
def test_length(target, metadata, name):
    found = make(target, positions(), metadata=metadata).warnings
    assert [f.name for f in found] == [name] and "1000 draws a chain of the 2000" in found[
        0
    ].message


def test_findings_of_the_driver_come_first_and_once(target):
    given = Finding("not_converged", "as stored")
    x = positions(4, 100)
    draws = Draws(target, x, {}, tuned=Unadjusted(), warnings=[given])
    assert draws.warnings[0].message == "as stored"
    assert names_of(draws) == ["not_converged", "bias"]


def test_no_draws_at_all(target):
    draws = make(target, positions()[:, :0], metadata={"interrupted": True})
    assert draws.parameters["theta"].shape == (4, 0, 3)
    assert draws.summary().isna().all(axis=None) and not draws.convergence.converged
    assert names_of(draws) == ["interrupted"] and "NOT CONVERGED" in repr(draws)


@pytest.mark.parametrize(
    ("x", "stats", "cure"),
    [
        (np.zeros((4, 10, 3)), {}, r"\(chains, draws, 5\); got \(4, 10, 3\)"),
        (np.zeros((4, 10, 5)), {"energy": np.zeros((10, 4))}, r"stats\['energy'\]"),
    ],
)
def test_shapes_must_agree(target, x, stats, cure):
    with pytest.raises(ValueError, match=cure):
        Draws(target, x, stats, tuned=None)

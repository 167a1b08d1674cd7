"""Samplers as kernels of NumPyro: what works with its own kernels works with ours."""

import pickle
import subprocess
import sys
import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, DiscreteGibbs, Gibbs, Predictive
from numpyro.infer.gibbs import discrete_latent_sites

from driftbridge import samplers, targets
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import chain_keys, streams
from driftbridge.samplers.numpyro import SamplerKernel
from tests.laws.samplers import SAMPLERS

# NumPyro donates buffers that its vmapped loop does not use.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers")

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0])
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0])
NUM_CHAINS = 4
FIELDS = ("potential_energy", "energy", "num_steps", "accept_prob", "adapt_state.step_size")


def schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("school", sigma.shape[0]):
        eta = numpyro.sample("eta", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gaussian(scale):
    numpyro.sample("x", dist.Normal(0.0, scale).to_event(1))


def mixture(weights, means):
    c = numpyro.sample("c", dist.Categorical(weights))
    numpyro.sample("x", dist.Normal(means[c], 0.5))
    numpyro.sample("scale", dist.HalfNormal(1.0))


def mcmc(kernel, num_warmup=30, num_samples=20, chain_method="vectorized", **settings):
    settings = {"num_chains": NUM_CHAINS, "progress_bar": False} | settings
    return MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        chain_method=chain_method,
        **settings,
    )


@cache
def finished(name):
    """A run of the model, which no test changes."""
    run = mcmc(SamplerKernel(schools, SAMPLERS[name]()))
    run.run(jax.random.key(0), SIGMA, Y, extra_fields=FIELDS)
    return run


def extra_fields(name):
    fields = finished(name).get_extra_fields(group_by_chain=True)
    assert set(fields) == {*FIELDS, "diverging"}
    assert all(field.shape == (NUM_CHAINS, 20) for field in fields.values())
    # Chains are tuned each alone, and go on as they were tuned.
    steps = np.asarray(fields["adapt_state.step_size"])
    assert len(np.unique(steps[:, 0])) == NUM_CHAINS
    assert np.all(steps == steps[:, :1])
    assert np.all(fields["num_steps"] >= 1)
    if SAMPLERS[name]().facts.adjusted:
        assert np.all(np.isfinite(fields["energy"]))


def potential_energy_is_numpyros(name):
    state = finished(name).last_state
    with jax.numpy_rank_promotion("allow"):
        potential = partial(numpyro.infer.util.potential_energy, schools, (SIGMA, Y), {})
        theirs = jax.vmap(potential)(state.z)
    # Where a hardly tuned unadjusted chain is lost, squares overflow in one of two programs.
    near = np.asarray(theirs) < 1e3
    assert near.sum() >= 2
    # Round-off of a sum of about ten terms in float32.
    np.testing.assert_allclose(state.potential_energy[near], theirs[near], rtol=1e-5)


def summary(name, capsys):
    finished(name).print_summary()
    printed = capsys.readouterr().out
    assert "tau" in printed and "theta" not in printed
    diverging = int(finished(name).get_extra_fields()["diverging"].sum())
    assert f"Number of divergences: {diverging}" in printed


def shapes_and_deterministic_sites(name):
    draws = finished(name).get_samples(group_by_chain=True)
    assert draws["theta"].shape == (NUM_CHAINS, 20, 5)
    expected = draws["mu"][..., None] + draws["tau"][..., None] * draws["eta"]
    np.testing.assert_allclose(draws["theta"], expected, rtol=1e-5, atol=1e-5)  # float32


def predictive(name):
    draws = finished(name).get_samples()
    replicated = Predictive(schools, draws)(jax.random.key(1), SIGMA)["y"]
    assert replicated.shape == (NUM_CHAINS * 20, 5)


def arviz_data(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own
        import arviz

        data = arviz.from_numpyro(finished(name), log_likelihood=True)
    assert data.posterior["theta"].dims == ("chain", "draw", "school")
    assert data.log_likelihood["y"].shape == (NUM_CHAINS, 20, 5)
    assert {"lp", "n_steps", "acceptance_rate", "step_size", "energy"} <= set(data.sample_stats)


def continuation(name):
    """20 + 20 draws are the 40 of one run, bit for bit, also by a run that was pickled between."""
    kernel = SamplerKernel(gaussian, SAMPLERS[name]())
    scale = jnp.array([1.0, 3.0])
    whole, parts = mcmc(kernel, num_samples=40), mcmc(kernel)
    whole.run(jax.random.key(2), scale)
    parts.run(jax.random.key(2), scale)
    first = parts.get_samples(True)["x"]
    parts = pickle.loads(pickle.dumps(parts))
    parts.post_warmup_state = parts.last_state
    parts.run(parts.post_warmup_state.rng_key, scale)
    joined = jnp.concatenate([first, parts.get_samples(True)["x"]], axis=1)
    np.testing.assert_array_equal(joined, whole.get_samples(True)["x"])


def new_data(name):
    """With `jit_model_args` the arguments of the present run count, not those of the first."""
    kernel = SamplerKernel(gaussian, SAMPLERS[name]())
    run = mcmc(kernel, jit_model_args=True)
    run.run(jax.random.key(3), jnp.array([1.0, 3.0]))
    run.run(jax.random.key(3), jnp.array([1e-2, 1.0]))
    fresh = mcmc(SamplerKernel(gaussian, SAMPLERS[name]()))
    fresh.run(jax.random.key(3), jnp.array([1e-2, 1.0]))
    # Data are constants of one program and arguments of the other: round-off of 50 transitions.
    np.testing.assert_allclose(
        run.get_samples()["x"], fresh.get_samples()["x"], rtol=1e-3, atol=1e-5
    )


def potential_of_trees(name):
    """A potential of an array and of a dict of the same numbers: the same draws."""
    with jax.enable_x64(True):
        trees_agree(name)


def trees_agree(name):
    starts = jnp.linspace(-1.0, 1.0, 3 * NUM_CHAINS).reshape(NUM_CHAINS, 3)

    def of_array(z):
        return jnp.sum(z**2) / 2

    def of_dict(z):
        return (z["a"] ** 2 + jnp.sum(z["b"] ** 2)) / 2

    alone, together = (
        mcmc(SamplerKernel(None, SAMPLERS[name](), potential_fn=fn)) for fn in (of_array, of_dict)
    )
    alone.run(jax.random.key(4), init_params=starts)
    together.run(
        jax.random.key(4),
        init_params={"a": starts[:, 0], "b": starts[:, 1:]},
        extra_fields=("z.a", "potential_energy"),
    )
    draws = together.get_samples()
    joined = jnp.concatenate([draws["a"][:, None], draws["b"]], axis=1)
    # Sums in another order, over 50 transitions in float64.
    np.testing.assert_allclose(alone.get_samples(), joined, rtol=1e-7, atol=1e-8)


def single_precision_under_x64(name):
    with jax.enable_x64(True):
        starts = {"x": jnp.zeros((NUM_CHAINS, 2), jnp.float32)}
        run = mcmc(SamplerKernel(gaussian, SAMPLERS[name]()))
        run.run(jax.random.key(5), jnp.array([1.0, 3.0]), init_params=starts)
        assert run.last_state.z["x"].dtype == run.get_samples()["x"].dtype == jnp.float32
        assert run.last_state.potential_energy.dtype == jnp.float32


def block_of_gibbs(name):
    """A discrete site next to ours: sites of every block move, and none is lost."""
    kernel = Gibbs(
        [
            (DiscreteGibbs(mixture), discrete_latent_sites),
            (SamplerKernel(mixture, SAMPLERS[name]()), None),
        ]
    )
    run = mcmc(kernel, chain_method=jax.vmap)
    arguments = jnp.array([0.3, 0.7]), jnp.array([-1.0, 1.0])
    run.run(jax.random.key(6), *arguments, extra_fields=("block_states.1.diverging",))
    draws = run.get_samples(group_by_chain=True)
    # Unadjusted chains that are hardly tuned yet get where the exponential underflows.
    assert np.all(np.ptp(draws["x"], axis=1) > 0) and np.all(np.isfinite(draws["scale"]))
    assert np.all(np.ptp(draws["scale"], axis=1) > 0)
    assert run.get_extra_fields()["block_states.1.diverging"].mean() < 0.5


ITEMS = [
    extra_fields,
    potential_energy_is_numpyros,
    summary,
    shapes_and_deterministic_sites,
    predictive,
    arviz_data,
    continuation,
    new_data,
    potential_of_trees,
    single_precision_under_x64,
    block_of_gibbs,
]


# JitteredHMC steps in one form in warm-up and after it, UBU in two.
ON_ONE_RUN = ITEMS[: ITEMS.index(continuation)]
QUICK = [("JitteredHMC", item) for item in ITEMS] + [("UBU", item) for item in ON_ONE_RUN]
OFTEN = ("JitteredHMC", "UBU", "MALA", "LocalScaleHMC")
PAIRS = [
    pytest.param(
        name,
        item,
        marks=[]
        if (name, item) in QUICK
        else [pytest.mark.slow if name in OFTEN else pytest.mark.long],
        id=f"{name}-{item.__name__}",
    )
    for name in SAMPLERS
    for item in ITEMS
]


@pytest.mark.parametrize(("name", "item"), PAIRS)
def test_just_works(name, item, capsys):
    item(name, capsys) if item is summary else item(name)
    if item not in ON_ONE_RUN:
        jax.clear_caches()  # XLA fails after some hundred of such programs in one process


@pytest.mark.slow
@pytest.mark.parametrize("name", ["JitteredHMC", pytest.param("UBU", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("x64")
def test_transitions_are_those_of_run(name):
    """Warm-up included: what holds of `samplers.run` holds of the kernel."""
    sampler, key, num_warmup = SAMPLERS[name](), jax.random.key(7), 60
    target = targets.from_numpyro(gaussian, jnp.array([1.0, 3.0]))
    start = jnp.array([0.5, -1.0])
    own = chain_keys(streams(key).steps, jnp.arange(1, dtype=jnp.int32))[0]
    kernel = SamplerKernel(gaussian, sampler)
    state = kernel.init(key, num_warmup, {"x": start}, (jnp.array([1.0, 3.0]),))
    state = state._replace(rng_key=own)

    def step(state, _):
        state = kernel.sample(state, (jnp.array([1.0, 3.0]),), None)
        return state, state.z["x"]

    found = jax.jit(lambda state: jax.lax.scan(step, state, length=num_warmup + 20)[1])(state)
    parts = cast_floating((target, sampler, samplers.Warmup()), jnp.float64)
    record = jax.jit(
        lambda key: samplers.run(
            *parts[:2], start[None], key, num_samples=20, num_warmup=num_warmup, adapt=parts[2]
        )[0]
    )(key)
    # Two programs of the same transitions: round-off of 80 of them.
    np.testing.assert_allclose(found[num_warmup:], record.position[:, 0], rtol=1e-9, atol=1e-9)


FIVE_METHODS = """
import warnings
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from tests.laws.samplers import SAMPLERS
from tests.test_numpyro_plugin import SamplerKernel, gaussian, mcmc

mesh = Mesh(np.array(jax.devices()), ("chains",))
over_devices = lambda f: jax.jit(jax.shard_map(
    jax.vmap(f), mesh=mesh, in_specs=P("chains"), out_specs=P("chains"), check_vma=False))
METHODS = ["vectorized", "sequential", "parallel", jax.vmap, over_devices]
warnings.simplefilter("ignore")
for name in {names}:
    draws = []
    for method in METHODS:
        run = mcmc(SamplerKernel(gaussian, SAMPLERS[name]()), chain_method=method)
        assert run.chain_method == method
        run.run(jax.random.key(8), jnp.array([1.0, 3.0]), extra_fields=("adapt_state.step_size",))
        draws.append(np.asarray(run.get_samples(True)["x"]))
        steps = np.asarray(run.get_extra_fields(True)["adapt_state.step_size"])
        assert len(np.unique(steps[:, 0])) == 4, (name, method, steps)
    for method, found in zip(METHODS, draws):
        np.testing.assert_allclose(found, draws[0], 1e-5, 1e-5, err_msg=f"{name} {method}")
"""


REST = sorted(set(SAMPLERS) - {"JitteredHMC", "UBU"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [["JitteredHMC"], ["UBU"], pytest.param(REST, marks=pytest.mark.long)],
    ids=["JitteredHMC", "UBU", "rest"],
)
def test_chain_methods_agree(names):
    """Four chains on four devices, each tuned alone: the same draws by all five methods."""
    code = FIVE_METHODS.replace("{names}", repr(names))
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_second_run_compiles_nothing(monkeypatch):
    """With the progress bar, whose loop NumPyro keeps; without it NumPyro compiles at every run."""
    run = mcmc(SamplerKernel(gaussian, samplers.MALA()), num_chains=1, num_samples=5, num_warmup=5)
    run.progress_bar = True  # NumPyro takes it away where CI is set
    scale = jnp.array([1.0, 3.0])
    run.run(jax.random.key(0), scale)
    watch = Compilations()
    run.run(jax.random.key(1), scale)
    assert watch.programs == 0
    assert "acceptance" in run.sampler.get_diagnostics_str(run.last_state)


@pytest.mark.slow
def test_legacy_keys_are_taken():
    draws = []
    for key in (jax.random.key(9), jax.random.PRNGKey(9)):
        run = mcmc(SamplerKernel(gaussian, samplers.MALA(), adapt=None), num_samples=5)
        run.run(key, jnp.array([1.0, 3.0]))
        run.post_warmup_state = run.last_state
        run.run(key, jnp.array([1.0, 3.0]))
        draws.append(run.get_samples()["x"])
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SamplerKernel(), ValueError, "one of model and potential_fn"),
        (lambda: SamplerKernel(samplers.MALA()), TypeError, "model must be a function"),
        (lambda: SamplerKernel(gaussian, samplers.MALA), TypeError, r"Write MALA\(\.\.\.\)"),
        (lambda: SamplerKernel(gaussian, adapt="yes"), TypeError, "adapt must be"),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def nowhere(potential):
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.factor("nowhere", -potential)


@pytest.mark.parametrize(
    ("model", "arguments", "init_params", "message"),
    [
        (mixture, (jnp.ones(2) / 2, jnp.ones(2)), None, "discrete latent sites c: sum them out"),
        (nowhere, (jnp.inf,), None, "no start with a finite log density .* for chain 0"),
        (nowhere, (jnp.nan,), {"x": jnp.zeros(4)}, "init_params of chain 0 the log density is nan"),
        (nowhere, (0.0,), {"y": jnp.zeros(4)}, "one array for each of x"),
        (nowhere, (0.0,), {"x": jnp.zeros((4, 2))}, "unconstrained shape is"),
    ],
)
def test_bad_starts_are_named(model, arguments, init_params, message):
    run = mcmc(SamplerKernel(model, samplers.MALA()))
    with pytest.raises(ValueError, match=message):
        run.run(jax.random.key(0), *arguments, init_params=init_params)


def moving(weights):
    c = numpyro.sample("c", dist.Categorical(weights))
    numpyro.sample("x", dist.Uniform(0.0, 1.0 + c))


@pytest.mark.slow
def test_supports_that_move_between_blocks_are_named():
    blocks = [(DiscreteGibbs(moving), discrete_latent_sites), (SamplerKernel(moving), None)]
    with pytest.raises(ValueError, match="the supports of x depend on c, of another block"):
        mcmc(Gibbs(blocks), num_chains=1).run(jax.random.key(0), jnp.ones(2) / 2)


def test_potential_needs_a_start():
    run = mcmc(SamplerKernel(potential_fn=lambda z: z**2))
    with pytest.raises(ValueError, match="has no other start"):
        run.run(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [samplers.MALA(), samplers.UBU()], ids=["adjusted", "not"])
def test_a_lost_chain_is_reported(sampler):
    """Of two chains one starts where the density is no number, and nothing could be raised."""
    run = mcmc(
        SamplerKernel(potential_fn=lambda z: jnp.where(z < 5, z**2 / 2, jnp.nan), sampler=sampler),
        num_chains=2,
        chain_method=jax.vmap,
    )
    run.run(jax.random.key(0), init_params=jnp.array([0.0, 10.0]))
    diverging = run.get_extra_fields(group_by_chain=True)["diverging"]
    assert not diverging[0].any() and diverging[1].all()
    assert run.last_state.adapt_state.num_diverging[1] == 30
    assert np.isfinite(run.get_samples(group_by_chain=True)[0]).all()


@pytest.mark.slow
def test_posterior_is_that_of_a_closed_form():
    """Two Gaussians observed once: mean and variance of the posterior."""

    run = mcmc(SamplerKernel(conjugate), num_warmup=200, num_samples=1000, num_chains=8)
    run.run(jax.random.key(1), 2.0)
    draws = np.asarray(run.get_samples()["mu"])
    # Effective draws of 8000 are above 4000 (hardly correlated trajectories): 5 standard errors.
    assert abs(draws.mean() - 1.6) < 5 * np.sqrt(0.8 / 4000)
    assert abs(draws.var() - 0.8) < 5 * 0.8 * np.sqrt(2 / 4000)


def test_starts_by_a_strategy():
    strategy = numpyro.infer.init_to_value(values={"mu": 1.5, "tau": 2.0, "eta": jnp.ones(5)})
    kernel = SamplerKernel(schools, samplers.MALA(), init_strategy=strategy)
    z = kernel.init(jax.random.split(jax.random.key(0), 4), 0, None, (SIGMA, Y)).z
    np.testing.assert_allclose(z["mu"], 1.5)
    np.testing.assert_allclose(z["tau"], np.log(2.0), rtol=1e-6)  # float32


def conjugate(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


# Chains that are tuned together: sixteen or more, vectorized.
MANY = 16


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_many_chains_are_tuned_together_as_by_run():
    key, num_warmup, scale = jax.random.key(10), 200, jnp.array([1.0, 3.0])
    starts = jax.random.normal(key, (MANY, 2))
    kernel = SamplerKernel(gaussian)
    state = kernel.init(jax.random.split(key, MANY), num_warmup, {"x": starts}, (scale,))
    state = state._replace(rng_key=chain_keys(streams(key).steps, jnp.arange(MANY)))

    def step(state, _):
        state = kernel.sample(state, (scale,), None)
        return state, state.z["x"]

    end, found = jax.jit(lambda state: jax.lax.scan(step, state, length=num_warmup))(state)
    parts = (targets.from_numpyro(gaussian, scale), samplers.LocalScaleHMC(spread=0.0))
    parts = cast_floating((*parts, samplers.EnsembleWarmup()), jnp.float64)
    record = jax.jit(
        lambda key: samplers.run(
            *parts[:2], starts, key, num_samples=20, num_warmup=num_warmup, adapt=parts[2]
        )[0]
    )(key)
    tuned = int(end.warmup.num_warmup)
    assert tuned < num_warmup - 20 and end.warmup.adapt.is_done(end.warmup.adaptation)
    # Two programs of the same transitions: round-off of about a hundred of them.
    np.testing.assert_allclose(found[tuned : tuned + 20], record.position, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_many_chains_go_on_as_they_were_tuned():
    whole, parts = (mcmc(SamplerKernel(conjugate), 48, n, num_chains=MANY) for n in (40, 20))
    whole.run(jax.random.key(11), 2.0, extra_fields=FIELDS)
    parts.run(jax.random.key(11), 2.0)
    first = parts.get_samples(True)["mu"]
    parts.post_warmup_state = parts.last_state
    parts.run(parts.post_warmup_state.rng_key, 2.0)
    joined = jnp.concatenate([first, parts.get_samples(True)["mu"]], axis=1)
    np.testing.assert_array_equal(joined, whole.get_samples(True)["mu"])
    step_size = whole.get_extra_fields()["adapt_state.step_size"]
    assert step_size.shape == (MANY * 40,) and jnp.all(step_size == step_size[0])


@pytest.mark.slow
def test_an_ensemble_that_does_not_agree_is_named():
    run = mcmc(SamplerKernel(schools), num_warmup=20, num_samples=2, num_chains=MANY)
    with pytest.warns(UserWarning, match=r"did not agree; (mu|tau|eta\[\d\]) still drifted"):
        run.run(jax.random.key(12), SIGMA, Y)
        jax.effects_barrier()


@pytest.mark.parametrize("method", ["sequential", jax.vmap], ids=["sequential", "vmap"])
def test_an_ensemble_needs_all_chains_at_once(method):
    kernel = SamplerKernel(gaussian, samplers.LocalScaleHMC(), adapt=samplers.EnsembleWarmup())
    with pytest.raises(ValueError, match='chain_method="vectorized", from 16 chains on'):
        mcmc(kernel, num_chains=MANY, chain_method=method).run(jax.random.key(0), jnp.ones(2))

"""BlackJAX's machinery around our samplers, and its samplers in our driver."""

import subprocess
import sys
from functools import partial

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from blackjax.ns.adaptive import init as ns_init
from blackjax.ns.base import init_state_strategy
from blackjax.ns.from_mcmc import build_kernel as ns_kernel
from blackjax.ns.from_mcmc import reject_constrained_step
from blackjax.smc import extend_params
from blackjax.smc.resampling import systematic

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.samplers import BAOAB, HMC, LMC, MALA, AdjustedKinetic, JitteredHMC
from driftbridge.samplers.blackjax import as_blackjax, from_blackjax, metric_of
from tests.laws import test_engineering
from tests.laws.samplers import SAMPLERS

MEAN, VARIANCE = np.array([1.0, 1.0, 0.0]), np.array([4.0, 4.0, 0.25])
PRIOR_VARIANCE = 25.0
# Of `log_density` times `prior`: precisions add up.
POSTERIOR_VARIANCE = 1 / (1 / VARIANCE + 1 / PRIOR_VARIANCE)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * MEAN / VARIANCE
LOG_EVIDENCE = np.sum(
    np.log(POSTERIOR_VARIANCE / PRIOR_VARIANCE) / 2
    - MEAN**2 / VARIANCE / 2
    + POSTERIOR_MEAN**2 / POSTERIOR_VARIANCE / 2
)
IDS = {"ids": lambda sampler: type(sampler).__name__}


@pytest.fixture
def allowed():
    """BlackJAX's own loops promote ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def log_density(p):
    """A Gaussian of a tree, of moments `MEAN` and `VARIANCE`."""
    return -jnp.sum((p["a"] - 1) ** 2) / 8 - 2 * p["b"] ** 2


def log_prior(p):
    """A normalised Gaussian of the same tree."""
    square = jnp.sum(p["a"] ** 2) + p["b"] ** 2
    return -square / (2 * PRIOR_VARIANCE) - 1.5 * np.log(2 * np.pi * PRIOR_VARIANCE)


def start(dtype="float32"):
    return {"a": jnp.zeros(2, dtype), "b": jnp.zeros((), dtype)}


def prior_draws(count):
    normal = partial(jax.random.normal, dtype=jnp.float32)
    scale = np.float32(np.sqrt(PRIOR_VARIANCE))
    a, b = jax.random.split(jax.random.key(8))
    return {"a": scale * normal(a, (count, 2)), "b": scale * normal(b, (count,))}


def flat(position):
    return np.column_stack([np.asarray(position["a"]), np.asarray(position["b"])])


def run(algorithm, num_steps, key=3, **start_at):
    start_at = start_at or {"initial_position": start()}
    _, (positions, infos) = blackjax.util.run_inference_algorithm(
        jax.random.key(key), algorithm, num_steps, transform=lambda s, i: (s.position, i),
        **start_at,
    )  # fmt: skip
    return flat(positions), jax.tree.map(np.asarray, infos)


def require_moments(draws):
    """Means and variances within their errors, taken from 40 batches."""
    for values, truth in ((draws, MEAN), ((draws - MEAN) ** 2, VARIANCE)):
        batches = np.mean(np.reshape(values, (40, -1, 3)), axis=1)
        error = np.std(batches, axis=0, ddof=1) / np.sqrt(40)
        # Student's t of 39 degrees, six numbers: one false alarm in 1e5 is at 5.5.
        assert np.all(np.abs(np.mean(batches, axis=0) - truth) < 5.5 * error)


def require_posterior(draws, weights=None, worth=4):
    """Weighted means and variances, of draws each `worth` of which are as good as one."""
    weights = np.full(len(draws), 1 / len(draws)) if weights is None else np.asarray(weights)
    count = 1 / np.sum(weights**2) / worth
    error = np.sqrt(POSTERIOR_VARIANCE / count)
    assert np.all(np.abs(weights @ draws - POSTERIOR_MEAN) < 5 * error)
    square = weights @ (draws - POSTERIOR_MEAN) ** 2
    assert np.all(np.abs(square - POSTERIOR_VARIANCE) < 5 * np.sqrt(2 / count) * POSTERIOR_VARIANCE)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "sampler",
    # BAOAB has no bias on a Gaussian; 4 h² is far below 4, where it becomes unstable.
    [MALA(0.15), JitteredHMC(0.3, 1.5), AdjustedKinetic(0.4), BAOAB(0.4)],
    **IDS,
)
def test_moments_in_the_loop_of_blackjax(sampler):
    draws, infos = run(as_blackjax(sampler)(log_density), 40_800)
    require_moments(draws[800:])
    assert draws.dtype == np.float32
    assert 0.6 < np.mean(infos.acceptance_rate) <= 1
    assert not np.any(infos.is_divergent)
    assert np.all(infos.num_gradients >= 1)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(("x64", "is_diagonal"), [(False, True), (True, False)])
def test_window_adaptation_tunes_step_and_metric(x64, is_diagonal):
    algorithm = as_blackjax(JitteredHMC(0.3, 1.5))
    with jax.enable_x64(x64):
        warmup = blackjax.window_adaptation(algorithm, log_density, is_diagonal)
        (state, parameters), _ = warmup.run(jax.random.key(0), start(), num_steps=400)
        draws, infos = run(
            algorithm(log_density, **parameters), 8000, initial_state=state
        )  # fmt: skip
    require_moments(draws)
    assert draws.dtype == np.float32
    # Stan's shrinkage and a window of 200 dependent draws: within a factor of two.
    metric = np.asarray(parameters["inverse_mass_matrix"])
    variance = metric if is_diagonal else np.diag(metric)
    assert np.all(np.abs(np.log(variance / VARIANCE)) < np.log(2))
    # Dual averaging over the last 50 steps of one chain leaves the rate uncertain by 0.05.
    assert 0.6 < np.mean(infos.acceptance_rate) < 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
def test_other_warm_ups():
    algorithm = as_blackjax(JitteredHMC(0.3, 1.5))
    warmup = blackjax.window_adaptation_low_rank(algorithm, log_density, max_rank=2)
    (state, parameters), _ = warmup.run(jax.random.key(0), start(), 400)
    require_moments(run(algorithm(log_density, **parameters), 8000, initial_state=state)[0])
    warmup = blackjax.pathfinder_adaptation(algorithm, log_density)
    (state, parameters), _ = warmup.run(jax.random.key(0), start(), 400)
    require_moments(run(algorithm(log_density, **parameters), 8000, initial_state=state)[0])


def smc_arguments(sampler, **parameters):
    algorithm = as_blackjax(sampler)
    return {
        "logprior_fn": log_prior,
        "loglikelihood_fn": log_density,
        "mcmc_step_fn": algorithm.build_kernel(),
        "mcmc_init_fn": algorithm.init,
        "mcmc_parameters": extend_params(parameters),
        "resampling_fn": systematic,
        "num_mcmc_steps": 10,
    }


TEMPERATURES = (0.02, 0.1, 0.3, 0.6, 1.0)
SMC_KERNELS = [MALA(0.1), JitteredHMC(0.3, 1.5), AdjustedKinetic(0.4), BAOAB(0.4)]


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("sampler", SMC_KERNELS, **IDS)
def test_tempered_smc(sampler):
    smc = blackjax.tempered_smc(**smc_arguments(sampler, step_size=sampler.step_size))
    step, state, log_evidence = jax.jit(smc.step), smc.init(prior_draws(2000)), 0.0
    for i, temperature in enumerate(TEMPERATURES):
        state, info = step(jax.random.key(i), state, temperature)
        log_evidence += float(info.log_likelihood_increment)
    require_posterior(flat(state.particles), state.weights)
    # Each of five increments is a mean of 2000 weights whose relative spread is below 2.
    assert abs(log_evidence - LOG_EVIDENCE) < 5 * 2 * np.sqrt(5 / 2000)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("sampler", SMC_KERNELS[1:3], **IDS)
def test_adaptive_tempered_smc(sampler):
    metric = np.full(3, 1.0, np.float32)
    arguments = smc_arguments(sampler, step_size=0.3, inverse_mass_matrix=metric)
    smc = blackjax.adaptive_tempered_smc(**arguments, target_ess=0.5)
    step, state = jax.jit(smc.step), smc.init(prior_draws(2000))
    for i in range(50):
        state, _ = step(jax.random.key(i), state)
        if state.tempering_param >= 1:
            break
    require_posterior(flat(state.particles), state.weights)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("sampler", SMC_KERNELS[1:3], **IDS)
def test_persistent_sampling(sampler):
    arguments = smc_arguments(sampler, step_size=0.3)
    smc = blackjax.persistent_sampling_smc(**arguments, n_schedule=len(TEMPERATURES))
    step, state = jax.jit(smc.step), smc.init(prior_draws(1000))
    for i, temperature in enumerate(TEMPERATURES):
        state, _ = step(jax.random.key(i), state, temperature)
    require_posterior(flat(state.particles))
    assert abs(float(state.log_Z) - LOG_EVIDENCE) < 5 * 2 * np.sqrt(5 / 1000)

    smc = blackjax.adaptive_persistent_sampling_smc(**arguments, max_iterations=30, target_ess=2.0)
    step, state = jax.jit(smc.step), smc.init(prior_draws(1000))
    for i in range(30):
        state, _ = step(jax.random.key(i), state)
        if state.tempering_param >= 1:
            break
    require_posterior(flat(state.particles))


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("sampler", [MALA(0.3), JitteredHMC(0.3, 1.5)], **IDS)
def test_inner_kernel_of_nested_sampling(sampler):
    algorithm, count, deleted = as_blackjax(sampler), 400, 40

    def particle(position, loglikelihood_birth=jnp.nan):
        return init_state_strategy(position, log_prior, log_density, loglikelihood_birth)

    def live_variance(key, state, info, parameters):
        position = state.particles.position
        rows = jnp.column_stack([position["a"], position["b"]])
        return {"inverse_mass_matrix": jnp.var(rows, axis=0)}

    inner = reject_constrained_step(particle, log_prior, algorithm.init, algorithm.build_kernel())
    step = jax.jit(ns_kernel(inner, 10, live_variance, num_delete=deleted))
    state = ns_init(
        prior_draws(count), jax.vmap(particle), update_inner_kernel_params_fn=live_variance
    )
    for i in range(300):
        state, _ = step(jax.random.key(i), state)
        if state.integrator.logZ_live - state.integrator.logZ < -5:
            break
    found = np.logaddexp(state.integrator.logZ, state.integrator.logZ_live)
    # Skilling (2006): the error is sqrt(H / n) with the information H = KL(posterior | prior).
    ratio = POSTERIOR_VARIANCE / PRIOR_VARIANCE
    information = np.sum(ratio - 1 - np.log(ratio) + POSTERIOR_MEAN**2 / PRIOR_VARIANCE) / 2
    # Deleting a tenth at a time, and inner walks that are short, take some of it: factor 2.
    assert abs(found - LOG_EVIDENCE) < 5 * 2 * np.sqrt(information / count)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
def test_positions_are_any_tree():
    def density(p):
        return -jnp.sum(p[0]["m"] ** 2) - p[1] ** 2

    algorithm = as_blackjax(HMC(0.2))(density)
    position = ({"m": jnp.zeros((2, 2), jnp.bfloat16)}, 0.5)
    state = algorithm.init(position, jax.random.key(0))
    after, _ = jax.jit(algorithm.step)(jax.random.PRNGKey(1), state)
    assert jax.tree.map(jnp.shape, after.position) == ({"m": (2, 2)}, ())
    assert after.position[0]["m"].dtype == jnp.bfloat16
    assert jax.tree.structure(after) == jax.tree.structure(state)
    with pytest.raises(TypeError, match=r"0\.m has dtype int32; give a floating array"):
        algorithm.init(({"m": jnp.zeros(2, int)}, 0.5))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_the_contract_of_a_kernel(name):
    algorithm = as_blackjax(SAMPLERS[name](step_size=0.1))

    def step(key, metric):
        state = algorithm.init(start(), log_density)
        return state, algorithm.build_kernel()(key, state, log_density, 0.1, metric)

    # Float32 with x64 on; keys of both kinds; no metric, and those of both kinds.
    with jax.enable_x64(True):
        for key in (jax.random.key(0), jax.random.PRNGKey(0)):
            for metric in (None, jnp.ones(3), jnp.eye(3)):
                before, (after, info) = jax.eval_shape(step, key, metric)
                assert before == after
                assert after.position["a"].dtype == after.logdensity.dtype == jnp.float32
                assert info.acceptance_rate.shape == info.num_gradients.shape == ()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_low_rank_metric_is_the_matrix_it_stands_for():
    rng = np.random.default_rng(0)
    sigma, lam = rng.uniform(0.5, 2, 5), np.array([9.0, 0.1])
    basis = np.linalg.qr(rng.normal(size=(5, 2)))[0]
    metric = metric_of(LowRankInverseMassMatrix(*map(jnp.asarray, (sigma, basis, lam))))
    cholesky = jax.jacfwd(metric.unwhiten)(jnp.zeros(5))
    middle = np.eye(5) + basis @ np.diag(lam - 1) @ basis.T
    # Round-off of float64 at a condition number of about a thousand.
    np.testing.assert_allclose(cholesky @ cholesky.T, sigma[:, None] * middle * sigma, atol=1e-12)
    x = jnp.asarray(rng.normal(size=5))
    np.testing.assert_allclose(metric.whiten(metric.unwhiten(x)), x, atol=1e-12)
    np.testing.assert_allclose(metric.unwhiten_score(metric.whiten_score(x)), x, atol=1e-12)
    np.testing.assert_allclose(metric.whiten_score(x), cholesky.T @ x, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("allowed")
def test_theirs_through_ours_in_theirs():
    algorithm = as_blackjax(from_blackjax(blackjax.hmc, num_integration_steps=5))
    warmup = blackjax.window_adaptation(algorithm, log_density)
    (state, parameters), _ = warmup.run(jax.random.key(0), start(), num_steps=400)
    require_moments(run(algorithm(log_density, **parameters), 8000, initial_state=state)[0])


@pytest.mark.slow
def test_the_density_may_be_a_method_of_a_target():
    schools = db.targets.EightSchoolsNonCentered()
    state = as_blackjax(MALA())(schools.log_density).init(jnp.full(10, 0.1))
    np.testing.assert_allclose(state.logdensity_grad, schools.score(state.position), rtol=1e-5)


def test_steps_of_equal_shapes_are_traced_once():
    traces = []

    def density(p):
        traces.append(1)
        return log_density(p)

    algorithm = as_blackjax(JitteredHMC())
    kernel = algorithm.build_kernel()

    @jax.jit
    def step(key, state, step_size):
        return kernel(key, state, density, step_size)[0]

    state = step(jax.random.key(0), algorithm.init(start(), log_density), 0.1)
    count = len(traces)
    for i in range(3):
        state = step(jax.random.key(i), state, 0.1 * i)
    assert len(traces) == count
    assert int(state.step) == 4


def test_a_step_that_is_not_finite_is_refused():
    def density(p):
        return jnp.where(p < 1, 0.0, jnp.nan) * p

    algorithm = as_blackjax(LMC(100.0))(density)
    step, state = jax.jit(algorithm.step), algorithm.init(jnp.zeros(()))
    refused = 0
    for i in range(20):
        state, info = step(jax.random.key(i), state)
        refused += int(info.is_divergent)
        assert np.isfinite(state.position)
    # A position is lost by the step after the one that passed 1, if at all.
    assert refused > 0


def test_parameters_are_checked_by_name():
    with pytest.raises(TypeError, match="MALA has no parameter 'num_steps'; it has step_size, inv"):
        as_blackjax(MALA())(log_density, num_steps=3)
    with pytest.raises(TypeError, match="must be a driftbridge Sampler"):
        as_blackjax(blackjax.nuts)
    with pytest.raises(ValueError, match="step_size must be positive"):
        as_blackjax(MALA())(log_density, step_size=-1.0)


def target():
    like = {"a": np.zeros(2), "b": 0.0}
    return db.from_density(log_density, like)


THEIRS = {
    "nuts": from_blackjax(blackjax.nuts, step_size=0.3),
    "hmc": from_blackjax(blackjax.hmc, num_integration_steps=4),
    "dhmc": from_blackjax(blackjax.dhmc),
    "mala": from_blackjax(blackjax.mala),
    "barker": from_blackjax(blackjax.barker),
    "ghmc": from_blackjax(blackjax.ghmc, alpha=0.5, delta=0.2),
    "mclmc": from_blackjax(blackjax.mclmc, L=1.0),
    "adjusted_mclmc": from_blackjax(blackjax.adjusted_mclmc, integration_steps_params=(3,)),
}
LAWS = (
    test_engineering.test_facts_are_stated,
    test_engineering.test_a_batch_is_its_chains,
    test_engineering.test_state_keeps_its_structure,
    test_engineering.test_noise_knows_the_shape_of_a_position_alone,
    test_engineering.test_gradients_are_counted_as_executed,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", THEIRS)
def test_theirs_keep_the_laws_of_a_sampler(name):
    for law in LAWS:
        law(THEIRS[name])
    for dtype in ("float32", "float64"):
        for door in ("python numbers", "cast"):
            test_engineering.test_dtype_of_the_position_is_kept(THEIRS[name], dtype, door)
    assert THEIRS[name].facts.summary


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nuts", "mala", "adjusted_mclmc", "dhmc"])
def test_theirs_in_our_driver(name):
    draws = db.sample(target(), THEIRS[name], num_samples=4000, num_warmup=600, num_chains=4)
    require_moments(np.reshape(draws.positions, (-1, 3)))
    assert not draws.warnings
    scale = draws.tuned_numbers["metric.scale"]
    assert np.all(np.abs(np.log(scale**2 / VARIANCE)) < np.log(2))
    goal = THEIRS[name].facts.acceptance
    # Over twelve seeds the rates had standard deviations of 0.03 and means up to 0.07 above.
    assert abs(np.mean(draws.stats["acceptance_rate"]) - goal) < 0.2


@pytest.mark.slow
def test_a_stored_run_of_nuts_goes_on_bit_for_bit_and_another_compiles_nothing(tmp_path):
    settings = {"num_warmup": 50, "num_chains": 2, "key": 4}
    sampler = from_blackjax(blackjax.nuts, inverse_mass_matrix=np.ones(10))
    schools = db.targets.EightSchoolsNonCentered()
    whole = db.sample(schools, sampler, num_samples=150, **settings)
    db.sample(schools, sampler, num_samples=60, store=tmp_path / "run", **settings)
    again = db.resume(tmp_path / "run", num_samples=150)
    np.testing.assert_array_equal(again.positions, whole.positions)
    watch = Compilations()
    db.sample(
        schools,
        from_blackjax(blackjax.nuts, inverse_mass_matrix=np.full(10, 2.0)),
        num_samples=100,
        **settings,
    )
    assert watch.programs == 0
    assert db.load(tmp_path / "run").tuned.facts == sampler.facts


@pytest.mark.slow
def test_a_step_is_that_of_blackjax():
    gaussian, position = target(), jnp.asarray([0.3, -0.2, 1.0])
    sampler = from_blackjax(blackjax.nuts, step_size=0.5)
    noise = jnp.asarray([3, 4], jnp.uint32)
    step = jax.jit(lambda *given: sampler.step(*given))
    state, _ = step(gaussian, sampler.init(gaussian, position), noise)
    with jax.numpy_rank_promotion("allow"):
        algorithm = blackjax.nuts(gaussian.log_density, 0.5, jnp.ones(3))
        _, key = jax.random.split(jax.random.wrap_key_data(noise, impl="threefry2x32"))
        theirs, _ = jax.jit(algorithm.step)(key, algorithm.init(position))
    # Two programs: roundings may differ, by a few ulp for each of some steps.
    np.testing.assert_allclose(state.position, theirs.position, rtol=1e-5, atol=1e-5)


def test_algorithms_that_cannot_be_samplers_are_named():
    with pytest.raises(TypeError, match="holds a density already"):
        from_blackjax(blackjax.nuts(log_density, 0.1, jnp.ones(3)))
    with pytest.raises(TypeError, match="elliptical_slice does not sample a density that is given"):
        from_blackjax(blackjax.elliptical_slice)
    with pytest.raises(TypeError, match="hmc needs num_integration_steps: write from_blackjax"):
        from_blackjax(blackjax.hmc)
    with pytest.raises(TypeError, match="nuts has no parameter 'friction'; it has integrator"):
        from_blackjax(blackjax.nuts, friction=1.0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        from_blackjax(blackjax.nuts, step_size=0.0)
    with pytest.raises(TypeError, match="vector of variances, one for each coordinate"):
        from_blackjax(blackjax.nuts, inverse_mass_matrix=2.0)
    with pytest.raises(TypeError, match="integration_steps_params must be hashable"):
        from_blackjax(blackjax.adjusted_mclmc, integration_steps_params=[3])


@pytest.mark.slow
def test_blackjax_is_loaded_by_its_plug_in_alone():
    code = "import driftbridge, sys; assert 'blackjax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""NumPyro models as targets: NumPyro's own density, names, shapes, data and errors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy
from scipy import stats

from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.targets import from_numpyro

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0])
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0])


def hierarchical(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.deterministic("effect", theta - mu)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def dirichlet(counts):
    with numpyro.plate("groups", counts.shape[0]):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("n", dist.Multinomial(total_count=10, probs=p), obs=counts)


def lkj(y):
    L = numpyro.sample("L", dist.LKJCholesky(3, 2.0))
    scale = numpyro.sample("scale", dist.LogNormal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("rows", y.shape[0]):
        law = dist.MultivariateNormal(0.0, scale_tril=scale[:, None] * L)
        numpyro.sample("y", law, obs=y)


def ordered(y):
    base = dist.Normal(0, 1).expand([3]).to_event(1)
    ordering = dist.transforms.OrderedTransform()
    cuts = numpyro.sample("cuts", dist.TransformedDistribution(base, ordering))
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    numpyro.sample("y", dist.OrderedLogistic(slope * jnp.arange(4.0), cuts), obs=y)


def dynamic_support(y):
    top = numpyro.sample("top", dist.Gamma(2.0, 1.0))
    low = numpyro.sample("low", dist.Uniform(0, top))
    numpyro.sample("y", dist.Normal(low, top), obs=y)


def autoregressive(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))

    def step(level, y_t):
        level = numpyro.sample("level", dist.Normal(phi * level, 1))
        numpyro.sample("y", dist.Normal(level, 0.5), obs=y_t)
        return level, None

    scan(step, 0.0, y)


noncentered = numpyro.handlers.reparam(hierarchical, config={"theta": LocScaleReparam(0)})

MODELS = {
    "hierarchical": (hierarchical, (SIGMA, Y)),
    "noncentered": (noncentered, (SIGMA, Y)),
    "dirichlet": (dirichlet, (np.array([[5.0, 3.0, 2.0], [1.0, 1.0, 8.0]]),)),
    "lkj": (lkj, (np.random.default_rng(0).normal(size=(6, 3)),)),
    "ordered": (ordered, (np.array([0, 1, 3, 2]),)),
    "dynamic_support": (dynamic_support, (np.array([0.3, 1.2, -0.4]),)),
    "autoregressive": (autoregressive, (np.array([0.3, 1.2, -0.4, 0.1]),)),
}


def position(target, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, target.dim)


@jax.jit
def value_and_score(target, x):
    return target.value_and_score(x)


@jax.jit
def constrain(target, x):
    return target.constrain(x)


def numpyro_free_shapes(model, args):
    """Shapes of the unconstrained sites as NumPyro's own samplers see them."""

    def initialise(key, args):
        return initialize_model(key, model, model_args=args, validate_grad=False).param_info.z

    return jax.tree.map(jnp.shape, jax.eval_shape(initialise, jax.random.key(0), args))


@pytest.mark.parametrize("name", MODELS)
def test_density_and_names_are_numpyros(name, x64):
    model, args = MODELS[name]
    target = from_numpyro(model, *args)
    layout = target.layout

    @jax.jit
    def theirs(free):
        value, slope = jax.value_and_grad(lambda z: potential_energy(model, args, {}, z))(free)
        return value, slope, constrain_fn(model, args, {}, free, return_deterministic=True)

    with jax.numpy_rank_promotion("allow"):
        assert numpyro_free_shapes(model, args) == dict(
            zip(layout.names, layout.shapes, strict=True)
        )
        x = jnp.asarray(position(target))
        value, slope, expected = theirs(layout.split(x))
    ours, score = value_and_score(target, x)
    # The same formulas compiled twice in float64; values of order 100.
    np.testing.assert_allclose(ours, -value, rtol=1e-11)
    np.testing.assert_allclose(score, -layout.join(slope), rtol=1e-9, atol=1e-11)
    ours = constrain(target, x)
    assert ours.keys() == expected.keys()
    for site in expected:
        np.testing.assert_allclose(ours[site], expected[site], rtol=1e-11, atol=1e-13)


def test_hierarchical_density_is_the_closed_form_with_its_jacobian(x64):
    target = from_numpyro(hierarchical, SIGMA, Y)
    x = position(target)
    mu, log_tau, theta = x[0], x[1], x[2:]
    expected = (
        stats.norm.logpdf(mu, 0, 5)
        + stats.halfcauchy.logpdf(np.exp(log_tau), 0, 5)
        + log_tau
        + np.sum(stats.norm.logpdf(theta, mu, np.exp(log_tau)))
        + np.sum(stats.norm.logpdf(Y, theta, SIGMA))
    )
    np.testing.assert_allclose(value_and_score(target, jnp.asarray(x))[0], expected, rtol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, x64):
    model, args = MODELS[name]
    target = from_numpyro(model, *args)
    x = jnp.asarray(position(target))
    # Logarithms of differences of order 1e-2 in float64 keep twelve digits.
    np.testing.assert_allclose(target.unconstrain(constrain(target, x)), x, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_float32_under_x64_and_vmap(name, x64):
    model, args = MODELS[name]
    wide = from_numpyro(model, *args)
    narrow = cast_floating(wide, jnp.float32)
    xs = np.stack([position(wide, seed) for seed in range(3)])
    batched = jax.jit(jax.vmap(lambda x: narrow.value_and_score(x)))
    values, scores = batched(jnp.asarray(xs, jnp.float32))
    assert values.dtype == scores.dtype == jnp.float32
    for x, value, score in zip(xs, values, scores, strict=True):
        expected, slope = value_and_score(wide, jnp.asarray(x))
        # Tens of float32 roundings of terms of order ten to a hundred.
        np.testing.assert_allclose(value, expected, rtol=2e-5)
        np.testing.assert_allclose(score, slope, rtol=1e-3, atol=1e-4)


def test_construction_compiles_nothing_and_new_data_compile_nothing():
    compilations = Compilations()
    first, second = from_numpyro(hierarchical, SIGMA, Y), from_numpyro(hierarchical, SIGMA, Y + 1)
    assert compilations.programs == 0
    x = jnp.zeros(first.dim)
    before = float(value_and_score(first, x)[0])
    compilations = Compilations()
    after = float(value_and_score(second, x)[0])
    assert compilations.programs == 0 and after != before


def test_deterministic_sites_dims_and_shapes():
    target = from_numpyro(hierarchical, SIGMA, y=Y)
    draw = target.constrain(jnp.arange(7.0))
    assert set(draw) == {"mu", "tau", "theta", "effect"}
    np.testing.assert_allclose(draw["effect"], draw["theta"] - draw["mu"])
    assert target.dims == dict.fromkeys(("theta", "effect", "y"), ("schools",))
    counts = np.array([[5.0, 3.0, 2.0]])
    assert from_numpyro(dirichlet, counts).dims["p"] == ("groups", "p_dim_1")


@pytest.mark.slow
def test_observations(x64):
    target = from_numpyro(hierarchical, SIGMA, y=Y)
    observations = target.observations
    np.testing.assert_array_equal(observations.data["y"], Y)
    draw = target.constrain(jnp.asarray(position(target)))
    standardised = (Y - draw["theta"]) / SIGMA
    expected = -(standardised**2) / 2 - np.log(SIGMA) - np.log(2 * np.pi) / 2
    np.testing.assert_allclose(observations.log_likelihood(draw)["y"], expected, rtol=1e-12)
    keys = jax.random.split(jax.random.key(0), 2000)
    replicated = jax.jit(jax.vmap(lambda key: observations.predict(key, draw)["y"]))(keys)
    assert replicated.shape == (2000, 5)
    # Mean of 2000 normals: five standard errors, five entries, false alarm below 1e-5.
    error = (np.mean(replicated, axis=0) - draw["theta"]) / SIGMA
    assert np.all(np.abs(error) < 5 / np.sqrt(2000))
    # The variance of a normal has relative standard error sqrt(2 / n).
    spread = np.var(replicated, axis=0) / SIGMA**2 - 1
    assert np.all(np.abs(spread) < 5 * np.sqrt(2 / 2000))
    prior = from_numpyro(hierarchical, SIGMA)
    assert prior.observations is None and "y" in prior.layout.names


def shared_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.factor("pull", -(mu**2))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def test_replicated_data_have_the_shape_of_the_data_and_factors_are_no_data():
    target = from_numpyro(shared_mean, np.zeros(4))
    observations = target.observations
    replicated = observations.predict(jax.random.key(0), {"mu": 0.5})["y"]
    assert replicated.shape == (4,) and len(np.unique(replicated)) == 4
    assert list(observations.data) == ["y"]
    assert list(observations.log_likelihood({"mu": 0.5})) == ["y"]


def test_replicated_series_have_independent_noise():
    target = from_numpyro(autoregressive, np.zeros(4))
    draw = target.constrain(jnp.zeros(target.dim))
    noise = target.observations.predict(jax.random.key(0), draw)["y"] - draw["level"]
    assert noise.shape == (4,) and len(np.unique(noise)) == 4


def improper():
    numpyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
    numpyro.factor("f", 0.0)


def test_improper_priors_have_the_jacobian_alone():
    target = from_numpyro(improper)
    assert target.log_density(jnp.array([0.5, -2.0])) == pytest.approx(-1.5)
    assert target.observations is None


def discrete(y):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
    numpyro.sample("y", dist.Normal(z + k, 1), obs=y)


def observed_only(y):
    numpyro.sample("y", dist.Normal(0, 1), obs=y)


def delta():
    numpyro.sample("d", dist.Delta(1.0))


def learned():
    numpyro.param("w", 1.0)


def subsampled(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("data", y.shape[0], subsample_size=2) as i:
        numpyro.sample("y", dist.Normal(mu, 1), obs=y[i])


def grouped(group):
    with numpyro.plate("groups", group.max() + 1):
        numpyro.sample("mu", dist.Normal(0, 1))


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (discrete, (0.5,), "discrete latent sites z, k: sum them out"),
        (observed_only, (0.5,), "no latent sites"),
        (delta, (), "Delta distribution d: record them by numpyro.deterministic"),
        (learned, (), "param or mutable sites w: give them a prior"),
        (subsampled, (np.zeros(4),), "subsampling plates data: leave out subsample_size"),
    ],
)
def test_models_without_a_density_are_refused_with_the_cure(model, args, message):
    with pytest.raises(ValueError, match=message):
        from_numpyro(model, *args)


def test_missing_arguments_and_traced_sizes_are_explained():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'sigma'"):
        from_numpyro(hierarchical)
    with pytest.raises(jax.errors.ConcretizationTypeError) as error:
        from_numpyro(grouped, np.array([0, 1]))
    assert any("as a Python int" in note for note in error.value.__notes__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": -1.0}, "'tau' must lie strictly inside.*-1"),
        ({"theta": np.zeros(2)}, r"shape \(5,\); got \(2,\)"),
        ({"other": 0.0}, "latent sites mu, tau, theta; got"),
    ],
)
def test_unconstrain_refuses_what_is_outside(change, message):
    inside = {"mu": 0.0, "tau": 1.0, "theta": np.zeros(5)}
    with pytest.raises(ValueError, match=message):
        from_numpyro(hierarchical, SIGMA, Y).unconstrain({**inside, **change})


@pytest.mark.slow
def test_numpyro_is_not_imported_before_it_is_needed():
    code = "import driftbridge.targets, sys; assert 'numpyro' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

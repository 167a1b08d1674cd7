"""Regressions against densities written out with scipy, and the laws of their scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftbridge.targets import GLM, families, priors

FAMILIES = {
    "logistic": families.Logistic(),
    "poisson": families.Poisson(),
    "linear": families.Linear(noise=priors.HalfNormal(1.7)),
    "student": families.Student(degrees_of_freedom=3.5, noise=priors.HalfCauchy(0.8)),
}
PRIORS = {
    "gaussian": priors.Gaussian(1.3),
    "laplace": priors.Laplace(0.7),
    "horseshoe": priors.Horseshoe(0.4),
}
# Family and prior meet only in the linear predictor, so a covering set stands for all twelve.
PAIRS = [
    *((family, "horseshoe") for family in FAMILIES),
    ("logistic", "gaussian"),
    ("poisson", "laplace"),
]
every_pair = pytest.mark.parametrize(("family", "prior"), PAIRS)

N, D = 40, 5
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)


def outcomes(family, rng, n=N):
    if family == "logistic":
        return rng.integers(0, 2, n)
    return rng.poisson(3.0, n) if family == "poisson" else rng.normal(size=n)


def model(family, prior, n=N, d=D, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    offset = 0.2 * rng.normal(size=n)
    return GLM(
        X, outcomes(family, rng, n), FAMILIES[family], PRIORS[prior], offset=offset, **kwargs
    )


def positions(target, dtype=float, chains=3, seed=1):
    return 0.3 * jax.random.normal(jax.random.key(seed), (chains, target.dim), dtype)


def written_out(target, family, prior, x):
    """The log density with scipy, all constants kept, in float64."""
    X, y, x = np.asarray(target.X), np.asarray(target.y), np.asarray(x)
    d = X.shape[1]
    own = x[target.dim - target.family.size :]
    if prior == "horseshoe":
        z, local, tau = x[:d], np.exp(x[d : 2 * d]), np.exp(x[2 * d])
        beta = z * local * tau
        value = stats.norm.logpdf(z).sum() + (stats.halfcauchy.logpdf(local) + np.log(local)).sum()
        value += stats.halfcauchy.logpdf(tau, scale=0.4) + np.log(tau)
    else:
        beta = x[:d]
        law = stats.norm(scale=1.3) if prior == "gaussian" else stats.laplace(scale=0.7)
        value = law.logpdf(beta).sum()
    eta = X @ beta + np.asarray(target.offset)
    s = np.exp(own[0]) if own.size else None
    if family == "linear":
        value += stats.halfnorm.logpdf(s, scale=1.7) + np.log(s)
    if family == "student":
        value += stats.halfcauchy.logpdf(s, scale=0.8) + np.log(s)
    return value + likelihood(family, y, eta, s).sum()


def likelihood(family, y, eta, s):
    return {
        "logistic": lambda: stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-eta))),
        "poisson": lambda: stats.poisson.logpmf(y, np.exp(eta)),
        "linear": lambda: stats.norm.logpdf(y, eta, s),
        "student": lambda: stats.t.logpdf(y, 3.5, eta, s),
    }[family]()


@functools.cache
def evaluated(family, prior, d=D):
    """A target, positions, and all that the laws compare, by one program in float64."""
    with jax.enable_x64(True):
        target = model(family, prior, d=d)
        x = positions(target)

        @jax.jit
        def run(target, x):
            return {
                "many": jax.vmap(target.value_and_score)(x),
                "score": jax.vmap(target.score)(x),
                "value": jax.vmap(target.log_density)(x),
                "one": target.value_and_score(x[0]),
                "one score": target.score(x[0]),
                "batch of one": jax.vmap(target.value_and_score)(x[:1]),
                "gradient": jax.vmap(jax.value_and_grad(target.log_density))(x),
                "parameters": jax.vmap(target.constrain)(x),
                "back": jax.vmap(lambda x: target.unconstrain(target.constrain(x)))(x),
                "likelihood": target.observations.log_likelihood(target.constrain(x[0]))["y"],
            }

        return target, np.asarray(x), jax.tree.map(np.asarray, run(target, x))


@pytest.mark.slow
@every_pair
def test_density_and_likelihood_are_those_written_out(family, prior):
    target, x, ours = evaluated(family, prior)
    naive = np.array([written_out(target, family, prior, row) for row in x])
    # Values near 100 in float64; only a constant may differ.
    np.testing.assert_allclose(np.ptp(ours["value"] - naive), 0, atol=1e-10)
    first = {name: value[0] for name, value in ours["parameters"].items()}
    eta = np.asarray(target.rows)[:, :D] @ first["coefficients"] + np.asarray(target.offset)
    exact = likelihood(family, np.asarray(target.y), eta, first.get("scale"))
    np.testing.assert_allclose(ours["likelihood"], exact, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "prior", "d"), [(*pair, D) for pair in PAIRS] + [("student", "horseshoe", 23)]
)
def test_score_is_the_gradient_for_one_chain_and_many(family, prior, d):
    target, x, ours = evaluated(family, prior, d)
    assert target.rows.shape == (N, {D: D, 23: 24}[d])  # 23 columns are stored as 24
    value, gradient = ours["gradient"]
    # Sums of forty terms in float64.
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
    same(ours["many"][0], value)
    same(ours["value"], value)
    same(ours["one"][0], value[0])
    same(ours["batch of one"][0], value[:1])
    same(ours["many"][1], gradient)
    same(ours["score"], gradient)
    same(ours["one"][1], gradient[0])
    same(ours["one score"], gradient[0])
    same(ours["batch of one"][1], gradient[:1])
    same(ours["back"], x)


@every_pair
def test_float32_is_right(family, prior):
    _, x, exact = evaluated(family, prior)
    target = model(family, prior)
    run = jax.jit(lambda t, x: (jax.vmap(t.value_and_score)(x), jax.vmap(t.score)(x)))
    (value, score), alone = run(target, x.astype(np.float32))
    # Forty terms, each rounded a few times at 6e-8, and coefficients times exp of log scales.
    np.testing.assert_allclose(value, exact["value"], rtol=1e-5)
    for ours in (score, alone):
        np.testing.assert_allclose(ours, exact["score"], atol=1e-5 * np.abs(exact["score"]).max())


@pytest.mark.parametrize("enabled", [False, True])
@every_pair
def test_float32_positions_give_float32(family, prior, enabled):
    with jax.enable_x64(enabled):
        target = model(family, prior)
        key = jax.random.key(0)

        def everything(x):
            parameters = target.constrain(x)
            observed = target.observations
            return (
                jax.vmap(target.value_and_score)(x[None]),
                jax.vmap(target.score)(x[None]),
                jax.grad(target.log_density)(x),
                target.unconstrain(parameters),
                observed.log_likelihood(parameters),
                observed.predict(key, parameters),
            )

        out = jax.eval_shape(everything, jax.ShapeDtypeStruct((target.dim,), np.float32))
        assert {part.dtype for part in jax.tree.leaves(out)} == {np.dtype("float32")}


@pytest.mark.slow
def test_large_predictors_and_counts_keep_their_digits_in_float32():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(N, 1))
    # Predictors up to 200 on the right side: the log likelihood is the few near zero.
    logistic = GLM(X, X[:, 0] > 0, "logistic", priors.Gaussian(1e3))
    beta = np.full(1, 80.0, np.float32)
    exact = -np.log1p(np.exp(-np.abs(80 * X[:, 0]))).sum() - 80**2 / 2e6
    # An absolute error of half a unit of 1 each, 3e-8, for the value that shares its exponential.
    np.testing.assert_allclose(jax.jit(lambda x: logistic.log_density(x))(beta), exact, atol=2e-6)
    np.testing.assert_allclose(
        jax.jit(lambda x: logistic.value_and_score(x)[0])(beta), exact, atol=2e-6
    )
    # Counts near 1e5, where y eta and exp(eta) are 1e6 each and a float32 holds them to 0.1.
    y = rng.poisson(1e5, N)
    poisson = GLM(
        np.ones((N, 1)), y, "poisson", priors.Gaussian(1e3), offset=np.log(y.mean()) + 0 * y
    )
    for position in (0.0, 1e-3):
        beta = np.full(1, position, np.float32)
        eta = np.asarray(poisson.offset, float) + float(beta[0])
        exact = (y * (eta - np.log(y)) - np.exp(eta) + y).sum() - float(beta[0]) ** 2 / 2e6
        # The predictor's own rounding, 5e-7, times the summed |y - exp(eta)| of 300 each.
        np.testing.assert_allclose(poisson.log_density(jnp.asarray(beta)), exact, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_of_the_score_agree_in_every_mode(x64, family):
    @jax.jit
    def run(target, x):
        modes = [jax.jacfwd(target.score)(x), jax.jacrev(target.score)(x)]
        many = jax.vmap(jax.jacfwd(target.score))(x[None])[0]
        return jax.hessian(target.log_density)(x), [*modes, many]

    target = model(family, "horseshoe")
    hessian, modes = run(target, positions(target)[0])
    for mode in modes:
        np.testing.assert_allclose(mode, hessian, atol=1e-10)  # float64, entries near 10


@pytest.mark.slow
@pytest.mark.parametrize("family", ["logistic", "student"])
def test_vmap_over_data_and_over_both(x64, family):
    targets = [model(family, "horseshoe", seed=seed) for seed in (3, 4)]
    X, y = (jnp.stack([getattr(t, name) for t in targets]) for name in ("X", "y"))
    offset = jnp.stack([t.offset for t in targets])
    x = positions(targets[0], chains=2)

    def score(X, y, offset, x):
        return GLM(X, y, FAMILIES[family], PRIORS["horseshoe"], offset=offset).score(x)

    @jax.jit
    def run(X, y, offset, x):
        data = jax.vmap(score, (0, 0, 0, None))(X, y, offset, x[0])
        both = jax.vmap(score)(X, y, offset, x)
        chains = jax.vmap(score, (None, None, None, 0))
        return data, both, jax.vmap(chains, (0, 0, 0, None))(X, y, offset, x)

    data, both, crossed = run(X, y, offset, x)
    rows = jax.jit(lambda target: jnp.stack([target.score(x[0]), target.score(x[1])]))
    for i, target in enumerate(targets):
        exact = rows(target)
        np.testing.assert_allclose(data[i], exact[0], atol=1e-10)  # as above
        np.testing.assert_allclose(both[i], exact[i], atol=1e-10)
        np.testing.assert_allclose(crossed[i], exact, atol=1e-10)


@pytest.mark.slow
def test_batched_score_is_two_matrix_products():
    target = model("linear", "horseshoe")
    x = positions(target, chains=6)
    text = str(jax.make_jaxpr(jax.vmap(target.score))(x))
    assert text.count("dot_general") == 2
    compiled = jax.jit(jax.vmap(target.score)).lower(x).compile().as_text()
    assert sum(" dot(" in line for line in compiled.splitlines()) == 2


def test_nothing_is_compiled_by_construction_nor_for_new_data():
    run = jax.jit(lambda target, x: target.value_and_score(x))
    x = np.zeros(2 * D + 2, np.float32)
    run(model("student", "horseshoe"), x)
    before = len(COMPILED)
    other = GLM(
        np.ones((N, D)),
        np.zeros(N),
        families.Student(9.0, priors.HalfCauchy(3.0)),
        priors.Horseshoe(2.0),
        offset=np.ones(N),
    )
    assert len(COMPILED) == before
    run(other, x)
    assert len(COMPILED) == before and run._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_have_the_mean_of_their_law(family):
    target = model(family, "gaussian", n=500)

    @jax.jit
    def replicate(x, keys):
        parameters = target.constrain(x)
        eta = target.X @ parameters["coefficients"] + target.offset
        mean = {"logistic": jax.nn.sigmoid, "poisson": jnp.exp}.get(family, lambda eta: eta)(eta)
        draw = jax.vmap(lambda key: target.observations.predict(key, parameters)["y"])
        return parameters, mean, draw(keys)

    x = positions(target, jnp.float32)[0]
    parameters, mean, draws = replicate(x, jax.random.split(jax.random.key(5), 50))
    error = np.asarray(draws) - np.asarray(mean)
    # 25 000 independent errors: five standard errors of their own spread, a chance of 6e-7.
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size)
    if family == "linear":
        # The relative sampling error of a standard deviation is 1 / sqrt(2 n).
        scale = float(parameters["scale"])
        assert abs(error.std() / scale - 1) < 5 / np.sqrt(2 * error.size)


def test_names_label_coefficients_and_local_scales():
    names = ("one", "two", "three", "four", "five")
    target = model("linear", "horseshoe", names=names)
    assert target.dims == {"coefficients": ("coefficient",), "local_scale": ("coefficient",)}
    assert target.coords == {"coefficient": names}
    assert model("linear", "horseshoe").dims == {}
    shapes = jax.tree.map(jnp.shape, target.constrain(jnp.zeros(target.dim)))
    assert shapes == {"coefficients": (5,), "local_scale": (5,), "global_scale": (), "scale": ()}


@pytest.mark.parametrize(
    ("prior", "law"), [(priors.Gaussian, stats.norm), (priors.Laplace, stats.laplace)]
)
def test_a_scale_for_each_coefficient(x64, prior, law):
    scales = np.linspace(0.5, 2.5, D)
    target = GLM(np.zeros((N, D)), np.zeros(N), "logistic", prior(jnp.asarray(scales)))
    x = np.array(positions(target, chains=2))
    value, score = jax.jit(jax.vmap(lambda x: target.value_and_score(x)))(x)
    naive = law.logpdf(x, scale=scales).sum(1)
    slope = -x / scales**2 if law is stats.norm else -np.sign(x) / scales
    np.testing.assert_allclose(value[0] - value[1], naive[0] - naive[1], atol=1e-12)
    np.testing.assert_allclose(score, slope, atol=1e-12)


X, Y = np.ones((4, 2)), np.array([0.0, 1.0, 1.0, 0.0])


def broken(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((broken(X, (2, 1), np.nan), Y), {}, "X is nan at row 2, column 1. Drop or impute"),
        ((broken(X, (2, 1), np.inf), Y), {"names": "ab"}, "X is inf at row 2, column 'b'"),
        ((X[:, 0], Y), {}, r"shape \(n, d\).*got \(4,\)"),
        ((X.astype(str), Y), {}, "X must hold numbers; got dtype <U"),
        ((X, broken(Y, 3, np.nan)), {}, "y is nan at row 3"),
        ((X, [0, 1, None, 1]), {}, "y is nan at row 2"),
        ((X, Y[:, None]), {}, r"y must have shape \(4,\).*got \(4, 1\)"),
        ((X, Y[:3]), {}, r"y must have shape \(4,\).*got \(3,\)"),
        ((X, broken(Y, 1, 2)), {}, "y must be 0 or 1; got 2.0 at row 1. Code the two"),
        ((X, Y), {"offset": np.ones(3)}, r"offset must have shape \(4,\)"),
        ((X, Y), {"offset": broken(Y, 0, np.inf)}, "offset is inf at row 0"),
        ((X, Y), {"names": "aa"}, "names must be 2 different strings"),
        ((X, Y), {"prior": priors.Gaussian(jnp.ones(3))}, r"the 2 columns of X; got shape \(3,\)"),
        ((X, broken(Y, 1, -1)), {"family": "poisson"}, "count 0, 1, 2, ...; got -1.0 at row 1"),
        ((X, broken(Y, 1, 0.5)), {"family": "poisson"}, "got 0.5 at row 1. Use the family"),
        ((X, Y), {"family": "probit"}, "family must be a Family or one of .*; got 'probit'"),
        ((X, Y), {"prior": "flat"}, "prior must be a Prior or one of .*; got 'flat'"),
    ],
)
def test_bad_input_is_refused_with_value_and_cure(arguments, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        GLM(*arguments, **{"family": "logistic", "prior": "gaussian", **options})


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
@pytest.mark.parametrize(
    "law", [priors.Gaussian, priors.Laplace, priors.Horseshoe, priors.HalfCauchy, priors.HalfNormal]
)
def test_scales_must_be_positive(law, scale):
    with pytest.raises(ValueError, match=f"scale must be positive and finite; got {scale}"):
        law(scale)

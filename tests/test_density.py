"""Targets from users' own densities: names, shapes, Jacobians, data as leaves, errors."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.targets import constraints, from_density, log_sigmoid


class Hierarchy(NamedTuple):
    mean: float
    scales: dict


LIKE = Hierarchy(0.0, {"sigma": np.zeros(2), "weights": np.zeros((2, 3))})
CONSTRAINTS = {"scales": {"sigma": constraints.positive, "weights": constraints.simplex}}


def hierarchy(parameters, y, index, offset):
    mean, scales = parameters
    sigma = scales["sigma"][index]
    gaussian = -(((y - mean - offset) / sigma) ** 2) / 2 - jnp.log(sigma)
    return jnp.sum(gaussian) + jnp.sum(jnp.log(scales["weights"])) - jnp.sum(scales["sigma"])


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=5), np.array([0, 1, 1, 0, 1]), 0.5


def target(seed=0):
    return from_density(hierarchy, LIKE, *data(seed), constraints=CONSTRAINTS)


X = np.array([0.3, -0.5, 0.7, 0.1, -0.2, 1.1, 0.4])


@jax.jit
def evaluate(target, x):
    return target.log_density(x), target.score(x)


@pytest.mark.slow
def test_names_shapes_and_round_trip(x64):
    t = target()
    assert t.dim == 7
    parameters = t.constrain(jnp.asarray(X))
    shapes = {name: value.shape for name, value in parameters.items()}
    assert shapes == {"mean": (), "scales.sigma": (2,), "scales.weights": (2, 3)}
    # Round-off of a logarithm of an exponential, in float64.
    np.testing.assert_allclose(t.unconstrain(parameters), X, atol=1e-13)
    nested = Hierarchy(
        parameters["mean"],
        {"sigma": parameters["scales.sigma"], "weights": parameters["scales.weights"]},
    )
    np.testing.assert_array_equal(t.unconstrain(nested), t.unconstrain(parameters))


@pytest.mark.slow
def test_density_is_the_users_plus_the_jacobian(x64):
    t, x = target(), jnp.asarray(X)
    p = t.constrain(x)
    values = Hierarchy(p["mean"], {"sigma": p["scales.sigma"], "weights": p["scales.weights"]})

    def free_coordinates(x):
        p = t.constrain(x)
        parts = (p["mean"], p["scales.sigma"], p["scales.weights"][:, :-1])
        return jnp.concatenate([jnp.ravel(part) for part in parts])

    log_det = np.linalg.slogdet(jax.jacfwd(free_coordinates)(x))[1]
    expected = hierarchy(values, *data()) + log_det
    np.testing.assert_allclose(t.log_density(x), expected, rtol=1e-13)
    # Central differences of step 1e-6: truncation 1e-12, round-off 1e-10 of values of order ten.
    step = 1e-6 * np.eye(7)
    slope = [(t.log_density(x + h) - t.log_density(x - h)) / 2e-6 for h in step]
    np.testing.assert_allclose(t.score(x), slope, atol=1e-7)


def test_a_bare_array_is_named_x():
    t = from_density(lambda x: -jnp.sum(x**2) / 2, np.zeros((2, 2)))
    x = jnp.arange(4.0)
    assert t.dim == 4
    np.testing.assert_array_equal(t.constrain(x)["x"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(t.unconstrain(np.array([[0, 1], [2, 3]])), x)
    np.testing.assert_array_equal(t.score(x), -x)


def test_new_data_and_bounds_compile_nothing(monkeypatch):
    x = jnp.asarray(X, jnp.float32)
    first, _ = evaluate(target(0), x)
    compiled = evaluate._cache_size()
    second, _ = evaluate(target(1), x)
    assert evaluate._cache_size() == compiled and first != second
    filtered = eqx.filter_jit(lambda t, x: t.log_density(x))
    assert filtered(target(1), x) == pytest.approx(float(second), rel=1e-6)


def test_construction_compiles_nothing():
    compilations = Compilations()
    target()
    assert compilations.programs == 0


@pytest.mark.slow
def test_vmap_over_positions_and_over_data():
    xs = jnp.asarray(np.stack([X, X + 1, X - 1]), jnp.float32)
    t = target()
    expected = [t.log_density(x) for x in xs]
    # Rounding of float32 in another order of summation, values of order ten.
    np.testing.assert_allclose(jax.vmap(t.log_density)(xs), expected, rtol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), target(0), target(1))
    both = jax.vmap(lambda t: t.log_density(xs[0]))(stacked)
    np.testing.assert_allclose(both[1], target(1).log_density(xs[0]), rtol=1e-5)


@pytest.mark.slow
def test_float32_positions_stay_float32_under_x64(x64):
    x = jnp.asarray(X, jnp.float32)
    t = cast_floating(target(), x.dtype)
    assert all(v.dtype == jnp.float32 for v in t.constrain(x).values())
    assert t.log_density(x).dtype == t.score(x).dtype == jnp.float32
    assert t.arguments.tree[1][1].dtype == np.int64
    # Data left in float64 do not widen the result either.
    assert target().log_density(x).dtype == jnp.float32


def test_a_module_as_density_has_its_arrays_as_leaves():
    class Quadratic(eqx.Module):
        precision: jax.Array

        def __call__(self, x):
            return -self.precision * jnp.sum(x**2) / 2

    evaluated = [
        evaluate(from_density(Quadratic(jnp.float32(p)), np.zeros(2)), jnp.ones(2))[0]
        for p in (1.0, 2.0)
    ]
    assert evaluated == [-1.0, -2.0]


@pytest.mark.slow
def test_numpyro_constraints_are_accepted(x64):
    from numpyro.distributions import constraints as foreign

    like = {"corr": np.eye(3), "s": np.ones(2), "w": np.ones(3) / 3}
    chosen = {"corr": foreign.corr_cholesky, "s": foreign.greater_than(1), "w": foreign.simplex}
    t = from_density(lambda p: jnp.sum(p["corr"]) + jnp.sum(p["s"]), like, constraints=chosen)
    assert t.dim == 3 + 2 + 2
    p = t.constrain(jnp.asarray(X))
    np.testing.assert_allclose(jnp.sum(p["corr"] ** 2, axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(t.unconstrain(p), X, atol=1e-12)

    def free_coordinates(x):
        p = t.constrain(x)
        return jnp.concatenate([p["corr"][np.tril_indices(3, -1)], p["s"], p["w"][:-1]])

    log_det = np.linalg.slogdet(jax.jacfwd(free_coordinates)(jnp.asarray(X)))[1]
    expected = log_det + jnp.sum(p["corr"]) + jnp.sum(p["s"])
    np.testing.assert_allclose(t.log_density(jnp.asarray(X)), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="parameter 's' must lie strictly inside"):
        t.unconstrain({**p, "s": np.array([0.5, 2.0])})


def logistic(beta, X, y):
    return jnp.sum(log_sigmoid((2 * y - 1) * (X @ beta))) - jnp.sum(beta**2) / 2


def test_a_logistic_regression_in_two_lines(x64):
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(30, 3)), rng.integers(0, 2, size=30)
    t = from_density(logistic, np.zeros(3), X, y)
    beta = np.array([0.2, -0.4, 1.0])
    expected = X.T @ (y - 1 / (1 + np.exp(-X @ beta))) - beta
    np.testing.assert_allclose(t.score(jnp.asarray(beta)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_density(lambda p: p, np.zeros(3)), ValueError, r"shape \(3,\). Sum over"),
        (lambda: from_density(lambda p: (p, p), 0.0), TypeError, "one number"),
        (lambda: from_density(lambda p: p > 0, 0.0), TypeError, "dtype bool"),
        (lambda: from_density(lambda p: 0.0, {"n": 3}), TypeError, "'n' of like is an integer"),
        (lambda: from_density(lambda p: 0.0, {"n": np.zeros(2, int)}), TypeError, "'n'.*int"),
        (lambda: from_density(lambda p: 0.0, {"n": "a"}), TypeError, "'n' of like is a str"),
        (lambda: from_density(lambda p: 0.0, {}), ValueError, "no parameters"),
        (lambda: from_density(lambda p: 0.0, np.zeros(0)), ValueError, "no parameters"),
        (
            lambda: from_density(lambda p: 0.0, {"a": 0.0, "b": 0.0}, constraints={"c": 1}),
            ValueError,
            "'c'; the parameters are 'a', 'b'",
        ),
        (
            lambda: from_density(lambda p: 0.0, {"a": 0.0}, constraints={"a": "positive"}),
            TypeError,
            "constraint of 'a' is a str",
        ),
        (
            lambda: from_density(lambda p: 0.0, {"a": 0.0}, constraints={"a": constraints.simplex}),
            ValueError,
            "parameter 'a': a simplex",
        ),
        (
            lambda: from_density(lambda p, d: 0.0, 0.0, np.array(["u"])),
            TypeError,
            "argument 0 is an array of dtype <U1",
        ),
        (lambda: from_density(lambda p, d: 0.0, 0.0, {1, 2}), TypeError, "argument 0 is a set"),
        (lambda: from_density(lambda p, d: 0.0, 0.0), TypeError, "missing 1 required"),
        (
            lambda: from_density(lambda p: 0.0, {"a.b": 0.0, "a": {"b": 0.0}}),
            ValueError,
            "two parameters of like have the name 'a.b'",
        ),
    ],
)
def test_construction_errors_name_the_value_and_the_cure(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales.sigma": np.array([1.0, -2.0])}, "'scales.sigma' must lie.*-2"),
        ({"scales.sigma": np.array([1.0])}, r"shape \(2,\); got \(1,\)"),
        ({"scales.weights": np.full((2, 3), 0.5)}, "'scales.weights' must lie"),
        ({"mean": np.nan}, "'mean' must lie.*nan"),
        ({"other": 1.0}, "expected the parameters mean, scales.sigma, scales.weights"),
    ],
)
def test_unconstrain_refuses_what_is_outside(change, message):
    t = target()
    inside = t.constrain(jnp.asarray(X, jnp.float32))
    with pytest.raises(ValueError, match=message):
        t.unconstrain({**inside, **change})


def test_a_position_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"shape \(7,\); got \(6,\)"):
        target().log_density(jnp.zeros(6))

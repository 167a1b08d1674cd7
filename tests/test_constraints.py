"""Every constraint is a bijection with the log determinant it states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.targets import constraints

ELEMENTWISE = {
    "real": constraints.real,
    "positive": constraints.positive,
    "greater_than": constraints.greater_than(-2),
    "greater_than_array": constraints.greater_than(np.array([-1.0, 0.0, 5.0, 1e3])),
    "less_than": constraints.less_than(3.0),
    "interval": constraints.interval(-1.0, 4.0),
    "unit_interval": constraints.unit_interval,
}
VECTORS = {"simplex": constraints.simplex, "ordered": constraints.ordered}
ALL = ELEMENTWISE | VECTORS

POINT = np.array([-1.2, 0.3, 0.8, 2.1])


def free(constraint, shape=(4,)):
    """A point in the unconstrained space of values of `shape`."""
    size = constraint.unconstrained_shape(shape)
    return np.resize(POINT, size)


def coordinates(constraint, x):
    """As many coordinates of a value as it has degrees of freedom."""
    return jnp.ravel(x[..., :-1] if isinstance(constraint, constraints.Simplex) else x)


@pytest.mark.parametrize("name", ALL)
def test_round_trip(name, x64):
    c = ALL[name]
    z = jnp.asarray(free(c))
    x = c.forward(z)
    assert x.shape == (4,)
    # The bound of 1e3 costs three of sixteen digits, the exponential another.
    np.testing.assert_allclose(c.inverse(x), z, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_log_det_is_that_of_the_jacobian(name, x64):
    c = ALL[name]
    z = jnp.asarray(free(c))
    jacobian = jax.jacfwd(lambda z: coordinates(c, c.forward(z)))(z)
    expected = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(c.log_det(z), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", VECTORS)
def test_batches_of_vectors_are_independent(name, x64):
    c = VECTORS[name]
    z = jnp.asarray(free(c, (3, 2, 4)))
    rows = z.reshape(6, -1)
    np.testing.assert_allclose(c.forward(z).reshape(6, 4), jax.vmap(c.forward)(rows), rtol=1e-14)
    np.testing.assert_allclose(c.log_det(z), jnp.sum(jax.vmap(c.log_det)(rows)), rtol=1e-14)
    assert c.unconstrained_shape((3, 2, 4)) == z.shape


@pytest.mark.parametrize(
    "name", ["positive", "greater_than", "less_than", "interval", "unit", "simplex"]
)
@pytest.mark.parametrize("magnitude", [20.0, 80.0, 1e4])
def test_float32_stays_strictly_inside_at_the_extremes(name, magnitude):
    # On an open side exp overflows to infinity: the density refuses it, as any point out there.
    c, inside = {
        "positive": (constraints.positive, lambda x: x > 0),
        "greater_than": (constraints.greater_than(-2), lambda x: x > -2),
        "less_than": (constraints.less_than(3), lambda x: x < 3),
        "interval": (constraints.interval(-1, 4), lambda x: (x > -1) & (x < 4)),
        "unit": (constraints.unit_interval, lambda x: (x > 0) & (x < 1)),
        "simplex": (constraints.simplex, lambda x: (x > 0) & (x <= 1)),
    }[name]
    z = magnitude * jnp.array([-1.0, 1.0, -1.0, -1.0])
    assert np.all(inside(np.asarray(c.forward(z))))
    assert np.isfinite(c.log_det(z))
    assert np.all(np.isfinite(jax.grad(c.log_det)(z)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_argument(name, dtype, x64):
    c = ALL[name]
    z = jnp.asarray(free(c), dtype)
    x = c.forward(z)
    assert x.dtype == c.inverse(x).dtype == c.log_det(z).dtype == dtype


def test_centre_of_the_simplex_is_the_origin_and_dirichlet_is_symmetric(x64):
    c = constraints.simplex
    np.testing.assert_allclose(c.forward(jnp.zeros(4)), np.full(5, 0.2), rtol=1e-15)
    # Isometric: the norm of z is that of the centred log ratios.
    z = jnp.asarray(POINT)
    ratios = jnp.log(c.forward(z))
    centred = ratios - jnp.mean(ratios)
    np.testing.assert_allclose(jnp.sum(centred**2), jnp.sum(z**2), rtol=1e-13)


def test_interval_keeps_relative_precision_at_the_lower_end():
    z = jnp.float32(-60.0)
    # float32 carries z to 4e-6, hence exp(z) to the same relative error.
    np.testing.assert_allclose(constraints.interval(0, 10).forward(z), 10 * np.exp(-60), rtol=1e-5)


@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        (constraints.positive, [0.0]),
        (constraints.positive, [-1.0]),
        (constraints.greater_than(2), [2.0]),
        (constraints.less_than(2), [2.0]),
        (constraints.unit_interval, [0.0]),
        (constraints.unit_interval, [1.0]),
        (constraints.interval(-1, 1), [1.5]),
        (constraints.simplex, [0.0, 1.0]),
        (constraints.ordered, [1.0, 1.0]),
        (constraints.ordered, [1.0, 0.0]),
    ],
)
def test_boundary_and_outside_have_no_finite_coordinates(constraint, value):
    assert not np.all(np.isfinite(constraint.inverse(jnp.array(value))))


def test_bounds_are_leaves():
    forward = jax.jit(lambda c, z: c.forward(z))
    z = jnp.float32(0.0)
    assert forward(constraints.interval(0, 1), z) == 0.5
    assert forward(constraints.interval(2, 4), z) == 3.0
    assert forward._cache_size() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constraints.interval(1, 1), "lower=1 and upper=1"),
        (lambda: constraints.greater_than(np.inf), "lower must be finite; got inf"),
        (lambda: constraints.less_than(np.nan), "upper must be finite; got nan"),
        (lambda: constraints.simplex.unconstrained_shape((1,)), r"got \(1,\)"),
        (lambda: constraints.ordered.unconstrained_shape(()), r"shape \(\)"),
    ],
)
def test_impossible_sets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Adjusted kernels are reversible: trajectory by trajectory to round-off, and by quadrature.

A move is a map of `(x, normals)`. If it is its own inverse, keeps volume, and `E` is the change of
`U(x) + |normals|^2 / 2`, then accepting with `min(1, exp(-E))` is reversible: Green (1995), here
checked from the implemented step, its reversed normals being worked out independently.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers.adjusted_kinetic import AdjustedKinetic
from driftbridge.samplers.base import Point, Wrapper
from driftbridge.samplers.hmc import HMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.malt import MALT
from driftbridge.samplers.metropolis import MetropolisNoise
from tests.laws.targets import LogCosh

pytestmark = pytest.mark.usefixtures("x64")

# Acceptance between 0.6 and 0.9 on the target in one dimension.
MALA_, HMC_, MALT_ = MALA(0.6), HMC(0.8, 2.4), MALT(0.9, 0.7, 2)
REVERSIBLE = {"MALA": MALA_, "HMC": HMC_, "MALT": MALT_}


def point(target, position):
    return Point(position, *target.value_and_score(position))


def accepted(sampler, target, position, normals):
    """Next position where the move is accepted (`uniform = 0`), and the info."""
    noise = MetropolisNoise(normals, jnp.zeros(()))
    state, info = sampler.step(target, point(target, position), noise)
    return state.position, info


def verlet(target, x, v, h):
    v = v + h / 2 * target.score(x)
    x = x + h * v
    return x, v + h / 2 * target.score(x)


def reversed_normals(sampler, target, x, normals):
    """The normals that lead from the end of a move back to its beginning."""
    if isinstance(sampler, MALA):
        end = accepted(sampler, target, x, normals)[0]
        h = sampler.step_size
        return (x - end - h * target.score(end)) / np.sqrt(2 * h)
    if isinstance(sampler, HMC):
        count, h, v = 3, sampler.step_size, normals  # 2.4 / 0.8 steps
        for _ in range(count):
            x, v = verlet(target, x, v, h)
        return -v
    decay = np.exp(-sampler.friction * sampler.step_size)
    spread = np.sqrt(1 - decay**2)
    v, back = normals[0], []
    for i in range(sampler.num_steps):
        if i > 0:
            before, v = v, decay * v + spread * normals[i]
            back.append((decay * v - before) / spread)  # takes -v to -before
        x, v = verlet(target, x, v, sampler.step_size)
    return jnp.stack([-v, *back[::-1]])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [MALA_, HMC_, MALT(0.9, 0.7, 4)], ids=list(REVERSIBLE))
def test_a_move_is_an_involution_of_unit_volume_whose_energy_is_accepted(sampler):
    target = LogCosh(3)
    normals = sampler.noise(jax.random.key(3), jnp.zeros(3)).normal
    x = jnp.asarray([0.3, -1.2, 0.8])

    @jax.jit
    def move(x, normals):
        end, info = accepted(sampler, target, x, normals)
        return (end, reversed_normals(sampler, target, x, normals)), info.energy_error

    # Round-off of some tens of operations of size one: 1e-13 is a hundred times that.
    (end, back), error = move(x, normals)
    (again, there), _ = move(end, back)
    np.testing.assert_allclose(again, x, atol=1e-13)
    np.testing.assert_allclose(there, normals, atol=1e-13)
    energies = [
        target.potential(at) + jnp.sum(with_normals**2) / 2
        for at, with_normals in ((x, normals), (end, back))
    ]
    assert float(error) == pytest.approx(float(energies[1] - energies[0]), abs=1e-12)
    assert abs(float(error)) > 1e-3

    @jax.jit
    @jax.jacfwd
    def jacobian(z):
        ends, _ = move(z[:3], z[3:].reshape(normals.shape))
        return jnp.concatenate([part.ravel() for part in ends])

    jacobian = jacobian(jnp.concatenate([x, normals.ravel()]))
    assert abs(np.linalg.det(jacobian)) == pytest.approx(1, abs=1e-12)


def grid(width, count):
    """Nodes and weights of the trapezoidal rule, which is spectral for what decays at both ends."""
    nodes = np.linspace(-width, width, count)
    return nodes, np.full(count, nodes[1] - nodes[0])


def over_grids(count, num_normals):
    """Nodes, and weights that integrate against the target and standard normals."""
    x, w = grid(6.0, count)
    density = w * np.exp(-(x**2) / 2) / np.cosh(x) ** 2
    xi, w = grid(7.0, count)
    normal = w * np.exp(-(xi**2) / 2) / np.sqrt(2 * np.pi)
    weight = density / density.sum()
    for _ in range(num_normals):
        weight = np.multiply.outer(weight, normal)
    axes = np.meshgrid(x, *[xi] * num_normals, indexing="ij")
    return [jnp.asarray(a.ravel()) for a in axes], weight.ravel()


@eqx.filter_jit
def at_nodes(sampler, states, normals, uniform):
    def move(state, normals):
        state, info = sampler.step(LogCosh(1), state, MetropolisNoise(normals, uniform))
        return state, info.acceptance_rate

    return jax.vmap(move)(states, normals)


# Functions without parity: the target is symmetric, and would hide a sign.
FUNCTIONS = (lambda x: np.exp(x / 2), lambda x: np.cos(x + 1), lambda x: (x - 0.3) ** 2)

# The integrand has a kink where `E = 0`, so the rule's error falls as the square of the spacing;
# halving it shows errors of at most 3e-6 at these counts.
QUADRATURE = 2e-5


def asymmetry(sampler, count):
    """Largest `|E[g(x) f(x')] - E[f(x) g(x')]|` for stationary `x`, with `f = 1` among them."""
    shape = sampler.noise(jax.random.key(0), jnp.zeros(1)).normal.shape
    (x, *normals), weight = over_grids(count, int(np.prod(shape)))
    states = jax.vmap(lambda x: point(LogCosh(1), x[None]))(x)
    normals = jnp.stack(normals, axis=1).reshape(-1, *shape)
    new, rate = at_nodes(sampler, states, normals, jnp.zeros(()))
    x, y, rate = np.asarray(x), np.asarray(new.position)[:, 0], np.asarray(rate)
    assert 0.5 < np.sum(weight * rate) < 0.95
    functions = (np.ones_like, *FUNCTIONS)
    joint = np.array(
        [
            [np.sum(weight * g(x) * (rate * f(y) + (1 - rate) * f(x))) for f in functions]
            for g in functions
        ]
    )
    return np.max(np.abs(joint - joint.T))


@pytest.mark.parametrize("name", REVERSIBLE)
def test_detailed_balance_by_quadrature(name):
    count = 80 if name == "MALT" else 300
    assert asymmetry(REVERSIBLE[name], count) < QUADRATURE


class AcceptsMore(Wrapper):
    """Takes the square root of acceptance rates: a wrong correction."""

    sampler: eqx.Module

    def init(self, target, position):
        return self.sampler.init(target, position)

    def step(self, target, state, noise):
        state, info = self.sampler.step(target, state, noise)
        return state, info._replace(acceptance_rate=jnp.sqrt(info.acceptance_rate))


def test_quadrature_sees_a_wrong_correction():
    assert asymmetry(AcceptsMore(HMC_), 300) > 100 * QUADRATURE


class NeverTurns(AdjustedKinetic):
    """Keeps the velocity on rejection."""

    def step(self, target, state, noise):
        state, info = super().step(target, state, noise)
        velocity = jnp.where(noise.uniform < info.acceptance_rate, 1.0, -1.0) * state.velocity
        return state._replace(velocity=velocity), info


def kinetic_change_of_expectations(sampler, count, is_fresh=False):
    """Largest change, in one step from equilibrium, of expectations of position and velocity."""
    (x, *rest), weight = over_grids(count, 1 if is_fresh else 2)
    v, xi = (jnp.full_like(x, 1e3), *rest) if is_fresh else rest
    target = LogCosh(1)

    def state(x, v):
        start = sampler.init(target, x[None])
        return start if is_fresh else start._replace(velocity=v[None])

    states = jax.vmap(state)(x, v)
    moved, rate = at_nodes(sampler, states, xi[:, None], jnp.zeros(()))
    turned, _ = at_nodes(sampler, states, xi[:, None], jnp.ones(()))
    rate = np.asarray(rate)
    assert 0.5 < np.sum(weight * rate) < 0.95

    def expectation(f):
        ends = [np.stack([s.position[:, 0], s.velocity[:, 0]]) for s in (moved, turned)]
        return np.sum(weight * (rate * f(*ends[0]) + (1 - rate) * f(*ends[1])))

    (x, v), weight_before = over_grids(count, 1)
    x, v = np.asarray(x), np.asarray(v)
    functions = [lambda x, v, f=f, g=g: f(x) * g(v) for f in FUNCTIONS for g in FUNCTIONS]
    return max(abs(expectation(f) - np.sum(weight_before * f(x, v))) for f in functions)


@pytest.mark.slow
def test_adjusted_kinetic_keeps_the_law_of_position_and_velocity():
    sampler = AdjustedKinetic(1.0, 0.7)
    assert kinetic_change_of_expectations(sampler, 300, is_fresh=True) < QUADRATURE
    assert kinetic_change_of_expectations(sampler, 80) < QUADRATURE


def test_quadrature_sees_a_velocity_that_never_turns():
    assert kinetic_change_of_expectations(NeverTurns(1.0, 0.7), 80) > 100 * QUADRATURE

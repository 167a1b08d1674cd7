"""What every sampler must do as a program."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers.base import Facts
from driftbridge.targets.base import Target
from tests.laws.samplers import SAMPLERS
from tests.laws.targets import LogCosh

DIM = 3
START = (0.5, -2.0, 0.1)


def steps(sampler, target, position, count=3):
    """States, infos and noises of some steps."""

    def step(state, key):
        noise = sampler.noise(key, position)
        new, info = sampler.step(target, state, noise)
        return new, (new, info, noise)

    return jax.lax.scan(
        step, sampler.init(target, position), jax.random.split(jax.random.key(7), count)
    )[1]


def entry(tree, index):
    """One entry along the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.fixture(params=list(SAMPLERS))
def sampler(request):
    return SAMPLERS[request.param](step_size=0.1)


def test_facts_are_stated(sampler):
    assert isinstance(sampler.facts, Facts)
    assert sampler.facts.adjusted == (sampler.facts.bias == "none")


def test_a_step_is_a_function_of_its_noise_compiled_or_not(sampler):
    target, position = LogCosh(DIM), jnp.asarray(START)
    noise = sampler.noise(jax.random.key(0), position)
    state = sampler.init(target, position)
    compiled = jax.jit(lambda state, noise: sampler.step(target, state, noise)[0])
    first, second = compiled(state, noise), compiled(state, noise)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # Fusion changes the order of roundings of a few operations: 1e-5 is a hundred ulp.
    eager = sampler.step(target, state, noise)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), eager, first)


def test_a_batch_is_its_chains(sampler):
    target = LogCosh(DIM)
    positions = jnp.asarray([START, (1.0, 0.0, -1.0), (0.0, 3.0, 0.2)])
    noises = jax.vmap(lambda key: sampler.noise(key, positions[0]))(
        jax.random.split(jax.random.key(1), 3)
    )

    @jax.jit
    def one(position, noise):
        return sampler.step(target, sampler.init(target, position), noise)[0]

    together = jax.jit(jax.vmap(one))(positions, noises)
    alone = [one(positions[c], entry(noises, c)) for c in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), stacked, together
    )


@pytest.mark.parametrize("door", ["python numbers", "cast"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_of_the_position_is_kept(sampler, dtype, door):
    with jax.enable_x64(True):
        position = jnp.asarray(START, dtype)
        if door == "cast":
            sampler = cast_floating(sampler, dtype)
        shapes = jax.eval_shape(
            lambda: (sampler.init(LogCosh(DIM), position), steps(sampler, LogCosh(DIM), position))
        )
    for leaf in jax.tree.leaves(shapes):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == dtype


def test_state_keeps_its_structure(sampler):
    # So that it can be carried by a compiled loop (`steps` is one) and stored.
    position = jnp.asarray(START)
    before = jax.eval_shape(lambda: sampler.init(LogCosh(DIM), position))
    after = jax.eval_shape(
        lambda: jax.tree.map(lambda s: s[0], steps(sampler, LogCosh(DIM), position)[0])
    )
    assert before == after
    assert before._fields[0] == "position"


def test_noise_knows_the_shape_of_a_position_alone(sampler):
    key = jax.random.key(5)
    at_start = sampler.noise(key, jnp.asarray(START))
    elsewhere = sampler.noise(key, jnp.full(DIM, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, at_start, elsewhere)
    jax.eval_shape(sampler.noise, key, jax.ShapeDtypeStruct((DIM,), jnp.float32))


def test_no_part_of_the_noise_occurs_twice(sampler):
    noises = jax.vmap(lambda key: sampler.noise(key, jnp.zeros(DIM)))(
        jax.random.split(jax.random.key(2), 50)
    )
    leaves = [leaf for leaf in jax.tree.leaves(noises) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    numbers = np.concatenate([np.ravel(leaf) for leaf in leaves])
    # 24-bit numbers: among n of them the expected number of chance pairs is n^2 / 2^25.
    pairs = len(numbers) - len(np.unique(numbers))
    expected = len(numbers) ** 2 / 2**25
    assert pairs <= expected + 6 * np.sqrt(expected) + 1


class Counting(Target):
    """Counts evaluations of its score, through a callback."""

    count: list = eqx.field(static=True)
    dim: int = eqx.field(static=True, default=DIM)

    def tick(self):
        jax.debug.callback(lambda: self.count.append(1))

    def log_density(self, x):
        return LogCosh(DIM).log_density(x)

    def score(self, x):
        self.tick()
        return LogCosh(DIM).score(x)

    def value_and_score(self, x):
        self.tick()
        return LogCosh(DIM).log_density(x), LogCosh(DIM).score(x)


def test_gradients_are_counted_as_executed(sampler):
    target, position = Counting([]), jnp.asarray(START)
    state = sampler.init(target, position)
    jax.effects_barrier()
    compiled = jax.jit(lambda state, noise: sampler.step(target, state, noise))
    executed, declared = [], []
    for seed in range(5):
        target.count.clear()
        noise = sampler.noise(jax.random.key(seed), position)
        state, info = jax.block_until_ready(compiled(state, noise))
        jax.effects_barrier()
        executed.append(len(target.count))
        declared.append(int(info.num_gradients))
    assert executed == declared
    if sampler.facts.gradients.isdigit():
        assert executed == [int(sampler.facts.gradients)] * 5


@pytest.mark.parametrize("step_size", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", SAMPLERS)
def test_step_sizes_that_are_none_are_refused(name, step_size):
    with pytest.raises(ValueError, match="step_size must be positive and finite"):
        SAMPLERS[name](step_size=step_size)

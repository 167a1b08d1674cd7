"""The generator gives the numbers of `jax.random`."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import as_key, chain_keys, streams
from driftbridge.runtime.threefry import fold_in, threefry, unit_floats
from driftbridge.samplers import Gathering, Grouped, UniformStart
from driftbridge.samplers.noise import normals, normals_and_uniforms
from driftbridge.samplers.opening import proposals
from driftbridge.targets import DiagonalGaussian


def test_known_answers():
    # kat_vectors of Random123: threefry2x32, 20 rounds.
    ones = np.full(1, 0xFFFFFFFF, np.uint32)
    digits = [np.array([word], np.uint32) for word in (0x13198A2E, 0x03707344)]
    pi = [np.array([word], np.uint32) for word in (0x243F6A88, 0x85A308D3)]
    zeros = np.zeros(1, np.uint32)
    cases = {
        (0x6B200159, 0x99BA4EFE): ((zeros, zeros), (zeros, zeros)),
        (0x1CB996FC, 0xBB002BE7): ((ones, ones), (ones, ones)),
        (0xC4923A9C, 0x483DF7A0): ((digits[0], digits[1]), (pi[0], pi[1])),
    }
    for answer, (key, counter) in cases.items():
        assert tuple(int(word[0]) for word in threefry(key, counter)) == answer


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_numbers_are_those_of_jax(x64, precision):
    dtype = np.dtype(precision)
    for seed in range(3):
        key = jax.random.key(seed)
        assert np.array_equal(unit_floats(key, 33, dtype), jax.random.uniform(key, (33,), dtype))
        assert np.array_equal(normals(key, (3, 11), dtype), jax.random.normal(key, (3, 11), dtype))


def test_keys_are_those_of_jax():
    key = jax.random.key(11)
    expected = jax.random.key_data(
        jnp.stack([jax.random.fold_in(key, n) for n in (0, 7, 2**31 - 1)])
    )
    numbers = np.array([0, 7, 2**31 - 1], np.int32)
    for found in (fold_in(key, numbers), jax.jit(fold_in)(key, numbers)):
        assert np.array_equal(jax.random.key_data(found), expected)
    assert np.array_equal(jax.random.key_data(fold_in(key, 7)), expected[1])
    assert as_key(5) == jax.random.key(5)


def test_keys_of_a_run_compile_nothing():
    watch = Compilations()
    chain_keys(streams(as_key(12345)).steps, np.arange(5))
    assert watch.programs == 0


def test_another_generator_is_left_to_jax():
    key = jax.random.key(1, impl="rbg")
    assert np.array_equal(unit_floats(key, 5, np.float32), jax.random.uniform(key, (5,)))
    found = fold_in(key, np.arange(3))
    assert np.array_equal(
        jax.random.key_data(found[2]), jax.random.key_data(jax.random.fold_in(key, 2))
    )


@pytest.mark.slow
def test_uniforms_are_apart_from_normals():
    normal, uniform = normals_and_uniforms(jax.random.key(0), (40_000,), np.float32, (40_000,))
    # Correlation of independent draws has standard deviation 1 / 200.
    assert abs(np.corrcoef(normal, uniform)[0, 1]) < 5 / 200
    assert abs(np.mean(uniform) - 0.5) < 5 / np.sqrt(12 * 40_000)
    assert np.min(uniform) >= 0 and np.max(uniform) < 1


def test_a_known_key_inside_jit():
    key = jax.random.key(5)
    inside = jax.jit(lambda: jax.random.key_data(fold_in(key, 3)))()
    np.testing.assert_array_equal(inside, jax.random.key_data(jax.random.fold_in(key, 3)))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "initial",
    [UniformStart(0.7), Grouped(UniformStart(3.0), 3), Gathering(Grouped(UniformStart(), 2))],
    ids=lambda initial: type(initial).__name__,
)
def test_starts_drawn_on_the_host_are_those_of_the_program(x64, initial, precision):
    dtype = np.dtype(precision)
    initial, key = cast_floating(initial, dtype), jax.random.key(3)
    chains = np.arange(6, dtype=np.int32)
    like, attempt = jnp.zeros(5, dtype), 2
    target = DiagonalGaussian(jnp.zeros(5), jnp.ones(5))
    expected = jax.jit(proposals)(target, initial, key, chains, np.int32(attempt), like)
    watch = Compilations()
    found = initial.known(key, initial.source(chains), attempt, like.size, dtype)
    assert watch.programs == 0 and found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_starts_of_another_generator_take_a_program():
    key = jax.random.key(1, impl="rbg")
    assert UniformStart().known(key, np.arange(2), 0, 3, np.float32) is None

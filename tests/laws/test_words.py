"""Splitting words: what is accepted, merged and evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers.splitting import (
    ABOBA,
    BAOAB,
    BUB,
    OBABO,
    UBU,
    Splitting,
    count_gradients,
    reuses_score,
    stages,
)
from tests.laws.targets import LogCosh


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("OBXBO", "'X'"),
        ("obabo", "letters A, B, O and U"),
        ("", "no B"),
        ("OAO", "no B"),
        ("OBO", "no A or U"),
        ("BAB", "no O or U"),
        ("ABUBA", "twice"),
        ("OBUBO", "twice"),
    ],
)
def test_words_that_are_no_scheme_are_refused(word, message):
    with pytest.raises(ValueError, match=message):
        Splitting(word)


@pytest.mark.parametrize("word", ["OBABO", "BAOAB", "ABOBA", "UBU", "BUBUB", "OAABBO", "OABOAB"])
def test_every_flow_acts_for_the_whole_step(word):
    for letter in set(word):
        total = sum(stage.fraction for stage in stages(word) if stage.letter == letter)
        assert total == pytest.approx(1, abs=1e-15)


def test_neighbours_are_merged():
    assert [stage.letter for stage in stages("OBABO")] == list("OBAB")
    assert [stage.letter for stage in stages("OAABBO")] == list("OAB")
    assert [stage.letter for stage in stages("UUBU")] == list("UBU")
    assert stages("UUBU")[0].fraction == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("word", "gradients", "reused"),
    [
        ("OBABO", 1, True),
        ("BAOAB", 1, True),
        ("BUB", 1, True),
        ("BUBUB", 2, True),
        ("BOAOB", 1, True),
        ("ABOBA", 1, False),
        ("UBU", 1, False),
        ("UBUBU", 2, False),
        ("BOBA", 1, False),
        ("OABOAB", 2, False),
        ("OBA", 1, False),
    ],
)
def test_gradients_of_a_word(word, gradients, reused):
    assert count_gradients(word) == gradients
    assert reuses_score(word) == reused


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [OBABO, BAOAB, ABOBA, UBU, BUB])
def test_named_schemes_are_their_words(scheme):
    target, start = LogCosh(3), jnp.asarray([0.1, -0.4, 2.0])
    results = []
    for sampler in (scheme(0.3, 1.5, 0.5), Splitting(scheme.__name__, 0.3, 1.5, 0.5)):
        state = sampler.init(target, start)
        for seed in range(2):
            noise = sampler.noise(jax.random.key(seed), start)
            state, _ = sampler.step(target, state, noise)
        results.append(state)
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.slow
def test_one_o_of_a_word_needs_one_normal_a_coordinate():
    like = jnp.zeros(5)
    normals = {
        w: Splitting(w).noise(jax.random.key(0), like).shape for w in ("OBABO", "UBU", "BUB")
    }
    assert normals == {"OBABO": (1, 5), "UBU": (4, 5), "BUB": (2, 5)}


def test_merged_refreshments_leave_positions_as_they_are():
    # O(h/2) after one step and O(h/2) before the next equal one O(h) with the composed normal.
    h, friction, target = 0.3, 1.2, LogCosh(1)
    half = np.exp(-friction * h / 2)
    z = np.random.default_rng(0).standard_normal((2, 2))
    x = np.array([0.4, 0.4])
    v = np.array([-1.0, -1.0])

    def bab(x, v):
        v = v + h / 2 * np.asarray(target.score(jnp.asarray(x)))
        x = x + h * v
        return x, v + h / 2 * np.asarray(target.score(jnp.asarray(x)))

    with jax.enable_x64(True):
        x, v = bab(x, v)
        spread = np.sqrt(1 - half**2)
        separate = half * (half * v[0] + spread * z[0, 0]) + spread * z[0, 1]
        merged = (separate - half**2 * v[0]) / np.sqrt(1 - half**4)
        expected, _ = bab(x[:1], np.array([separate]))
        sampler = OBABO(h, friction)
        state = sampler.init(target, jnp.asarray(x[:1]))
        state = state._replace(velocity=jnp.asarray(v[:1]))
        new, _ = sampler.step(target, state, jnp.full((1, 1), merged))
    np.testing.assert_allclose(new.position, expected, rtol=1e-14)

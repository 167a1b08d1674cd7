"""Solvers of diffrax as samplers: strong order under halved steps, bias, and its absence."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers.high_order import ALIGN, QUICSORT, ShOULD
from tests.laws.coupling import end, root_mean_square
from tests.laws.linear_probe import stationary
from tests.laws.targets import LogCosh

METHODS = (ALIGN, ShOULD, QUICSORT)
TIME, FINEST, PATHS = 2.0, 64, 200  # steps of h = 1/32 to 1/4


def brownian_areas(key, steps):
    """Standard normals of `(W, H, K)` on the finest grid, shape `(3, steps, paths)`."""
    return np.asarray(jax.random.normal(key, (3, steps, PATHS)))


def merge_pairs(z, h):
    """The normals over `2h` of the same path as normals `z` over `h`.

    `W = W1 + W2`, `H = (H1 + H2)/2 + (W1 - W2)/4`, `K = (K1 + K2)/4 + (H1 - H2)/8`, by
    integrating the bridge `W_t - (t/2h) W` against 1 and `h - t` over both halves.
    """
    scale = np.sqrt(np.array([1, 1 / 12, 1 / 720])).reshape(3, 1, 1)
    (w1, h1, k1), (w2, h2, k2) = (np.sqrt(h) * scale * z[:, i::2] for i in (0, 1))
    merged = w1 + w2, (h1 + h2) / 2 + (w1 - w2) / 4, (k1 + k2) / 4 + (h1 - h2) / 8
    return np.stack(merged) / (np.sqrt(2 * h) * scale)


def test_merged_areas_are_independent_normals():
    z = np.eye(6).reshape(3, 2, 6)
    rows = merge_pairs(z, 0.3)[:, 0]
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_strong_order(method):
    start = jax.random.normal(jax.random.key(1), (PATHS, 2))
    z, steps, ends = brownian_areas(jax.random.key(0), FINEST), FINEST, []
    while steps >= 8:
        sampler = method(TIME / steps, 2.0)
        used = z[: sampler.num_normals]
        # The first normal draws an unset velocity; here it is set.
        noise = np.concatenate([np.zeros_like(used[:1]), used]).transpose(1, 2, 0)
        follow = jax.jit(lambda s, n, sampler=sampler: end(sampler, LogCosh(1), s, n))
        ends.append(follow(start, jnp.expand_dims(jnp.asarray(noise), 3)))
        z, steps = merge_pairs(z, TIME / steps), steps // 2
    errors = [root_mean_square(a - b) for a, b in itertools.pairwise(ends)]
    slope = np.polyfit(range(len(errors)), np.log2(errors), 1)[0]
    # Root mean squares of the same 200 paths: slopes repeat within 0.05.
    assert slope >= method.facts.strong_order - 0.15


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("method", "order", "leading"), [(ALIGN, 2, 1 / 6), (ShOULD, 3, 0.0), (QUICSORT, 3, 0.0)]
)
def test_bias_on_a_gaussian(method, order, leading):
    # At u = λ = 1 and γ = 2, h = 0.1. The third-order methods have coefficients of 0.02.
    bias = stationary(method(0.1, 2.0))[0, 0] - 1
    assert bias / 0.1**order == pytest.approx(leading, rel=0.06, abs=0.025)


def test_without_diffrax_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'driftbridge\[flows\]'"):
        QUICSORT()

"""How points move along a flow, in numbers and pictures."""

import jax.numpy as jnp
import numpy as np
import pytest
from equinox import Module

from driftbridge import path_plots
from driftbridge.transport.base import Fit
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.motion import motion


class Turning(Module):
    """A turn by a quarter about the origin."""

    def __call__(self, t, x, condition=None):
        return (np.pi / 2) * jnp.stack([-x[:, 1], x[:, 0]], axis=1)


class Shifting(Module):
    """A shift by (3, 4), at a speed that grows with time."""

    def __call__(self, t, x, condition=None):
        return 2 * t * jnp.broadcast_to(jnp.asarray([3.0, 4.0], x.dtype), x.shape)


def flow(field):
    return FlowMap(Fit("flow"), field, jnp.zeros(2), 20)


POINTS = np.random.default_rng(0).normal(size=(200, 2))


@pytest.mark.slow
def test_a_turn_is_all_rotation(x64):
    found = motion(flow(Turning()), POINTS)
    # Speed pi / 2 |x|, and a distance of 2^(1/2) |x|.
    square = np.mean(np.sum(POINTS**2, axis=1))
    np.testing.assert_allclose(found.energy, np.pi**2 / 4 * square, rtol=1e-6)
    np.testing.assert_allclose(found.curvature, np.pi**2 / 8 - 1, rtol=1e-4)
    np.testing.assert_allclose(found.rotation, 1.0, rtol=1e-12)
    # One step of order 4 is off by (pi / 2)^5 / 120, 8 % of |x|; two by a sixteenth of that.
    assert found.steps == 2


@pytest.mark.slow
def test_a_gradient_has_no_rotation_and_its_speed_counts(x64):
    found = motion(flow(Shifting()), POINTS)
    # int (2 t)^2 dt = 4 / 3.
    np.testing.assert_allclose(found.energy, 25 * 4 / 3, rtol=1e-10)
    np.testing.assert_allclose(found.curvature, 1 / 3, rtol=1e-9)
    assert found.rotation == 0 and found.steps == 1


@pytest.mark.slow
def test_pictures_are_written(tmp_path):
    places = flow(Turning()).trajectory(POINTS.astype(np.float32), np.linspace(0, 1, 5))
    path_plots.trajectories(places, POINTS).savefig(tmp_path / "paths.png", dpi=40)
    path_plots.snapshots({0.0: POINTS, 1.0: places[-1]}).savefig(tmp_path / "clouds.png", dpi=40)
    film = path_plots.animate(places, tmp_path / "film.gif", POINTS)
    assert film.read_bytes()[:3] == b"GIF"
    with pytest.raises(ValueError, match="at least two coordinates"):
        path_plots.trajectories(places[..., :1])

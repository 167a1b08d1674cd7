"""Pairs that are learned with the flow, so that its paths are as straight as can be."""

import dataclasses
import time
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.products import product
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.affine import bures, gaussians
from driftbridge.transport.base import Method, as_dtype
from driftbridge.transport.batch_distances import squared_energy_distance
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.flow_map import FlowMap, Residual
from driftbridge.transport.integration import RungeKutta4, Scheme, integrate
from driftbridge.transport.learned import account_of, with_numbers
from driftbridge.transport.maximum_mean_discrepancy import energy_distance
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.networks import MLP, network_for
from driftbridge.transport.pairing import HELD_OUT, Parts, couplings, independent, spread_of
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times, normals

# Rows between which the penalty takes all distances.
ROWS = 512
# Standard deviation of the encoder's noise before training, in whitened coordinates.
NOISE = 0.5


class Encoded(eqx.Module):
    """The two networks that are trained together."""

    encoder: Any
    network: Any


class CurvatureLoss(Objective):
    """`E |v(t, x_t) - (x1 - x0)|^2` with `x0` drawn by an encoder, and a penalty on its law.

    `x0 = m0 + C0^{1/2} (c u + mean(u) + NOISE exp(spread(u)) z)`, `c^2 + NOISE^2 = 1`, with `u` the
    target point taken back by the affine map and whitened. Gradients go into the encoder through
    `x_t` and through `x1 - x0`. The penalty is the squared energy distance of the drawn points to
    the source, in whitened coordinates, estimated without bias.

    - `coupling`: source and target points, of which the pairing is not used; `root`: of the
      source's covariance, what undoes the whitening.
    """

    coupling: Coupling
    base: McCann
    root: Float[Array, "dim dim"]
    scale: Float[Array, ""]
    penalty: Float[Array, ""]

    def field(self, model: Encoded) -> Residual:
        """The velocity."""
        return Residual(self.base, model.network, self.scale)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        x, y = self.coupling.pairs(fold_in(key, 0), n)
        noise = normals(fold_in(key, 2), y.shape, y.dtype)
        return even_times(fold_in(key, 1), n, x.dtype), x, y, noise

    def encoded(
        self, model: Encoded, y: Float[Array, "n dim"], noise: Float[Array, "n dim"]
    ) -> Float[Array, "n dim"]:
        """Whitened source points for target points."""
        one = jnp.ones((), y.dtype)
        u = self.base.whitened(self.base.start_of(one, y))
        mean, spread = jnp.split(model.encoder(0 * one, u, None), 2, axis=1)
        return np.sqrt(1 - NOISE**2) * u + mean + NOISE * jnp.exp(spread) * noise

    def placed(self, u: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Source points of whitened ones."""
        return self.base.source_mean[None] + product(u, self.root)

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, x, y, noise = batch
        drawn = self.encoded(model, y, noise)
        moved = y - self.placed(drawn)
        error = self.field(model)(t, y - (1 - t)[:, None] * moved) - moved
        source = self.base.whitened(self.base.start_of(jnp.zeros((), x.dtype), x))
        distance = squared_energy_distance(drawn[:ROWS], source[:ROWS])
        return jnp.sum(error**2) / (error.size * self.scale**2) + self.penalty * distance


class MinimalCurvature(Method):
    """Flow matching whose pairs are learned too: an encoder draws a source point for each target's.

    Paths of the flow are straight where `x1 - x0` is a function of `x_t`. The encoder is trained
    with the velocity to make it so, and is dropped afterwards.

    **The encoder's points must have the law of the source, and do so only as far as the penalty
    holds them**: a small `penalty` makes paths straight by moving the source, and the map is then
    biased. `T.fit.numbers` has `encoder_distance`, the energy distance of encoded held-out points
    to the source, and `encoder_floor`, that of two samples of the source. The kernel of the penalty
    stands for the Kullback-Leibler divergence of the paper, which needs a density of the source.
    Straight paths are not optimal ones: see `Rectified`.

    **Arguments:**

    - `penalty`: `>= 0`, of the squared energy distance in whitened coordinates.
    - `encoder`: an architecture, or a network that returns `(n, 2 dim)`.
    - `network`, `training`, `num_steps`, `scheme`: as of `Flow`.

    **Raises:** `ValueError` for a negative penalty.

    Lee, Kim and Ye (2023), "Minimizing trajectory curvature of ODE-based generative models", arXiv
    2301.12003.
    """

    name: ClassVar[str] = "curvature"

    penalty: float = 20.0
    encoder: Any = MLP()
    network: Any = MLP()
    training: Training = Training()
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def __check_init__(self):
        if not 0 <= self.penalty < np.inf:
            raise ValueError(f"penalty must be finite and at least 0; got {self.penalty}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FlowMap:
        start = time.perf_counter()
        random, dtype = host_generator(fold_in(key, 0)), source.points.dtype
        begins, ends = (Parts.of(sample, HELD_OUT, random) for sample in (source, target))
        pairs, held = couplings(begins, ends, independent, fold_in(key, 1))
        moments = gaussians(begins.kept, ends.kept)
        base, root = mccann(*moments, dtype), bures(*(m.covariance for m in moments)).root
        numbers = root, spread_of(pairs, fold_in(key, 2)), self.penalty
        objective = CurvatureLoss(pairs, base, *(as_dtype(n, dtype) for n in numbers))
        held_out = dataclasses.replace(objective, coupling=held)
        trained = train(
            objective,
            self._model(source, fold_in(key, 4)),
            fold_in(key, 5),
            self.training,
            held_out,
        )
        found = FlowMap(
            account_of(self.name, trained, time.perf_counter() - start),
            objective.field(trained.model),
            base.shift,
            self.num_steps,
            self.scheme,
        )
        encoded = _encoded(held_out, trained.model, fold_in(key, 6))
        kept, unseen = begins.kept, begins.held_out
        two = kept.points[random.choice(len(kept.points), len(encoded), p=kept.weights)]
        numbers = {
            "curvature": curvature(found, unseen.points),
            "encoder_distance": energy_distance(encoded, unseen.points, b=unseen.weights),
            "encoder_floor": energy_distance(two, unseen.points, b=unseen.weights),
        }
        return dataclasses.replace(found, fit=with_numbers(found.fit, numbers))

    def _model(self, source: Sample, key: Key[Array, ""]) -> Encoded:
        dim, dtype = source.points.shape[1], source.points.dtype
        return Encoded(
            network_for(self.encoder, fold_in(key, 0), dim, 2 * dim, dtype),
            network_for(self.network, fold_in(key, 1), dim, dim, dtype),
        )


def curvature(found: FlowMap, x: Any) -> float:
    """`E int |dx_t/dt - (x_1 - x_0)|^2 dt`, 0 for paths that are straight and of even speed.

    `E int |v(t, x_t)|^2 dt - E |x_1 - x_0|^2`, by the solver of the map. **Arguments:** `x`: points
    of the source `(n, dim)`.

    Lee, Kim and Ye (2023), arXiv 2301.12003.
    """
    return float(_curvature(found, jnp.asarray(x, found.dtype)))


@eqx.filter_jit
def _encoded(objective: CurvatureLoss, model: Encoded, key: Key[Array, ""]) -> Array:
    """Points that the encoder draws for target points."""
    _, _, y, noise = objective.batch(key, 1024)
    return objective.placed(objective.encoded(model, y, noise))


@eqx.filter_jit
def _curvature(found: FlowMap, x: Float[Array, "n dim"]) -> Float[Array, ""]:
    def both(t, state):
        velocity = found.field(t, state[0])
        return velocity, jnp.sum(velocity**2, axis=1)

    start = x, jnp.zeros(x.shape[0], x.dtype)
    end, energy = integrate(both, start, 0, 1, found.num_steps, found.scheme)
    return jnp.mean(energy - jnp.sum((end - x) ** 2, axis=1))

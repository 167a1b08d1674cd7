"""Wasserstein gradient flows by JKO steps, each a map trained against a test function."""

import dataclasses
import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.affine import Affine, AffineMap
from driftbridge.transport.base import Fit, Method, as_dtype
from driftbridge.transport.chain_map import ChainMap, Displacement, Move, stacked
from driftbridge.transport.energies import (
    Energy,
    Gaussian,
    JensenShannon,
    KullbackLeibler,
    Witness,
)
from driftbridge.transport.measures import device_dtype, moments
from driftbridge.transport.networks import Architecture, ResidualMLP, network_for
from driftbridge.transport.points import Sample, as_rows, as_weights, columns_of
from driftbridge.transport.resampling import Draw, Resampled
from driftbridge.transport.streaming import streamed

# Points on which the energy after a step is taken.
MEASURED = 4096


class Players(eqx.Module):
    """A map, which goes down, and a test function, which goes up."""

    displacement: Displacement
    test: Witness


class JKOStep(Objective):
    """`min_T sup_h E|x - T(x)|^2 / 2a + F_h(T)`, by one descent of both with one gradient reversed.

    The gradient in the map takes the test function as given, and the other way round; the value is
    that of the game.

    Jordan, Kinderlehrer and Otto (1998); Fan, Zhang, Taghvaei and Chen (2022), arXiv
    2112.02424.
    """

    points: Draw
    reference: Gaussian
    energy: Energy
    step: Float[Array, ""]

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        z = self.energy.draw(self.reference, fold_in(key, 1), n)
        return self.points(fold_in(key, 0), n), z

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        transport, down = self.parts(eqx.tree_at(lambda m: m.test, model, held(model.test)), batch)
        still = eqx.tree_at(lambda m: m.displacement, model, held(model.displacement))
        _, up = self.parts(still, batch)
        return transport + down - up + jax.lax.stop_gradient(up)

    def parts(self, model: Any, batch: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The mean of `|x - T(x)|^2 / 2a`, and the energy at the test function."""
        x, z = batch
        moved = Move(self.reference, model.displacement)(x)
        transport = jnp.mean(jnp.sum((moved - x) ** 2, axis=1)) / (2 * self.step)
        whitened = self.reference.whitened
        value = self.energy.value(lambda y: model.test(whitened(y)), moved, z, self.reference)
        return transport, value


def held(module: Any) -> Any:
    """A module through which no gradient goes."""
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jax.lax.stop_gradient, arrays), rest)


class JKO(Method):
    """The gradient flow of a divergence to the target, a map for each step of it.

    `P_k = T_k # P_{k-1}`, `T_k` the least of `W2^2(P_{k-1}, .) / 2a + F`. Between two data sets it
    begins at the affine map's image and `F` is twice the Jensen-Shannon divergence to the target;
    `gradient_flow` takes a density instead.

    A divergence is measured by the test functions that a network can be: at zero the images match
    the target in what those see, and nothing more is known. The maps are no gradients of convex
    functions, and the game may oscillate; `T.fit.numbers` has the energy after each step.

    **Arguments:**

    - `num_steps`: how many steps, each a network that the map keeps.
    - `step`: `> 0`, `a`, a squared length; None for a quarter of the variance of the target in a
      coordinate, for `gradient_flow` of the source.
    - `network`, `test`: architectures of maps and of test functions.
    - `training`: of each step, which begins where the last one ended.

    Fan, Zhang, Taghvaei and Chen (2022), arXiv 2112.02424.
    """

    name: ClassVar[str] = "jko"

    num_steps: int = eqx.field(static=True, default=8)
    step: float | None = None
    network: Architecture = ResidualMLP()
    test: Architecture = ResidualMLP()
    training: Training = Training(num_steps=500, learning_rate=1e-3, averaging=0.99)

    def __check_init__(self):
        if self.num_steps < 1 or not (self.step is None or self.step > 0):
            raise ValueError(
                f"num_steps must be at least 1 and step positive; got {self.num_steps} and "
                f"{self.step}."
            )

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> ChainMap:
        affine = Affine().fit(source, target, key)
        energy = JensenShannon(Resampled(target.points, target.weights))
        step = self.step or 0.25 * _variance(target)
        return self.descend(source, energy, step, affine, key)

    def descend(
        self,
        source: Sample,
        energy: Energy,
        step: float,
        affine: AffineMap | None,
        key: Key[Array, ""],
    ) -> ChainMap:
        """All steps, one after another."""
        start = time.perf_counter()
        dtype, dim = device_dtype(source.points), source.points.shape[1]
        points = source.points if affine is None else streamed(affine, "_transport", source.points)
        players, moves, numbers, lost = self._players(dim, dtype, key), [], {}, 0
        curves = []
        for k in range(self.num_steps):
            drawn = Resampled(points, source.weights)
            reference = _gaussian(Sample(points, source.weights), dtype)
            objective = JKOStep(drawn, reference, energy, as_dtype(step, dtype))
            training = self.training.part(f"step{k}")
            trained = train(objective, players, fold_in(key, 2 * k + 4), training)
            curves.append((f"step {k + 1}", trained.curve))
            players, lost = trained.model, lost + (trained.status == "diverged")
            transport, value = _measured(objective, players, fold_in(key, 2 * k + 5))
            numbers[f"transport_{k + 1}"] = float(transport)
            numbers[f"energy_{k + 1}_by_test_function"] = float(value)
            moves.append(Move(reference, players.displacement))
            one = ChainMap(Fit(self.name), None, stacked(moves[-1:]))
            points = streamed(one, "_transport", points)
        messages = (
            (f"training diverged in {lost} steps of {self.num_steps}: lower the learning rate",)
            if lost
            else ()
        )
        fit = Fit(
            self.name,
            converged=lost == 0,
            messages=messages,
            numbers=tuple(numbers.items()),
            curves=tuple(curves),
            seconds=time.perf_counter() - start,
        )
        return ChainMap(fit, affine, stacked(moves))

    def _players(self, dim: int, dtype: Any, key: Key[Array, ""]) -> Players:
        network = network_for(self.network, fold_in(key, 0), dim, dim, dtype)
        test = network_for(self.test, fold_in(key, 1), dim, 1, dtype)
        square, vector = (as_dtype(np.zeros(shape), dtype) for shape in ((dim, dim), (dim,)))
        return Players(
            Displacement(network, square, vector),
            Witness(test, square, vector, as_dtype(0.0, dtype)),
        )


def gradient_flow(
    x: Any,
    log_density: Any,
    method: JKO | None = None,
    key: int | Key[Array, ""] = 0,
    *,
    weights: Any = None,
) -> ChainMap:
    """Carry a sample to a density by the gradient flow of `KL(P || Q)`, the Langevin flow of laws.

    `T.stages(x)` are the places after each step, whose laws approximate those of
    `dX = grad log Q dt + sqrt(2) dW` at the times `a, 2a, ...`.

    **Arguments:**

    - `x`: points of the source `(n, dim)` or a data frame.
    - `log_density`: of the target up to a constant, a function of points `(n, dim)` that returns
      `(n,)` and that JAX can differentiate; one object for all fits, as a new one compiles again.
    - `method`: a `JKO`; its `step` is a time.
    - `key`: seed or typed key; `weights`: of points, None for equal ones.

    **Raises:** `ValueError` for a function of another shape.

    Fan, Zhang, Taghvaei and Chen (2022), arXiv 2112.02424.
    """
    rows = np.asarray(as_rows(x, "x"))
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"x must have shape (n, dim) with at least two rows; got {rows.shape}.")
    rows = rows.astype(device_dtype(rows))
    found = jax.eval_shape(log_density, jax.ShapeDtypeStruct((2, rows.shape[1]), rows.dtype))
    if getattr(found, "shape", None) != (2,):
        raise ValueError(
            f"log_density must return (n,) for points (n, {rows.shape[1]}); for n = 2 it returned "
            f"{getattr(found, 'shape', found)}."
        )
    method = method or JKO()
    source = Sample(rows, as_weights(weights, len(rows), "x"))
    step = method.step or 0.25 * _variance(source)
    energy = KullbackLeibler(log_density)
    fitted = method.descend(source, energy, step, None, as_key(key))
    fit = dataclasses.replace(fitted.fit, num_source=len(rows), columns=columns_of(x))
    return dataclasses.replace(fitted, fit=fit)


def _variance(sample: Sample) -> float:
    """The mean variance of a coordinate."""
    mean = float(np.mean(np.diagonal(moments(sample).covariance)))
    return mean if mean > 0 else 1.0


def _gaussian(sample: Sample, dtype: Any) -> Gaussian:
    """The Gaussian of a sample's moments."""
    found = moments(sample)
    values, vectors = np.linalg.eigh(found.covariance)
    # A direction without spread is whitened by a small one, so that points can leave it.
    values = np.maximum(values, 1e-6 * max(values[-1], np.finfo(np.float32).tiny))
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    return Gaussian(*(as_dtype(part, dtype) for part in (found.mean, root, inverse)))


@eqx.filter_jit
def _measured(objective: JKOStep, players: Players, key: Key[Array, ""]) -> Any:
    return objective.parts(players, objective.batch(key, MEASURED))

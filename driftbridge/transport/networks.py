"""Small networks of time and place, built when the dimension of the data is known.

A network is a module that is called with times `()` or `(n,)`, points `(n, dim)` and conditions
`(n, k)` or None, a batch at once, and returns `(n, width)`. Any module of that signature may stand
in for those here.
"""

import abc
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.products import product
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import Times


def selu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`s max(x, 0) + s a (exp(min(x, 0)) - 1)`, right to a rounding of 1.

    The network's sums are no more exact than that, and `expm1`, which is, costs twice as much.

    Klambauer et al. (2017), arXiv 1706.02515, equation 2.
    """
    s, a = 1.0507009873554805, 1.6732632423543772
    return s * jnp.where(x > 0, x, a * (jnp.exp(jnp.minimum(x, 0)) - 1))


# By name, so that a saved network needs nothing but this package.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
    "selu": selu,
    "relu": jax.nn.relu,
}


class Architecture(eqx.Module):
    """Settings of a network; `build` makes one."""

    @abc.abstractmethod
    def build(self, key: Key[Array, ""], num_in: int, num_out: int, dtype: Any) -> eqx.Module:
        """A network of `num_in` coordinates, those of a condition counted, to `num_out`."""


class Layers(eqx.Module):
    """Affine layers with an activation between them.

    Points are columns inside: the gradient of a weight, `h g'`, is then a product along rows, which
    on a CPU takes half the time of `h' g`.

    Weights are normal with variance `1 / fan-in`, LeCun et al. (1998); those of the last layer are
    zero where asked, so that the network begins as zero.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    activation: str = eqx.field(static=True)

    def __call__(self, h: Float[Array, "n _"]) -> Float[Array, "n _"]:
        last = len(self.weights) - 1
        columns = h.T
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            columns = product(weight.T, columns) + bias[:, None]
            columns = columns if i == last else ACTIVATIONS[self.activation](columns)
        return columns.T


def layers(
    key: Key[Array, ""], sizes: tuple[int, ...], activation: str, dtype: Any, zero: bool
) -> Layers:
    """Layers of the sizes given, drawn on the host, where nothing compiles."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}.")
    random, weights = host_generator(key), []
    for num_in, num_out in itertools.pairwise(sizes):
        weights.append(random.normal(size=(num_in, num_out)) / np.sqrt(num_in))
    if zero:
        weights[-1] = np.zeros_like(weights[-1])
    biases = [np.zeros(weight.shape[1]) for weight in weights]
    placed = jax.device_put([[part.astype(dtype) for part in side] for side in (weights, biases)])
    return Layers(tuple(placed[0]), tuple(placed[1]), activation)


def time_features(t: Float[Array, "*n"], num_waves: int) -> Float[Array, "*n _"]:
    """`t - 1/2`, and the first cosines and sines of `pi k t`."""
    waves = [f(np.pi * k * t) for k in range(1, num_waves + 1) for f in (jnp.cos, jnp.sin)]
    return jnp.stack([t - 0.5, *waves], axis=-1)


def joined(
    t: Times,
    x: Float[Array, "n dim"],
    condition: Float[Array, "n k"] | None,
    num_waves: int,
) -> Float[Array, "n _"]:
    """What a network sees of time, place and condition."""
    features = time_features(t, num_waves)
    parts = [jnp.broadcast_to(features, (x.shape[0], features.shape[-1])), x]
    return jnp.concatenate(parts if condition is None else [*parts, condition], axis=1)


class MLP(Architecture):
    """A multilayer perceptron of place and of features of time.

    **Arguments:**

    - `width`, `depth`: units of a hidden layer, and how many there are.
    - `activation`: "silu", "gelu", "softplus", "tanh", "selu" or "relu"; potentials need one of
      the first four, which have two derivatives.
    - `num_waves`: frequencies of time among the inputs.
    """

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=3)
    activation: str = eqx.field(static=True, default="silu")
    num_waves: int = eqx.field(static=True, default=1)

    def build(self, key: Key[Array, ""], num_in: int, num_out: int, dtype: Any) -> "Perceptron":
        first = num_in + 1 + 2 * self.num_waves
        sizes = (first, *([self.width] * self.depth), num_out)
        stack = layers(key, sizes, self.activation, dtype, zero=True)
        return Perceptron(stack, self.num_waves)


class Perceptron(eqx.Module):
    """The network of an `MLP`."""

    layers: Layers
    num_waves: int = eqx.field(static=True)

    def __call__(self, t, x, condition=None):
        return self.layers(joined(t, x, condition, self.num_waves))


class ResidualMLP(Architecture):
    """Blocks `h + W2 act(W1 h + features of time)` between two affine layers.

    **Arguments:** `width`: units; `num_blocks`: of two layers each; `activation`, `num_waves`: as
    of `MLP`.

    He et al. (2016), arXiv 1512.03385, section 3.2.
    """

    width: int = eqx.field(static=True, default=64)
    num_blocks: int = eqx.field(static=True, default=2)
    activation: str = eqx.field(static=True, default="silu")
    num_waves: int = eqx.field(static=True, default=1)

    def build(self, key: Key[Array, ""], num_in: int, num_out: int, dtype: Any) -> "Blocks":
        num_features = 1 + 2 * self.num_waves
        first = layers(
            fold_in(key, 0), (num_in + num_features, self.width), self.activation, dtype, zero=False
        )
        inner = (self.width + num_features, self.width, self.width)
        blocks = [
            layers(fold_in(key, 2 + i), inner, self.activation, dtype, zero=True)
            for i in range(self.num_blocks)
        ]
        last = layers(fold_in(key, 1), (self.width, num_out), self.activation, dtype, zero=True)
        return Blocks(first, tuple(blocks), last, self.num_waves)


class Blocks(eqx.Module):
    """The network of a `ResidualMLP`."""

    first: Layers
    blocks: tuple[Layers, ...]
    last: Layers
    num_waves: int = eqx.field(static=True)

    def __call__(self, t, x, condition=None):
        h = self.first(joined(t, x, condition, self.num_waves))
        for block in self.blocks:
            h = h + block(joined(t, h, None, self.num_waves))
        return self.last(h)


class InputConvex(Architecture):
    """A function that is convex in `x`: `z' = act(z softplus(V) + x W + b)`, plus a quadratic.

    `V >= 0` and a convex increasing activation keep every layer convex in `x`; the sum has
    `strength |x|^2 / 2` added, so that its gradient is a strongly monotone map. Times and
    conditions enter as `x` does not: through layers that need not be convex.

    **Arguments:** `width`, `depth`: units and hidden layers; `strength`: `>= 0`.

    Amos, Xu and Kolter (2017), arXiv 1609.07152, equation 2.
    """

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    strength: float = eqx.field(static=True, default=0.0)
    num_waves: int = eqx.field(static=True, default=1)

    def build(self, key: Key[Array, ""], num_in: int, num_out: int, dtype: Any) -> "Convex":
        random, host = host_generator(key), []
        num_features = 1 + 2 * self.num_waves
        for i in range(self.depth + 1):
            width = self.width if i < self.depth else num_out
            before = self.width if i > 0 else 0
            host.append(
                (
                    # softplus(-3) is about .05
                    random.normal(size=(before, width)) * 0.1 - 3.0,
                    random.normal(size=(num_in, width)) / np.sqrt(num_in),
                    random.normal(size=(num_features, width)) / np.sqrt(num_features),
                    np.zeros(width),
                )
            )
        placed = jax.device_put([tuple(part.astype(dtype) for part in layer) for layer in host])
        return Convex(tuple(placed), self.strength, self.num_waves)


class Convex(eqx.Module):
    """The network of an `InputConvex`."""

    layers: tuple[tuple[Array, Array, Array, Array], ...]
    strength: float = eqx.field(static=True)
    num_waves: int = eqx.field(static=True)

    def __call__(self, t, x, condition=None):
        features = time_features(t, self.num_waves)
        features = jnp.broadcast_to(features, (x.shape[0], features.shape[-1]))
        if condition is not None:
            raise ValueError("an input-convex network takes no condition.")
        z = jnp.zeros((x.shape[0], 0), x.dtype)
        for i, (inner, skip, of_time, bias) in enumerate(self.layers):
            z = product(z, jax.nn.softplus(inner)) + product(x, skip) + product(features, of_time)
            z = z + bias[None]
            z = z if i == len(self.layers) - 1 else jax.nn.softplus(z)
        return z + self.strength * jnp.sum(x**2, axis=1, keepdims=True) / 2


def network_for(
    network: Any,
    key: Key[Array, ""],
    num_in: int,
    num_out: int,
    dtype: Any,
    num_conditions: int = 0,
) -> Any:
    """A network of points of `num_in` coordinates: an architecture's, or the module given.

    **Raises:** `ValueError` for a module that does not take such points, with conditions where
    there are some, or returns another width.
    """
    if isinstance(network, Architecture):
        network = network.build(key, num_in + num_conditions, num_out, dtype)
    t, x, *conditions = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape in ((2,), (2, num_in), *([(2, num_conditions)] if num_conditions else []))
    )
    condition = conditions[0] if conditions else None
    try:
        found = eqx.filter_eval_shape(lambda net, *args: net(*args), network, t, x, condition)
    except TypeError as error:
        also = f"conditions (n, {num_conditions})" if num_conditions else "None"
        raise ValueError(
            f"the network does not take times (n,), points (n, {num_in}) and {also}: {error}"
        ) from error
    if getattr(found, "shape", None) != (2, num_out):
        raise ValueError(
            f"the network must return (n, {num_out}) for n points; for n = 2 it returned "
            f"{getattr(found, 'shape', found)}."
        )
    return network

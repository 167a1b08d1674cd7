"""Wasserstein-Fisher-Rao flow matching: velocity and growth between data of unequal mass."""

import dataclasses
import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.assignment import assign, squared_distances
from driftbridge.transport.base import Method, Times, as_dtype
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.learned import account_of
from driftbridge.transport.marginal_path import MarginalPath, Weighted
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.networks import MLP, network_for
from driftbridge.transport.pairing import HELD_OUT, Parts
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times
from driftbridge.transport.unbalanced_action_matching import check_growth, with_weights
from driftbridge.transport.wasserstein_fisher_rao import (
    Travelled,
    travelled,
    wfr_diracs,
)
from driftbridge.transport.wasserstein_fisher_rao_plan import travelling_pairs
from driftbridge.transport.weighted_flow_map import WeightedFlowMap

# Pairs that are drawn, for training and to hold out.
PAIRS, HELD_OUT_PAIRS = 51_200, 4096
# Points of a batch from which the default of delta is taken.
BATCH = 256


class TravellingMasses(MarginalPath):
    """Pairs of a plan whose masses travel: one of the pairs at random, with the mass it has.

    - `x`, `y`: points of the pairs `(pairs, dim)`.
    - `source_mass`, `target_mass`: `(pairs,)`, over the probability with which a pair was drawn;
      their means are the masses of source and target.
    """

    x: Float[Array, "pairs dim"]
    y: Float[Array, "pairs dim"]
    source_mass: Float[Array, " pairs"]
    target_mass: Float[Array, " pairs"]
    delta: Float[Array, ""]

    def travelled(self, key: Key[Array, ""], t: Float[Array, " n"]) -> Travelled:
        """Random pairs at times."""
        i = jax.random.randint(key, t.shape, 0, len(self.x))
        masses = self.source_mass[i], self.target_mass[i]
        return travelled(self.x[i], self.y[i], *masses, t, self.delta)

    def at(self, key: Key[Array, ""], t: Float[Array, " n"]) -> Weighted:
        found = self.travelled(key, t)
        return found.place, found.mass


class Growing(eqx.Module):
    """Velocity `v_G + scale net_v(t, u)` and growth `rate + scale / delta net_g(t, u)`.

    `v_G` is the affine map's field of the mass that the plan moves, `u` is `x` carried back along
    it and whitened, and `rate` the logarithm of the ratio of the masses.
    """

    base: McCann
    network: Any
    scale: Float[Array, ""]
    rate: Float[Array, ""]
    delta: Float[Array, ""]

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n dim"]:
        return self.rates(t, x)[0]

    def rates(
        self, t: Times, x: Float[Array, "n dim"]
    ) -> tuple[Float[Array, "n dim"], Float[Array, " n"]]:
        """Velocity and growth."""
        start = self.base.start_of(t, x)
        learned = self.network(t, self.base.whitened(start), None)
        velocity = self.base.velocity_of(start) + self.scale * learned[:, :-1]
        return velocity, self.rate + self.scale / self.delta * learned[:, -1]


class GrowingMatch(Objective):
    """`E m_t [|v(t, x_t) - v_t|^2 + delta^2 (g(t, x_t) - g_t)^2]` in units of the scale.

    Over pairs and times, with the mass `m_t`, velocity and growth of a pair's own path. The
    minimiser moves the sum of all of them. For large `delta` and equal masses it is flow matching.
    """

    path: TravellingMasses
    form: Growing

    def field(self, network: Any) -> Growing:
        """Velocity and growth of a network."""
        return eqx.tree_at(lambda f: f.network, self.form, network, is_leaf=lambda p: p is None)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        t = even_times(fold_in(key, 1), n, self.path.x.dtype)
        return t, self.path.travelled(fold_in(key, 0), t)

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, found = batch
        velocity, growth = self.field(model).rates(t, found.place)
        moved = jnp.sum((velocity - found.velocity) ** 2, axis=1)
        grown = (self.form.delta * (growth - found.growth)) ** 2
        return jnp.mean(found.mass * (moved + grown)) / self.form.scale**2


class WassersteinFisherRao(Method):
    """Flow matching with growth, on the shortest paths of the Wasserstein-Fisher-Rao distance.

    Batches of source and target are paired by the unbalanced plan for the cost
    `-2 log cos(min(|x - y| / (2 delta), pi / 2))` whose marginals are held by Kullback-Leibler
    divergences, the static form of the distance. Each pair has the mass of its source point's share
    and of its target point's, and travels on its own shortest path (`travelled`); velocity and
    growth are regressions on these, without simulation. What is farther away than `pi delta` fades
    and grows. Target and source may have different masses; the ends of the path are the two data
    sets for any plan.

    **The loss is a variance and never 0; it does not tell how near the path is to the shortest
    one**: the plan of batches, with the blur of its epsilon, decides that.
    Batches differ in mass by chance, and what differs by chance is partly grown: large batches are
    better.

    **Arguments:**

    - `delta`: `> 0`, the length over which growth is as cheap as motion; None for the root mean
      square of the displacements of an optimal assignment. Large: flow matching with optimal pairs.
    - `mass_ratio`: `> 0`, mass of the target over that of the source.
    - `batch_size`: points of a batch; `share`: `> 0`, epsilon of its plan over the usual cost of a
      pair.
    - `network`: an architecture, or a network that returns `(n, dim + 1)`.
    - `training`, `num_steps`, `scheme`: as of `Flow`.

    **Returns:** of a fit, a `WeightedFlowMap`: use its weights. `T.fit.numbers` has `delta`,
    `path_action`, the mean of `wfr_diracs` over the pairs and so an upper bound of the squared
    distance between the data, `mass` and `effective_share`.

    **Raises:** `ValueError` for numbers outside their range.

    Peng et al. (2026), arXiv 2601.06810; the plan: Liero, Mielke and Savaré (2018), arXiv
    1508.07941; Chizat et al. (2018), arXiv 1607.05816.
    """

    name: ClassVar[str] = "wasserstein_fisher_rao"

    delta: float | None = None
    mass_ratio: float = 1.0
    batch_size: int = eqx.field(static=True, default=512)
    share: float = 0.02
    network: Any = MLP()
    training: Training = Training()
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def __check_init__(self):
        check_growth(self.delta, self.mass_ratio)
        if self.batch_size < 2 or not 0 < self.share < np.inf:
            raise ValueError(
                "batch_size must be at least 2 and share positive and finite; got "
                f"{self.batch_size} and {self.share}."
            )

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> WeightedFlowMap:
        start = time.perf_counter()
        random, dtype = host_generator(fold_in(key, 0)), source.points.dtype
        begins, ends = (Parts.of(sample, HELD_OUT, random) for sample in (source, target))
        moved = displacement(begins.kept, ends.kept, random)
        delta = self.delta or moved
        # The cost of the usual pair is the square of its angle, and nothing costs more than 2.
        epsilon = self.share * min(1.0, (moved / (2 * delta)) ** 2)
        settings = delta, self.mass_ratio, epsilon, self.batch_size, random
        pairs, unsolved = travelling_pairs(begins.kept, ends.kept, PAIRS, *settings)
        held, _ = travelling_pairs(begins.held_out, ends.held_out, HELD_OUT_PAIRS, *settings)
        action = float(np.mean(wfr_diracs(*pairs, delta)))
        path, held = (
            TravellingMasses(*(as_dtype(part, dtype) for part in (*found, delta)))
            for found in (pairs, held)
        )
        base = mccann(*gaussians(*moved_parts(path)), dtype)
        rate, scale = float(np.log(self.mass_ratio)), float(np.sqrt(2 * action / base.shift.size))
        numbers = (as_dtype(n, dtype) for n in (scale or 1.0, rate, delta))
        form = Growing(base, None, *numbers)
        dim = source.points.shape[1]
        network = network_for(self.network, fold_in(key, 4), dim, dim + 1, dtype)
        objective, held_out = GrowingMatch(path, form), GrowingMatch(held, form)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        account = account_of(self.name, trained, time.perf_counter() - start)
        if unsolved:
            said = f"{unsolved} plans between batches did not converge: raise share or delta"
            account = dataclasses.replace(
                account, converged=False, messages=(*account.messages, said)
            )
        found = WeightedFlowMap(
            account,
            objective.field(trained.model),
            base.shift,
            self.num_steps,
            self.scheme,
        )
        return with_weights(found, begins.held_out.points, {"delta": delta, "path_action": action})


def moved_parts(path: TravellingMasses) -> tuple[Sample, Sample]:
    """Source and target points with the mass that moves between them."""
    masses = (np.asarray(m, np.float64) for m in (path.source_mass, path.target_mass))
    places = np.asarray(path.x), np.asarray(path.y)
    angle = np.linalg.norm(places[1] - places[0], axis=1) / (2 * float(path.delta))
    moved = np.sqrt(np.prod(list(masses), axis=0)) * np.cos(np.minimum(angle, np.pi / 2))
    weights = moved / moved.sum() if moved.sum() > 0 else np.full(len(moved), 1 / len(moved))
    return Sample(places[0], weights), Sample(places[1], weights)


def displacement(source: Sample, target: Sample, random: np.random.Generator) -> float:
    """Root mean square of the displacements of an optimal assignment of one batch."""
    size = min(BATCH, len(source.points), len(target.points))
    x, y = (s.points[random.choice(len(s.points), size, p=s.weights)] for s in (source, target))
    costs = squared_distances(x, y)
    return float(np.sqrt(costs[np.arange(size), assign(costs)].mean())) or 1.0

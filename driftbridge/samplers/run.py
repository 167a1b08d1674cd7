"""The pure loop beneath the driver, for those who `vmap` over data sets or jit it themselves."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import chain_keys, streams
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.base import Sampler, has_step_size
from driftbridge.samplers.driver import empty_rows, settle
from driftbridge.samplers.loop import Record, advance, unpack
from driftbridge.samplers.opening import begin
from driftbridge.targets.base import Target


def run(
    target: Target,
    sampler: Sampler,
    positions: Float[Array, "chains dim"],
    key: Key[Array, ""],
    *,
    num_samples: int,
    num_warmup: int = 0,
    thin: int = 1,
    adapt: Adaptation | None = None,
) -> tuple[Record, Sampler]:
    """Draw by Markov chains, as a pure function: no checks, no host, no progress.

    To be called inside `jax.jit` (`num_samples` and the other counts fixed): outside, every call
    traces its loops anew.

    With the same key, positions and settings it takes the same transitions as `driftbridge.sample`.
    Leaves of `target`, `sampler` and `adapt` must be arrays of the dtype of `positions` already
    (`driftbridge.runtime.dtypes.cast_floating`).

    **Arguments:**

    - `positions`: where the chains start.
    - `key`: a typed key.
    - `num_samples`, `num_warmup`, `thin`: static, as for `sample`.
    - `adapt`: the warm-up, or None.

    **Returns:** a `Record` with leading axes `(num_samples, chains)`, and the sampler that
    the draws were taken with.
    """
    num_chains = positions.shape[0]
    if num_warmup == 0 or not has_step_size(sampler):
        adapt = None
    keys = chain_keys(streams(key).steps, jnp.arange(num_chains, dtype=jnp.int32))
    chains = begin(target, sampler, adapt, positions, jnp.asarray(num_warmup, jnp.int32))
    go = partial(advance, target, keys=keys)
    integer = partial(jnp.asarray, dtype=jnp.int32)
    first_step = integer(0)
    if num_warmup:
        unkept = empty_rows(target, chains, keys, num_warmup)
        chains, _, first_step = go(
            chains, unkept, first_step=first_step, num_steps=integer(num_warmup),
            adapt=adapt,
        )  # fmt: skip
        if adapt is not None:
            chains = settle(target, adapt, chains)._replace(adaptation=None)
    chains, rows, _ = go(
        chains, empty_rows(target, chains, keys, num_samples), first_step=first_step,
        num_steps=integer(num_samples * thin),
        thin=None if thin == 1 else integer(thin),
    )  # fmt: skip
    return unpack(rows), chains.sampler

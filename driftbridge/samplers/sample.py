"""The verb `sample`, and `resume` for runs that are stored."""

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from driftbridge.runtime.codec import decode, encode
from driftbridge.runtime.compilations import Compilations, CompiledAhead
from driftbridge.runtime.dtypes import cast_floating, default_dtype
from driftbridge.runtime.keys import as_key, streams
from driftbridge.runtime.progress import Callback, reporter
from driftbridge.runtime.store import GRID, DrawStore, StoreError
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.automatic import Choice, choose
from driftbridge.samplers.base import Sampler, has_step_size, innermost
from driftbridge.samplers.door import (
    check_counts,
    check_kinds,
    check_mesh,
    check_target,
    position_dtype,
)
from driftbridge.samplers.draws import Draws
from driftbridge.samplers.driver import (
    Clock,
    Run,
    compile_ahead,
    keys_of_chains,
    over_devices,
    settle,
)
from driftbridge.samplers.initial import Grouped
from driftbridge.samplers.keeping import InMemory, Keeper, OnDisk, Reduced
from driftbridge.samplers.opening import begin, open_chains
from driftbridge.samplers.reducers import Reducer
from driftbridge.samplers.saved import write_result
from driftbridge.samplers.stored import change_settings, checkpoint, describe, rebuild
from driftbridge.samplers.until import Until
from driftbridge.targets.base import Target


def sample(
    target: Target,
    sampler: Sampler | None = None,
    *,
    key: int | Key[Array, ""] = 0,
    num_samples: int | Until | None = None,
    num_warmup: int | None = None,
    num_chains: int | None = None,
    thin: int = 1,
    init: Any = None,
    adapt: Adaptation | str | None = "auto",
    keep: str | Reducer | Sequence[Reducer] = "draws",
    store: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
    progress: bool | Callback = False,
) -> Draws:
    """Draw from a target by Markov chains.

    **Arguments:**

    - `target`: what to sample.
    - `sampler`: the kernel. None takes `LocalScaleHMC`, tuned from the whole ensemble of chains by
      `EnsembleWarmup` (`JitteredHMC` for fewer than 16 chains).
    - `key`: a seed or a typed key. Draws depend on (key, chain, step) alone.
    - `num_samples`: draws kept of each chain, or an `Until` rule. None is 1000, and for an ensemble
      as many as it takes to converge, 10 000 at most.
    - `num_warmup`: most transitions of each chain before the first kept draw, in which `adapt`
      tunes. None is 1000; 640 for an ensemble, whose warm-up ends when it agrees.
    - `num_chains`: None is as many as `init` has positions for, else 4; for an ensemble 64, on an
      accelerator 256.
    - `thin`: transitions for each kept draw.
    - `init`: where chains start: a strategy (`UniformStart(2.0)` if None; `Gathering()` for an
      ensemble), one position `(dim,)`, one for each chain `(num_chains, dim)`, or a dict of
      parameters.
    - `adapt`: the warm-up; `"auto"` takes the one that suits the sampler, None leaves the sampler
      as it is.
    - `keep`: `"draws"`, or a reducer or several of different classes (memory is then flat in the
      number of draws).
    - `store`: a folder for the draws; the run can then be interrupted at any moment, and
      `resume` goes on with it bit for bit.
    - `mesh`: devices to lay the chains over, along its first axis.
    - `progress`: True for a line on standard error, or a callback taking a `Progress`.

    **Returns:** `Draws`, with its warnings printed once.

    **Raises:** `ValueError` or `TypeError` for arguments that cannot work, `SamplingError` where
    every chain fails, `StoreError` where the store cannot be written.
    """
    choice = choose(sampler, adapt, init, num_chains, num_samples, num_warmup)
    counts = {"num_warmup": choice.num_warmup, "num_chains": choice.num_chains, "thin": thin}
    check_counts(choice.num_samples, **counts)
    check_kinds(choice.sampler, choice.adapt, mesh)
    counts = {name: int(count) for name, count in counts.items()}
    choice = choice._replace(num_warmup=counts["num_warmup"], num_chains=counts["num_chains"])
    run, draw_store = opened(target, choice, key, counts, keep, store, mesh, progress)
    asked = choice.num_samples
    return execute(run, asked if isinstance(asked, Until) else int(asked), draw_store)


def opened(
    target: Any,
    choice: Choice,
    key: Any,
    counts: dict[str, int],
    keep: Any,
    store: str | os.PathLike | None,
    mesh: Mesh | None,
    progress: bool | Callback,
) -> tuple[Run, DrawStore | None]:
    """A run before its first transition, and the store it writes to."""
    chosen, adapt, init, num_chains, num_samples, num_warmup = choice
    thin = counts["thin"]
    num_samples = num_samples if isinstance(num_samples, Until) else int(num_samples)
    dtype = position_dtype(init)
    target, chosen = cast_floating(target, dtype), cast_floating(chosen, dtype)
    adapt = cast_floating(adapt, dtype)
    check_target(target, chosen, dtype)
    check_mesh(mesh, num_chains)
    facts = {
        "seed": int(key) if isinstance(key, int | np.integer) else None,
        "num_groups": groups_of(init, num_chains),
    }
    key = as_key(key)
    keys = streams(key)
    reducers = reducers_of(keep)
    if num_warmup == 0 or not has_step_size(chosen):
        adapt = None
    ahead: list[CompiledAhead] = []

    def foreseen(chains):
        if mesh is None:
            first_thin = thin if num_warmup == 0 else 1
            ahead.append(compile_ahead(target, adapt, keys_by_chain, first_thin, chains))

    keys_by_chain = keys_of_chains(keys, num_chains, mesh)
    watch = Compilations()
    opening = open_chains(
        target, chosen, adapt, init, keys.start, num_chains, num_warmup, dtype, over_devices(mesh),
        foreseen,
    )  # fmt: skip
    compiled = watch.seconds
    facts |= {"repaired_at_start": int(opening.repaired), "gathered": bool(opening.gathered)}
    draw_store = None
    if store is not None:
        draw_store = DrawStore.create(store, {"sampler": type(innermost(chosen)).__name__})
        parts = {"target": target, "sampler": chosen, "adapt": adapt, "reducers": reducers}
        settings = {
            **counts,
            "num_samples": encode(num_samples)[0],
            "dtype": np.dtype(dtype).name,
            "key": jax.random.key_data(key).tolist(),
            "key_impl": str(jax.random.key_impl(key)),
            "facts": facts,
        }
        describe(draw_store, parts, settings)

    run = Run(
        target=target,
        adapt=adapt,
        chains=opening.chains,
        keys=keys,
        chain_keys=keys_by_chain,
        ahead=ahead[0] if ahead else None,
        keeper=keeper_for(target, reducers, draw_store, num_chains, facts["num_groups"]),
        thin=thin,
        num_warmup=num_warmup,
        report=reporter(progress),
        mesh=mesh,
        facts=facts,
    )
    run.clock.gradients["warmup"] += int(opening.num_gradients) * num_chains
    run.clock.compile += compiled
    return run, draw_store


def resume(
    path: str | os.PathLike,
    *,
    num_samples: int | Until | None = None,
    target: Target | None = None,
    mesh: Mesh | None = None,
    progress: bool | Callback = False,
) -> Draws:
    """Go on with a stored run, bit for bit as if it had never stopped.

    **Arguments:**

    - `path`: the folder given as `store`.
    - `num_samples`: draws of each chain in all, or an `Until` rule; None for what was last asked
      of this run.
    - `target`: the target, where it holds a function that cannot be found again by its name (one
      defined in a script or notebook); it must be the same as before.
    - `mesh`, `progress`: as for `sample`.

    **Returns:** the `Draws` of the whole run.

    **Raises:** `StoreError` where there is no such run, it cannot be rebuilt, or it is another.
    """
    path = Path(path)
    draw_store = DrawStore.open(path)
    parts, settings = rebuild(path, {"target": target})
    asked = decode(settings["num_samples"], []) if num_samples is None else num_samples
    check_counts(asked, **{k: settings[k] for k in ("num_warmup", "num_chains", "thin")})
    asked = asked if isinstance(asked, Until) else int(asked)
    whole: Target = parts["target"]
    sampler, adapt = parts["sampler"], parts["adapt"]
    chains_count, dtype = settings["num_chains"], np.dtype(settings["dtype"])
    check_kinds(sampler, adapt, mesh)
    check_mesh(mesh, chains_count)
    if dtype.itemsize > default_dtype().itemsize:
        raise StoreError(
            f"the run in {path} is in {dtype}, which JAX would round to {default_dtype()}: go on "
            'with jax.config.update("jax_enable_x64", True).'
        )
    keys = streams(
        jax.random.wrap_key_data(
            jnp.asarray(settings["key"], jnp.uint32), impl=settings["key_impl"]
        )
    )
    leaves, facts = draw_store.load_checkpoint()

    def fresh(positions):
        chains = begin(whole, sampler, adapt, positions, jnp.int32(settings["num_warmup"]))
        return settle(whole, adapt, chains) if adapt is not None and facts["settled"] else chains

    like = jax.ShapeDtypeStruct((chains_count, whole.dim), dtype)
    structure = jax.tree.structure(jax.eval_shape(fresh, like))
    arrays, kept = leaves[: facts["leaves"]], leaves[facts["leaves"] :]
    chains = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in arrays])
    if mesh is not None:
        states = jax.device_put(chains.states, over_devices(mesh))
        chains = chains._replace(states=states)
    run = Run(
        target=whole,
        adapt=None if chains.adaptation is None else adapt,
        chains=chains,
        keys=keys,
        chain_keys=keys_of_chains(keys, chains_count, mesh),
        keeper=keeper_for(
            whole, parts["reducers"], draw_store, chains_count, settings["facts"]["num_groups"]
        ),
        thin=settings["thin"],
        num_warmup=settings["num_warmup"],
        step=facts["step"],
        is_settled=facts["settled"],
        report=reporter(progress),
        mesh=mesh,
        facts=settings["facts"],
    )
    run.clock = Clock(**facts["clock"])
    run.keeper.restore(kept, facts["draws"])
    if num_samples is not None:
        change_settings(path, num_samples=encode(asked)[0])
    return execute(run, asked, draw_store)


def execute(run: Run, num_samples: int | Until, store: DrawStore | None) -> Draws:
    """Warm up what is left to warm up, draw what is left to draw, and make the result."""
    if store is not None:
        run.after_chunk = lambda run: checkpoint(store, run)
    interrupted, unmet = False, None
    try:
        if not run.is_settled:
            run.advance("warmup", run.num_warmup - run.keeper.count("warmup"), run.num_warmup)
            run.settle()
        if isinstance(num_samples, Until):
            unmet = draw_until(run, num_samples)
        else:
            run.advance("sampling", num_samples - run.keeper.count("sampling"), num_samples)
    except KeyboardInterrupt:
        if run.keeper.count("sampling") == 0:
            raise
        interrupted = True
    draws = result(run, num_samples, interrupted, unmet)
    if store is not None:
        write_result(store.path, run.target, draws.tuned, draws.metadata)
    return draws


def draw_until(run: Run, until: Until) -> str | None:
    """Draw from look to look; return what is not met at the limit, None where all is.

    The looks of a resumed run are those of one that was never interrupted.
    """
    look, begun = 0, run.keeper.count("sampling")
    while True:
        look = until.next_look(look, GRID)
        if look < min(begun, until.max_draws):
            continue  # passed before the run was interrupted
        run.advance("sampling", look - run.keeper.count("sampling"), None)
        late = until.seconds is not None and run.clock.seconds["sampling"] >= until.seconds
        is_last = late or look >= until.max_draws
        # What a glance finds unmet is: only the last look has to name the worst of all.
        wants_error = until.mcse is not None
        few = None if is_last else run.keeper.glance(wants_error)
        unmet = None if few is None else until.unmet(few)
        if unmet is None:
            unmet = until.unmet(run.keeper.diagnose(wants_error))
        if unmet is None or is_last:
            run.tell("sampling", run.keeper.count("sampling"))
            return unmet


@cache
def versions() -> dict[str, str]:
    """Those of the packages whose numbers the draws are; to read them takes some milliseconds."""
    return {name: version(name) for name in ("driftbridge", "jax", "numpy")}


def result(run: Run, num_samples: int | Until, interrupted: bool, unmet: str | None) -> Draws:
    """The draws with their facts; warnings are printed once."""
    asked = num_samples if isinstance(num_samples, int) else None
    metadata = {
        "sampler": type(innermost(run.chains.sampler)).__name__,
        "num_samples": asked,
        "num_warmup": run.keeper.count("warmup"),
        "thin": run.thin,
        **run.facts,
        **run.told(),
        "interrupted": interrupted,
        "unmet": unmet,
        "seconds_compile": run.clock.compile,
        "seconds_warmup": run.clock.seconds["warmup"],
        "seconds_sampling": run.clock.seconds["sampling"],
        "gradients_warmup": run.clock.gradients["warmup"],
        "gradients_sampling": run.clock.gradients["sampling"],
        "looked_at": run.clock.looked_at,
        "outside": run.clock.outside,
        "versions": dict(versions()),
    }
    draws = run.keeper.draws(run.chains.sampler, metadata)
    for finding in draws.warnings:
        print(f"driftbridge: {finding.message}", file=sys.stderr)
    return draws


def groups_of(init: Any, num_chains: int) -> int | None:
    """Number of groups of chains with one start each, where `init` makes them."""
    if not isinstance(init, Grouped):
        return None
    groups, rest = divmod(num_chains, init.group_size)
    if rest or groups < 4:
        raise ValueError(
            f"groups of {init.group_size} chains must divide num_chains into at least four; got "
            f"num_chains={num_chains}."
        )
    return groups


def reducers_of(keep: str | Reducer | Sequence[Reducer]) -> tuple[Reducer, ...] | None:
    """The reducers of a `keep` argument, None for draws."""
    if isinstance(keep, str) and keep == "draws":
        return None
    parts = keep if isinstance(keep, Sequence) and not isinstance(keep, str) else (keep,)
    reducers = tuple(part for part in parts if isinstance(part, Reducer))
    if len(reducers) < len(parts):
        raise ValueError(
            f'keep must be "draws", a reducer or a sequence of reducers, such as [Mean()]; got '
            f"{keep!r}."
        )
    names = [type(reducer).__name__ for reducer in reducers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"keep has {names.count(name)} reducers {name}, and results go by the name of the "
                f"class. Keep one (Quantiles takes any number of probabilities), or name the other "
                f"apart: class Other{name}({name}): pass."
            )
    return reducers


def keeper_for(
    target: Target,
    reducers: tuple[Reducer, ...] | None,
    store: DrawStore | None,
    num_chains: int,
    num_groups: int | None,
) -> Keeper:
    """Reducers where there are any, else the store where there is one, else memory."""
    if reducers is not None:
        return Reduced(target, reducers, num_chains, num_groups)
    if store is not None:
        return OnDisk(target, store, num_groups)
    return InMemory(target, num_groups)

"""The blocked iteration with the rows spread over the devices of a mesh."""

from functools import partial

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from driftbridge.transport.blocked import iterate_blocked
from driftbridge.transport.entropic_problem import Problem
from driftbridge.transport.iterate import Iterate, Settings


def solve_sharded(
    mesh: Mesh, method: str, problem: Problem, start: Iterate, settings: Settings
) -> Iterate:
    """Iterate in blocks ("blocked", or "log") of each device's rows.

    Devices exchange the column sums, `m` numbers an iteration.

    **Raises:** `ValueError` where the padded rows are no multiple of the devices.
    """
    if len(problem.a) % mesh.size:
        raise ValueError(
            f"{len(problem.a)} padded rows cannot be spread evenly over {mesh.size} devices; take "
            "a number of devices that is a power of two up to 16."
        )
    arguments = problem, start, settings
    placed = jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
        arguments,
        _specs(mesh, *arguments),
    )
    found = _solve(mesh, method, *placed)
    # The plan's own products run on one device.
    return jax.device_put(found, jax.devices()[0])


def _specs(mesh: Mesh, problem: Problem, start: Iterate, settings: Settings):
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    leaves, structure = jax.tree.flatten(problem)
    of_rows = [leaf is problem.x or leaf is problem.a for leaf in leaves]
    specs = jax.tree.unflatten(structure, [rows if is_row else whole for is_row in of_rows])
    of_start = Iterate(rows, *[whole] * (len(start) - 1))  # pyright: ignore[reportArgumentType]
    return specs, of_start, jax.tree.map(lambda _: whole, settings)


@partial(jax.jit, static_argnames=("mesh", "method"))
def _solve(mesh: Mesh, method: str, problem: Problem, start: Iterate, settings: Settings):
    specs = _specs(mesh, problem, start, settings)

    def own_rows(problem, start, settings):
        return iterate_blocked(problem, start, settings, method == "log", mesh.axis_names)

    mapped = jax.shard_map(own_rows, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    return mapped(problem, start, settings)

"""The warm-up alone: a tuned sampler with the positions it leaves, and a file of them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.codec import decode, encode
from driftbridge.runtime.progress import Callback
from driftbridge.runtime.store import StoreError
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.automatic import choose
from driftbridge.samplers.base import Sampler, has_step_size, innermost
from driftbridge.samplers.diagnostics import labels
from driftbridge.samplers.door import check_counts, check_kinds
from driftbridge.samplers.driver import SamplingError
from driftbridge.samplers.keeping import InMemory, names_of
from driftbridge.samplers.sample import opened, versions
from driftbridge.targets.base import Target
from driftbridge.targets.layout import Layout

FORMAT, VERSION = "driftbridge-tuned", 1
# Transitions at the end of warm-up that tell how the tuned sampler does.
LATEST = 50


@dataclass(frozen=True)
class Tuned:
    """What a warm-up leaves, to sample from without another.

    By `driftbridge.sample(target, tuned.sampler, init=tuned.positions, num_warmup=0)`.

    **Arguments:**

    - `sampler`: ready for draws.
    - `positions`: where its chains ended, shape `(chains, dim)`.
    - `facts`: what JSON can hold: `num_warmup` (transitions of each chain), `gradients` (of all
      chains), `acceptance` (mean rate of the last 50 transitions), `seconds`, `seconds_compile`,
      `seed`, `versions`, and of an ensemble `agreed`, `gathered`, `worst` (label of the parameter
      that drifted most in the last window), `drift` (by how many standard deviations), `repaired`
      and `repaired_at_start` (chains moved); each may be missing.
    """

    sampler: Sampler
    positions: Float[np.ndarray, "chains dim"]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Class of the sampler inside all wrappers."""
        return type(innermost(self.sampler)).__name__

    @property
    def dim(self) -> int:
        """Dimension of the target it was tuned on."""
        return self.positions.shape[1]

    @property
    def agreed(self) -> bool | None:
        """Whether the ensemble agreed before warm-up ended; None where it does not tell."""
        if self.facts.get("agreed") is None:
            return None
        return bool(self.facts["agreed"]) and self.facts.get("gathered", True)

    def save(self, path: str | os.PathLike) -> None:
        """Write one JSON file, whole or not at all, from which `load` gives the same bits.

        **Raises:** `NotStorable` where the sampler holds a function without an importable name.
        """
        tree, arrays = encode(self.sampler)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "facts": self.facts,
            "sampler": tree,
            "arrays": [_written(array) for array in arrays],
            "positions": _written(np.asarray(self.positions)),
        }
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tuned":
        """Read what `save` wrote.

        **Raises:** `StoreError` where there is no such file, or it is none of these, of another
        version, damaged, or names a class that cannot be imported.
        """
        content = _content(Path(path))
        try:
            arrays = [_read(entry) for entry in content["arrays"]]
            sampler = decode(content["sampler"], arrays)
            positions, facts = _read(content["positions"]), dict(content["facts"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{path} is damaged ({error}); tune again.") from error
        except LookupError as error:
            raise StoreError(f"the sampler in {path} cannot be rebuilt: {error}.") from error
        if not isinstance(sampler, Sampler) or positions.ndim != 2:
            raise StoreError(f"{path} is damaged: it holds no sampler with positions; tune again.")
        return cls(sampler, positions, facts)


def tune(
    target: Target,
    sampler: Sampler | None = None,
    *,
    key: int | Key[Array, ""] = 0,
    num_warmup: int | None = None,
    num_chains: int | None = None,
    init: Any = None,
    adapt: Adaptation | str | None = "auto",
    progress: bool | Callback = False,
) -> Tuned:
    """Take the warm-up of `driftbridge.sample` with the same arguments, and nothing after it.

    **Arguments:** those of `driftbridge.sample`.

    **Returns:** the `Tuned` sampler; `agreed` is False where the ensemble did not agree.

    **Raises:** as `driftbridge.sample`, `ValueError` where there is nothing to tune, and
    `SamplingError` where no chain accepted any of the last transitions.
    """
    choice = choose(sampler, adapt, init, num_chains, 1, num_warmup)
    counts = {"num_warmup": choice.num_warmup, "num_chains": choice.num_chains, "thin": 1}
    check_counts(1, **counts)
    check_kinds(choice.sampler, choice.adapt, None)
    name = type(innermost(choice.sampler)).__name__
    if choice.num_warmup == 0 or choice.adapt is None or not has_step_size(choice.sampler):
        raise ValueError(
            f"nothing to tune: num_warmup is {choice.num_warmup}, adapt is {choice.adapt!r} and "
            f"the sampler {name}. Take num_warmup of at least 1, a warm-up, and a sampler with a "
            "step size."
        )
    counts = {name: int(count) for name, count in counts.items()}
    choice = choice._replace(num_warmup=counts["num_warmup"], num_chains=counts["num_chains"])
    run, _ = opened(target, choice, key, counts, "draws", None, None, progress)
    run.advance("warmup", run.num_warmup, run.num_warmup)
    run.settle()
    told = run.told()
    if "worst" in told:
        told["worst"] = coordinate_names(target)[told["worst"]]
    assert isinstance(run.keeper, InMemory)  # as asked for
    latest = run.keeper.stats("warmup")["acceptance_rate"][:, -LATEST:]
    if not latest.max() > 0:
        raise SamplingError(
            f"every chain of {name} failed: none of the last {latest.shape[1]} transitions of "
            "warm-up was accepted or finite. Start where the density is not extreme "
            "(init=Approach()), or look at the density and its gradient there."
        )
    facts = {
        "sampler": name,
        "num_warmup": run.keeper.count("warmup"),
        "gradients": run.clock.gradients["warmup"],
        "acceptance": float(latest.mean()),
        "seconds": run.clock.seconds["warmup"],
        "seconds_compile": run.clock.compile,
        **run.facts,
        **told,
        "versions": dict(versions()),
    }
    return Tuned(run.chains.sampler, np.asarray(run.chains.states.position), facts)


def coordinate_names(target: Target) -> tuple[str, ...]:
    """Labels of the coordinates of an unconstrained position."""
    layout = getattr(target, "layout", None)
    if isinstance(layout, Layout):
        pairs = zip(layout.names, layout.shapes, strict=True)
        return tuple(label for name, shape in pairs for label in labels(name, shape, None, {}))
    names = names_of(target)
    if len(names) == target.dim:
        return names
    return tuple(f"coordinate {i}" for i in range(target.dim))


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StoreError(f"there is no file {path}; `driftbridge tune` or Tuned.save writes one.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(
            f"{path} holds no tuned sampler of driftbridge; `driftbridge tune` or Tuned.save "
            "writes one."
        )
    if content.get("version") != VERSION:
        raise StoreError(
            f"{path} has version {content.get('version')} of the format; this release reads "
            f"{VERSION}. Tune again."
        )
    return content


# A float32 is a float64 exactly, and the shortest decimal of a float64 is read as the same number.
def _written(array: np.ndarray) -> dict[str, Any]:
    values = np.ravel(array).tolist()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def _read(entry: dict[str, Any]) -> np.ndarray:
    return np.array(entry["values"], np.dtype(entry["dtype"])).reshape(entry["shape"])

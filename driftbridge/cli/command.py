"""What `driftbridge sample` was asked, kept beside its draws so that `resume` can go on."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import driftbridge as db
from driftbridge.cli import data, models, regressions
from driftbridge.cli.errors import CommandError

NAME, FORMAT, VERSION = "command.json", "driftbridge-command", 1


@dataclass(frozen=True)
class Command:
    """One run: what is sampled and how.

    - `model`: `path.py:name` with an absolute path, or the name of a built-in regression.
    - `data`: absolute path of the data file, or None.
    - `settings`, `columns`, `outcome`, `predictors`, `prior`: as on the command line.
    - `sampler`, `options`: name of the sampler's class, and its arguments.
    - `tuned`: absolute path of the file that the sampler came from, or None.
    - `draws`: draws of each chain, the limit of them where `until_converged`.
    - `digests`: SHA-256 of the model's and the data file when the run began.
    """

    model: str
    data: str | None
    settings: dict[str, Any]
    columns: tuple[str, ...] | None
    outcome: str | None
    predictors: tuple[str, ...] | None
    prior: str | None
    sampler: str
    options: dict[str, Any]
    chains: int
    draws: int
    warmup: int
    thin: int
    seed: int
    until_converged: bool
    float64: bool
    tuned: str | None = None
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_regression(self) -> bool:
        """Whether the model is a built-in regression."""
        return self.model in regressions.FAMILIES

    @property
    def model_file(self) -> Path | None:
        """The file of the model, where it has one."""
        return None if self.is_regression else models.split(self.model)[0]

    @property
    def title(self) -> str:
        """Model and data in a few words."""
        model = self.model.rpartition(os.sep)[2]
        return model if self.data is None else f"{model} of {Path(self.data).name}"

    @property
    def num_samples(self) -> "int | db.Until":
        """What `sample` takes as `num_samples`."""
        return db.Until(max_draws=self.draws) if self.until_converged else self.draws

    def target(self) -> db.Target:
        """The target, made of the model's file and the data.

        **Raises:** `CommandError` where model, data and options do not fit together.
        """
        return self._regression() if self.is_regression else self._model()

    def _regression(self) -> db.Target:
        if self.data is None or self.outcome is None:
            raise CommandError(f"{self.model} needs --data FILE and --outcome COLUMN.")
        if self.settings or self.columns:
            raise CommandError(f"{self.model} takes --predictors, not --set or --columns.")
        columns, names = data.read(Path(self.data)), self.predictors
        if names is None:
            names = tuple(name for name in columns if name != self.outcome)
        chosen = data.select(columns, (self.outcome, *names), self.data)
        return regressions.regression(
            self.model, chosen, self.outcome, list(names), self.prior or "gaussian"
        )

    def _model(self) -> db.Target:
        path, name = models.split(self.model)
        thing = models.load(path, name)
        for option in ("outcome", "predictors", "prior"):
            if getattr(self, option) is not None:
                raise CommandError(
                    f"--{option} belongs to the built-in regressions logistic, linear and poisson; "
                    f"{path.name}:{name} takes columns by the names of its arguments."
                )
        columns = {} if self.data is None else data.read(Path(self.data))
        if self.columns is not None:
            columns = data.select(columns, self.columns, self.data or "the command")
        arguments = {**data.arguments(columns), **self.settings}
        return models.target_of(thing, f"{path.name}:{name}", arguments)

    def with_digests(self) -> "Command":
        """The command with the digests of its files as they are now."""
        files = {"model": self.model_file, "data": self.data}
        digests = {role: digest(Path(path)) for role, path in files.items() if path is not None}
        return dataclasses.replace(self, digests=digests)

    def check_unchanged(self) -> None:
        """Raise `CommandError` naming a file that is gone or not what it was."""
        files = {"model": self.model_file, "data": self.data}
        for role, before in self.digests.items():
            path = Path(str(files[role]))
            if not path.is_file():
                raise CommandError(f"the {role} file {path} of this run is gone; put it back.")
            if digest(path) != before:
                raise CommandError(
                    f"the {role} file {path} has changed since this run began, so going on would "
                    "mix two posteriors. Put the old file back, or start a new run."
                )

    def save(self, folder: Path) -> None:
        """Write `command.json` into a folder, whole or not at all."""
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        partial = folder / f"{NAME}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, folder / NAME)

    @classmethod
    def load(cls, folder: Path) -> "Command":
        """The command of a run.

        **Raises:** `CommandError` where the folder has none, or one of another version.
        """
        path = folder / NAME
        if not folder.is_dir():
            raise CommandError(f"there is no folder {folder}.")
        if not path.is_file():
            raise CommandError(
                f"{folder} has no {NAME}: it holds no run begun by `driftbridge sample`. A run "
                "begun in Python goes on by driftbridge.resume(path)."
            )
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content.pop("format", None), content.pop("version", None)) != (FORMAT, VERSION):
            raise CommandError(f"{path} is not version {VERSION} of {FORMAT}.")
        for name in ("columns", "predictors"):
            content[name] = None if content[name] is None else tuple(content[name])
        return cls(**content)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

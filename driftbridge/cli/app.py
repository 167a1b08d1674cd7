"""The commands of `driftbridge`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from driftbridge.cli.errors import CommandError, readable

app = typer.Typer(
    help="Sample posteriors and fit maps between tables from the command line.",
    epilog="Exit codes: 0 converged (tune: agreed), 3 not converged, 2 error, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress line.")]


Model = Annotated[
    str,
    typer.Argument(
        help="path.py:name (a NumPyro model, a Target, or a function that returns one), or "
        "logistic, linear, poisson."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="JSON, CSV or Parquet: its keys or columns become arguments of the model."),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="A method of `driftbridge samplers`; case and hyphens are free. `auto`, the one used "
        "if not set, takes many chains that tune themselves together."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        help="An argument of the sampler, as step_size=0.1 (where warm-up starts from); repeat "
        "for more."
    ),
]
Chains = Annotated[
    int | None,
    typer.Option(min=1, help="Number of chains: 4, with auto 64 (on an accelerator 256)."),
]
Warmup = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Steps of each chain before the first draw, 0 tunes nothing: 1000; with auto at "
        "most 640.",
    ),
]
Seed = Annotated[int, typer.Option(help="Draws depend on it, the chain and the step alone.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An argument of the model, as n=10 (integers may set shapes) or tau=0.5; repeat "
        "for more.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(help="Keys or columns of --data to give to the model, as a,b,c; all if not set."),
]
Outcome = Annotated[str | None, typer.Option(help="Regressions: the outcome's column.")]
Predictors = Annotated[
    str | None,
    typer.Option(
        help="Regressions: columns as a,b,c; all others if not set. They are standardised for "
        "sampling and for the prior; coefficients are told in the units of the data."
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        help="Regressions: gaussian (scale 2.5; the one used if not set), laplace (scale 1) or "
        "horseshoe, of coefficients of standardised predictors (and outcome, if linear); the "
        "intercept has scale 10."
    ),
]
Float64 = Annotated[bool, typer.Option("--float64", help="Double precision.")]


@app.command()
def sample(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(help="A new or empty folder for draws, report and what is needed to resume."),
    ],
    data: Data = None,
    sampler: Method = None,
    option: Options = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            help="A file of `driftbridge tune`: its sampler, from where its chains ended, without "
            "a warm-up. In place of --sampler, --option and --warmup."
        ),
    ] = None,
    chains: Chains = None,
    draws: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draws kept of each chain: 1000, at most 100000 with --until-converged; with auto "
            "until converged, at most 10000.",
        ),
    ] = None,
    warmup: Warmup = None,
    thin: Annotated[int, typer.Option(min=1, help="Steps for each draw that is kept.")] = 1,
    seed: Seed = 0,
    until_converged: Annotated[
        bool,
        typer.Option(
            "--until-converged",
            help="Stop when R-hat is below 1.01 and bulk and tail ESS are at least 800.",
        ),
    ] = False,
    set_: Settings = None,
    columns: Columns = None,
    outcome: Outcome = None,
    predictors: Predictors = None,
    prior: Prior = None,
    float64: Float64 = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw from a posterior, print the table, and write draws and report to a folder."""
    with readable(debug, _file_of(model)):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CommandError(
                f"{out} is not empty. Go on with the run in it by `driftbridge resume {out}`, or "
                "choose another folder."
            )
        import jax

        from driftbridge.cli import kernels, running
        from driftbridge.cli.command import Command
        from driftbridge.cli.tuning import read

        if tuned is None:
            row, found = kernels.find(sampler or kernels.AUTO), None
            chosen = kernels.counts(row, chains, draws, warmup, until_converged)
            name = kernels.AUTO if row is None else row.name
        else:
            row, found = None, read(tuned, sampler=sampler, option=option, warmup=warmup)
            chosen = kernels.counts_of_tuned(found, tuned, chains, draws, until_converged)
            name = found.name
        command = Command(
            **_common(model, data, set_, columns, outcome, predictors, prior, float64),
            sampler=name,
            options=kernels.parse(row, option or ()),
            chains=chosen.chains,
            draws=chosen.draws,
            warmup=chosen.warmup,
            thin=thin,
            seed=seed,
            until_converged=chosen.until_converged,
            tuned=None if tuned is None else str(tuned.expanduser().resolve()),
        )
        with jax.enable_x64(command.float64):
            code = running.run(command, out, quiet, found)
    raise typer.Exit(code)


@app.command()
def tune(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A new file (JSON) for what is tuned, as `sample --tuned` takes it."
        ),
    ] = None,
    data: Data = None,
    sampler: Method = None,
    option: Options = None,
    chains: Chains = None,
    warmup: Warmup = None,
    seed: Seed = 0,
    set_: Settings = None,
    columns: Columns = None,
    outcome: Outcome = None,
    predictors: Predictors = None,
    prior: Prior = None,
    float64: Float64 = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take the warm-up alone, print what it tuned, and write it to a file."""
    with readable(debug, _file_of(model)):
        if out is not None and out.exists():
            raise CommandError(f"{out} is there already. Choose another file, or remove it.")
        import jax

        from driftbridge.cli import kernels, tuning
        from driftbridge.cli.command import Command

        row = kernels.find(sampler or kernels.AUTO)
        chosen = kernels.counts(row, chains, None, warmup, False)
        if chosen.warmup == 0:
            raise CommandError("--warmup 0 tunes nothing; give at least 1, or leave it out.")
        command = Command(
            **_common(model, data, set_, columns, outcome, predictors, prior, float64),
            sampler=kernels.AUTO if row is None else row.name,
            options=kernels.parse(row, option or ()),
            chains=chosen.chains,
            draws=0,
            warmup=chosen.warmup,
            thin=1,
            seed=seed,
            until_converged=False,
        )
        with jax.enable_x64(command.float64):
            code = tuning.run(command, out, quiet)
    raise typer.Exit(code)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Draws of each chain in all (with --until-converged: at most)."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with a run, bit for bit as if it had never stopped."""
    with readable(debug):
        from driftbridge.cli.command import Command

        command = Command.load(folder)
    with readable(debug, command.model_file):
        import jax

        from driftbridge.cli import running

        if draws is not None:
            command = dataclasses.replace(command, draws=draws)
        with jax.enable_x64(command.float64):
            code = running.go_on(command, folder, quiet)
    raise typer.Exit(code)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="The folder of a run, or the file of a map.")],
    source: Annotated[
        Path | None, typer.Argument(help="Maps: points of the source to test it on.")
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(help="Maps: points of the target to compare with.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Maps: for subsamples and permutations.")] = 0,
    debug: Debug = False,
) -> None:
    """Print the table and write the report again, of a run or of a map."""
    with readable(debug):
        code = _report(result, source, target, seed)
    raise typer.Exit(code)


@app.command()
def fit(
    source: Annotated[Path, typer.Argument(help="Points of the source: CSV, Parquet, NPY, NPZ.")],
    target: Annotated[Path, typer.Argument(help="Points of the target, with the same columns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file (.npz) for the map.")],
    method: Annotated[
        str,
        typer.Option(
            help="auto, affine, selected, brenier, corrected, entropic, debiased, progressive, "
            "rearrangement, triangular, semidiscrete; flow and other learned maps."
        ),
    ] = "auto",
    columns: Annotated[
        str | None, typer.Option(help="Columns to map, as a,b,c; all numeric ones if not set.")
    ] = None,
    test: Annotated[
        float, typer.Option(help="Share of the rows held out from the fit, for the report.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="For held-out rows, and methods that draw.")] = 0,
    debug: Debug = False,
) -> None:
    """Fit a map from one table to another, save it, and report on rows held out."""
    with readable(debug):
        from driftbridge.cli import transporting

        code = transporting.fit(source, target, out, method, _names(columns), test, seed)
    raise typer.Exit(code)


@app.command()
def apply(
    saved: Annotated[Path, typer.Argument(metavar="MAP", help="A file of `driftbridge fit`.")],
    new: Annotated[Path, typer.Argument(help="Points to carry; other columns are kept.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV, Parquet, NPY or NPZ.")],
    inverse: Annotated[bool, typer.Option("--inverse", help="From target to source.")] = False,
    debug: Debug = False,
) -> None:
    """Carry the rows of a table by a saved map."""
    with readable(debug):
        from driftbridge.cli import transporting

        code = transporting.apply(saved, new, out, inverse)
    raise typer.Exit(code)


@app.command()
def fit_path(
    snapshots: Annotated[
        list[Path], typer.Argument(help="Points at each time: CSV, Parquet, NPY, NPZ.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file (.npz) for the path.")],
    times: Annotated[
        str | None, typer.Option(help="Their times, as 0,1,3; 0,1,2,... if not set.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns to move, as a,b,c; all numeric ones if not set.")
    ] = None,
    means: Annotated[str, typer.Option(help="Curve of the means: spline or polygon.")] = "spline",
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 6000,
    seed: Annotated[int, typer.Option(help="For pairs and training.")] = 0,
    debug: Debug = False,
) -> None:
    """Fit a process through tables at several times, save it, and draw its trajectories."""
    with readable(debug):
        from driftbridge.cli import paths

        code = paths.fit(snapshots, out, times, _names(columns), means, steps, seed)
    raise typer.Exit(code)


@app.command()
def samplers() -> None:
    """List the methods: cost, order, bias, what they need, and where they come from."""
    from driftbridge.cli.printing import print_methods

    print_methods()


def _common(
    model: str,
    data: Path | None,
    settings: list[str] | None,
    columns: str | None,
    outcome: str | None,
    predictors: str | None,
    prior: str | None,
    float64: bool,
) -> dict[str, Any]:
    """The fields of a `Command` that say what is sampled, and in which precision."""
    from driftbridge.cli import data as files
    from driftbridge.runtime.dtypes import default_dtype

    file = _file_of(model)
    return {
        "model": model if file is None else f"{file}:{model.split(':')[-1]}",
        "data": None if data is None else str(data.expanduser().resolve()),
        "settings": files.settings(settings or ()),
        "columns": _names(columns),
        "outcome": outcome,
        "predictors": _names(predictors),
        "prior": prior,
        "float64": float64 or default_dtype() == "float64",
    }


def _report(result: Path, source: Path | None, target: Path | None, seed: int) -> int:
    if result.is_file():
        from driftbridge.cli import transporting

        return transporting.show(result, source, target, seed)
    import driftbridge as db
    from driftbridge.cli import running

    draws = db.load(result)
    if not draws.num_draws:
        raise CommandError(
            f"{result} has no draws yet: it was stopped in its warm-up. Go on by `driftbridge "
            f"resume {result}`."
        )
    running.show(draws, result, _title(result))
    return running.code_of(draws)


def _title(folder: Path) -> str | None:
    from driftbridge.cli.command import NAME, Command

    return Command.load(folder).title if (folder / NAME).is_file() else None


def _file_of(model: str) -> Path | None:
    """The absolute path in `path.py:name`; None for a built-in regression."""
    return Path(model.rpartition(":")[0]).expanduser().resolve() if ":" in model else None


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())

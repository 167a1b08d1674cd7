"""What mkdocs makes while it builds: tables from the code, and the results of pages that run.

A line `<!-- table: NAME -->` becomes the table of that name, and `<!-- file: PATH -->` a block of
Python, the file at a path of the repository. On a page with `run: true` at its head
every block of Python runs, in order and in one namespace; what it prints and the value of its last
expression follow it, a matplotlib figure as a picture.
"""

import ast
import contextlib
import functools
import io
import os
import pprint
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)
FILE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)


class Result(NamedTuple):
    """What one block of Python gave: its text, and its figure as PNG if it is one."""

    text: str
    figure: bytes | None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in tables and files; on a page that runs, results too."""
    markdown = TABLE.sub(lambda match: TABLES[match[1]](), with_files(markdown))
    if not page.meta.get("run"):
        return markdown
    results = iter(run(page.file.src_uri, blocks(markdown)))
    number = 0

    def with_result(match: re.Match) -> str:
        nonlocal number
        result = next(results)
        shown = match[0]
        if result.text:
            shown += f"\n\n```text\n{result.text}\n```"
        if result.figure is not None:
            number += 1
            name = f"{page.file.src_uri.removesuffix('.md')}-{number}.png"
            files.append(generated(config, name, result.figure))
            shown += f"\n\n![Figure of the code above]({name})"
        return shown

    return BLOCK.sub(with_result, markdown)


def generated(config: Any, name: str, content: bytes) -> Any:
    """A file of the site that has no source."""
    from mkdocs.structure.files import File

    return File.generated(config, name, content=content)


def with_files(markdown: str) -> str:
    """A page with the files that it shows in place."""

    def block(match: re.Match) -> str:
        return f"```python\n{(ROOT / match[1]).read_text(encoding='utf-8')}```"

    return FILE.sub(block, markdown)


def blocks(markdown: str) -> tuple[str, ...]:
    """The blocks of Python of a page whose files are in place."""
    return tuple(BLOCK.findall(markdown))


@functools.cache
def run(page: str, code: tuple[str, ...]) -> tuple[Result, ...]:
    """Run the blocks of a page in one namespace and a folder of its own."""
    namespace: dict[str, Any] = {"__name__": f"docs.{page}"}
    with in_new_folder():
        return tuple(run_block(f"{page}, block {i}", c, namespace) for i, c in enumerate(code, 1))


def run_block(label: str, code: str, namespace: dict[str, Any]) -> Result:
    """Run one block; an expression at its end is shown as a notebook does."""
    body = ast.parse(code, label).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    out, figure = io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        exec(compile(ast.Module(body, []), label, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), label, "eval"), namespace)
            figure = picture(value)
            if value is not None and figure is None:
                print(text_of(value))
    return Result(out.getvalue().rstrip(), figure)


def text_of(value: Any) -> str:
    """A value as text; of a data frame all columns, of a dict one entry a line where it is long."""
    import pandas

    if isinstance(value, pandas.DataFrame):
        return value.to_string()
    return pprint.pformat(value, sort_dicts=False) if isinstance(value, dict) else str(value)


def picture(value: Any) -> bytes | None:
    """A matplotlib figure as PNG; None for anything else."""
    if not type(value).__module__.startswith("matplotlib.figure"):
        return None
    buffer = io.BytesIO()
    value.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return buffer.getvalue()


@contextlib.contextmanager
def in_new_folder() -> Iterator[None]:
    """Work in an empty folder, and come back."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def samplers_table() -> str:
    """Every exported sampler by its `Facts`."""
    from driftbridge.samplers.table import methods

    rows = [
        (
            f"`{row.name}`",
            row.facts.summary[0].upper() + row.facts.summary[1:],
            "yes" if row.facts.adjusted else "no",
            row.facts.gradients,
            "" if row.facts.strong_order is None else f"{row.facts.strong_order:g}",
            row.facts.bias,
            ", ".join(
                (*(["log density"] if row.facts.uses_value else []), "score", *row.facts.needs)
            ),
            row.facts.source,
        )
        for row in methods()
    ]
    head = ("sampler", "what it is", "exact", "gradients a step", "strong order", "bias", "needs")
    return markdown_table((*head, "source"), rows)


def zoo() -> dict[str, Any]:
    """A target of every kind in the zoo, by the code that makes it."""
    from driftbridge import targets

    codes = (
        "DiagonalGaussian([0.0, 1.0], [1.0, 2.0])",
        "DenseGaussian([0.0, 1.0], [[2.0, 0.9], [0.9, 1.0]])",
        "rotated_gaussian(10, 1e4)",
        "GaussianMixture([[-2.0, 0.0], [2.0, 0.0]])",
        "DenseGaussianMixture([[-2.0, 0.0], [2.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]] * 2)",
        "StudentMixture([[-2.0, 0.0], [2.0, 0.0]], df=5.0)",
        "gaussian_grid()",
        "forty_gaussians()",
        "NealFunnel()",
        "Banana()",
        "Ring()",
        "TwoMoons()",
        "DoubleWell()",
        "ManyWell()",
        "EightSchools()",
        "EightSchoolsNonCentered()",
        "BrownianMotion()",
        "BrownianMotionNonCentered()",
    )
    return {code: eval(f"targets.{code}", {"targets": targets}) for code in codes}


def zoo_table() -> str:
    """Targets with known truth, and what of it is known."""
    from driftbridge.targets import Truth

    rows = []
    for code, target in zoo().items():
        missing = [name for name in Truth._fields if getattr(target.truth, name) is None]
        known = "all" + (f" but {', '.join(f'`{name}`' for name in missing)}" if missing else "")
        rows.append((f"`{code}`", f"{target.dim}", what_it_is(code.split("(")[0]), known))
    return markdown_table(("target", "dimension", "what it is", "fields of `truth`"), rows)


def what_it_is(maker: str) -> str:
    """The first sentence of the docstring of something in `driftbridge.targets`."""
    from driftbridge import targets

    return " ".join((vars(targets)[maker].__doc__ or "").split("\n\n")[0].split())


def options_table(command: str) -> str:
    """Arguments and options of a command of `driftbridge`."""
    import typer

    from driftbridge.cli.app import app

    rows = []
    for parameter in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        is_option = parameter.param_type_name == "option"
        name = (
            ", ".join(parameter.opts)
            if is_option
            else (parameter.metavar or parameter.name).upper()
        )
        is_set = is_option and parameter.default is not None and parameter.default is not False
        default = f"{parameter.default}" if is_set else "required" if parameter.required else ""
        rows.append((f"`{name}`", default, parameter.help or ""))
    return markdown_table(("argument", "default", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "samplers": samplers_table,
    "zoo": zoo_table,
    "sample_options": functools.partial(options_table, "sample"),
    "tune_options": functools.partial(options_table, "tune"),
    "resume_options": functools.partial(options_table, "resume"),
    "report_options": functools.partial(options_table, "report"),
}

"""What the command line prints: tables and the verdict."""

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from driftbridge.samplers.diagnostics import ESS_AT_LEAST, R_HAT_BELOW
from driftbridge.samplers.table import methods

if TYPE_CHECKING:
    from driftbridge import Draws

# Rows of the table of parameters; where there are more, the worst are shown.
ROWS = 40
# Without a terminal nothing is cut: files are searched, not looked at.
FILE_WIDTH = 240


def console() -> Console:
    """Standard output, as wide as the terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=FILE_WIDTH)


def print_methods() -> None:
    """The table of samplers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sampler", no_wrap=True, style="bold")
    table.add_column("adjusted")
    for heading in ("gradients\na step", "strong\norder", "bias", "needs", "source"):
        table.add_column(heading, overflow="fold")
    for row in methods():
        facts = row.facts
        table.add_row(
            row.name,
            "yes" if facts.adjusted else "no",
            facts.gradients,
            "" if facts.strong_order is None else f"{facts.strong_order:g}",
            facts.bias,
            ", ".join(facts.needs) or "-",
            facts.source,
        )
    out = console()
    out.print(table)
    out.print(
        "\nBias: leading relative error of the stationary variance on a Gaussian of unit "
        "curvature, in the step size h and friction γ.",
        style="dim",
    )


def print_summary(draws: "Draws") -> None:
    """The table of parameters, those that fail marked, the worst first to be shown."""
    many = len(draws.names) > ROWS
    shown = draws.worst(ROWS) if many else list(draws.names)
    frame = draws.summary().loc[shown]
    out = console()
    narrow = out.width < 100
    columns = ["mean", "sd", "hdi_3%", "hdi_97%", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    if narrow:
        columns.remove("mcse_mean")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, values in zip(shown, frame[columns].to_dict("records"), strict=True):
        decimals = decimals_for(values["sd"])
        table.add_row(escaped(name), *(cell(c, v, decimals) for c, v in values.items()))
    out.print(table)
    if many:
        out.print(f"the {len(shown)} worst of {len(draws.names)} parameters", style="dim")


def print_verdict(draws: "Draws") -> None:
    """One line: converged or not, and by which numbers."""
    verdict = draws.convergence
    head = "[bold green]Converged[/]" if verdict.converged else "[bold red]NOT converged[/]"
    kinds = [f.name for f in draws.warnings if f.name not in ("not_converged", "interrupted")]
    also = f" Warnings: {', '.join(kinds)}." if kinds else ""
    console().print(f"\n{head}: {escaped(verdict.sentence)}.{also}", soft_wrap=True)


def escaped(text: str) -> str:
    """Text that rich prints as it is: brackets of labels are no markup."""
    from rich.markup import escape

    return escape(text)


def decimals_for(sd: float) -> int | None:
    """Decimals that leave three digits of a standard deviation; None for one far from 1."""
    if not 1e-4 < sd < 1e6:
        return None
    return max(0, 2 - int(np.floor(np.log10(sd))))


def cell(column: str, value: float, decimals: int | None) -> str:
    """One number, red where it fails the gate of convergence."""
    if np.isnan(value):
        return "-"
    fails = False
    if column == "r_hat":
        text, fails = f"{value:.3f}", not value < R_HAT_BELOW
    elif column.startswith("ess"):
        text, fails = f"{value:.0f}", not value >= ESS_AT_LEAST
    elif column.startswith("mcse") or decimals is None:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{decimals}f}"
    return f"[bold red]{text}[/]" if fails else text

"""The shell that reports share: one self-contained HTML page, figures as SVG, tables of facts."""

import io
import os
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from driftbridge.plot_elements import INK, LINE, MUTED, PAPER


class Tile(NamedTuple):
    """One number that a reader should see first."""

    name: str
    value: str
    note: str


class Page(NamedTuple):
    """What a report says; text is HTML except in `title` and `kicker`.

    - `tone`: `good`, `warn` or `bad`, the colour of the verdict.
    - `findings`: sentences, as plain text.
    - `body`: everything between the tiles and the facts.
    - `about`: one sentence above the facts.
    """

    title: str
    kicker: str
    tone: str
    verdict: str
    findings: tuple[str, ...]
    tiles: tuple[Tile, ...]
    body: str
    about: str
    facts: tuple[Mapping[str, Any], ...]


def write_page(page: Page, path: str | os.PathLike) -> Path:
    """Write a page; the file needs nothing beside it, and no network."""
    shell = Template(files("driftbridge").joinpath("report.html").read_text(encoding="utf-8"))
    text = shell.substitute(
        title=escape(page.title),
        kicker=escape(page.kicker),
        tone=page.tone,
        verdict=page.verdict,
        findings=_findings(page.findings),
        tiles="".join(_tile(*tile) for tile in page.tiles),
        body=page.body,
        about=escape(page.about),
        facts="".join(pairs(table) for table in page.facts if table),
    )
    path = Path(path)
    path.write_text(text, encoding="utf-8")
    return path


def _findings(messages: Iterable[str]) -> str:
    listed = "".join(f"<li>{escape(message)}</li>" for message in messages)
    return f'<ul class="findings">{listed}</ul>' if listed else ""


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd><small>{note}</small></div>"


def figure(drawn: Any, name: str, caption: str = "") -> str:
    """A matplotlib figure in a panel, with its caption."""
    note = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure>{note}<div class="panel">{svg(drawn, name)}</div></figure>'


def svg(figure: Any, name: str) -> str:
    """The figure as SVG that takes its ink, lines and paper from the page, light or dark."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", facecolor="none", dpi=120, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{name}">', text
    )
    # Ids of several figures share one page.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (LINE, "line"), (PAPER, "paper")):
        text = text.replace(colour, f"var(--{variable})")
    return text


def pairs(table: Mapping[str, Any]) -> str:
    """A table of two columns in a panel."""
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in table.items()
    )
    return f'<div class="panel"><table>{rows}</table></div>'


def seconds(value: float | int | None) -> str | None:
    """A time for a reader; None stays."""
    return None if value is None else f"{value:,.3g} s" if value < 100 else f"{value:,.0f} s"

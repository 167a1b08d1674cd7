"""Figures and the report: what they say, and that odd names and draws do not stop them."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from driftbridge import plots, report
from driftbridge.samplers.draws import Draws
from driftbridge.samplers.mala import MALA
from driftbridge.targets.base import Target

HOSTILE = "<script>alert('$x_1$ & more')</script>"
FIGURES = (plots.trace, plots.rank, plots.pair, plots.energy, plots.intervals)


class Named(Target):
    """A Gaussian whose parameters have awkward names."""

    dim: int = eqx.field(static=True)

    def log_density(self, x):
        return -jnp.sum(x**2) / 2

    def constrain(self, x):
        return {HOSTILE: x[0], "beta": x[1:], "constant": jnp.ones_like(x[0]), "flag": x[0] > 0}


def make(chains=4, draws=1000, dim=4, shift=0.0, divergent=0.0, **metadata):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(chains, draws, dim)).astype(np.float32)
    x[-1] += shift
    stats = {
        "acceptance_rate": rng.uniform(0.5, 1, (chains, draws)),
        "is_divergent": rng.uniform(size=(chains, draws)) < divergent,
        "energy": rng.normal(size=(chains, draws)),
    }
    return Draws(Named(dim), x, stats, tuned=MALA(0.1), metadata=metadata)


class Page(HTMLParser):
    """Tags, ids, references and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.references, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.references.append(value)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    draws = make(seed=0, seconds_sampling=2.0, gradients_sampling=8000, versions={"jax": "0.10"})
    path = report.write(draws, tmp_path_factory.mktemp("report") / "good.html")
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_verdict_comes_first(good):
    page = Page(good)
    words = " ".join(page.words)
    assert words.index("Converged:") < words.index("Estimates") < words.index("Mixing")
    assert "Named, sampled by MALA" in words and "8,000" in words and "step_size" in words
    assert page.tags.count("svg") == len(FIGURES)


def test_page_stands_alone(good):
    page = Page(good)
    for reference in page.references:
        assert reference.startswith(("#", "data:image/png;base64,")), reference[:80]
    assert "@import" not in good and "<link" not in good
    assert page.tags.count("script") == 1
    assert len(page.ids) == len(set(page.ids))
    assert {r[1:] for r in page.references if r[0] == "#"} <= set(page.ids)


def test_names_are_escaped(good):
    assert HOSTILE not in good
    assert "&lt;script&gt;alert" in good and "$x_1$" in good


def test_figures_follow_the_page(good):
    body = good[good.index("<svg") :]
    assert "var(--ink)" in body and "var(--line)" in body
    assert not re.search("#1f2630|#d5dbe3|DejaVu", body)


@pytest.mark.slow
def test_bad_runs_say_so_and_long_tables_fold(tmp_path):
    draws = make(chains=12, draws=100, dim=240, shift=1.0, divergent=0.05, interrupted=True)
    text = report.write(draws, tmp_path / "bad.html", title="A & B").read_text(encoding="utf-8")
    words = " ".join(Page(text).words)
    assert "<h1>A &amp; B</h1>" in text
    assert words.index("Not converged:") < words.index("Divergent steps") < words.index("Estimates")
    assert "Interrupted: 100 draws" in words
    assert f"{report.WORST} of 242 furthest from convergence" in words
    assert "All 242 parameters" in words
    assert text.count("<tr class=") + text.count("<tr><td data") == report.WORST + 242
    assert "of 241 parameters that are furthest" in words  # the constant is not drawn


@pytest.mark.parametrize(
    "draws",
    [
        make(draws=0, interrupted=True),
        make(draws=3),
        Draws(Named(2), np.zeros((2, 50, 2)), {}, tuned=None),
    ],
    ids=["none", "three", "constant"],
)
def test_reports_without_figures(draws, tmp_path):
    text = report.write(draws, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not converged:" in text and "<svg" not in text


def test_unadjusted_and_doubtful_verdicts():
    draws = make(divergent=0.05)
    tone, sentence = report._verdict(draws)
    assert tone == "warn" and "needs attention first" in sentence


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("chains", [1, 64])
def test_figures_draw(figure, chains):
    drawn = figure(make(chains, 60, dim=2))
    assert isinstance(drawn, Figure)
    drawn.draw_without_rendering()


@pytest.mark.slow
def test_figures_survive_what_is_not_finite():
    draws = make(draws=60)
    draws.positions[0, 5, 1] = np.nan
    draws.stats["energy"][1, 3] = np.inf
    for figure in FIGURES:
        figure(draws).draw_without_rendering()


def test_chosen_names():
    figure = plots.trace(make(draws=60), names=["beta[1]"])
    assert [a.get_title(loc="left") for a in figure.axes] == ["beta[1]", ""]
    with pytest.raises(KeyError, match=r"no parameter 'gamma'"):
        plots.pair(make(draws=60), names=["gamma"])
    with pytest.raises(ValueError, match="at least 4 draws a chain; got 3"):
        plots.rank(make(draws=3))


@pytest.mark.parametrize(
    ("column", "value", "error", "text"),
    [
        ("mean", -1.23456, 0.0042, "−1.235"),
        ("mean", 1234.5, 12.0, "1234"),
        ("mean", 1.0, np.nan, "1"),
        ("mean", 3e-9, 1e-10, "3e−09"),
        ("mcse_mean", 0.02, 0.02, "0.020"),
        ("mcse_mean", 53.0, 53.0, "53"),
        ("ess_bulk", 12345.6, 1.0, "12,346"),
        ("r_hat", np.inf, 1.0, "∞"),
        ("r_hat", np.nan, 1.0, "–"),
    ],
)
def test_numbers_have_the_digits_they_earn(column, value, error, text):
    assert report._number(column, value, error) == text


@pytest.mark.slow
def test_heavy_libraries_wait_for_their_use():
    code = (
        "import sys, driftbridge, driftbridge.plots, driftbridge.report;"
        "heavy = ('matplotlib', 'arviz', 'pandas', 'xarray', 'optax', 'driftbridge.transport');"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]", out.stdout


@pytest.mark.slow
def test_maps_come_at_their_first_use():
    code = (
        "import driftbridge as db;"
        "names = [n for n in dir(db) if not n.startswith('_')];"
        "assert {'fit_map', 'fit_path', 'sample', 'transport'} <= set(names);"
        "assert callable(db.fit_map) and callable(db.fit_path);"
        "assert db.transport.fit_map is db.fit_map;"
        "assert not [n for n in names if not hasattr(db, n)];"
        "db.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError: module 'driftbridge' has no attribute 'nothing'" in done.stderr

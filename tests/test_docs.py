"""The documentation: its code runs, its tables are whole, its own sampler keeps the laws."""

import importlib.util
import re
import shlex
import sys
import warnings
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from typer.testing import CliRunner

from driftbridge import targets
from driftbridge.cli.app import app
from driftbridge.samplers.table import methods
from tests.laws import coupling, linear_probe, test_engineering, test_strong_order

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
# Pages whose code takes more than a few seconds: nearly all compile a sampler.
SLOW = {
    "index",
    "targets",
    "driver",
    "samplers",
    "example",
    "bias",
    "write-a-sampler",
    "blackjax",
    "numpyro",
    "diagnostics",
    "maps",
    "floors",
    "flows",
    "transport",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The site's configuration, building to a folder of the tests."""
    site = tmp_path_factory.mktemp("site")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of mkdocs and its theme
        return load_config(str(ROOT / "mkdocs.yml"), site_dir=str(site))


@pytest.fixture(scope="module")
def hooks(config):
    """The module that mkdocs calls: a page run by a test is not run again by the build."""
    return config.hooks["docs/hooks.py"]


def source(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def results(hooks, page):
    return hooks.run(f"{page}.md", hooks.blocks(hooks.with_files(source(page))))


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in PAGES]
)
def test_python_of_a_page_runs(page, hooks):
    # An indented fence, or one in another spelling, would be left out in silence.
    assert len(hooks.blocks(source(page))) == len(re.findall(r"(?i)(```|~~~) *py", source(page)))
    results(hooks, page)


@pytest.mark.slow
def test_the_example_ends_as_its_text_says(hooks):
    texts = [result.text for result in results(hooks, "example")]
    assert "()" in texts  # no findings
    assert any("converged: " in text and "NOT" not in text for text in texts)
    assert sum(result.figure is not None for result in results(hooks, "example")) == 3


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(config, hooks):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(config)  # strict: a warning of mkdocs is an error
    site = Path(config.site_dir)
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"([^\"]+)\"", html)
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))]
        assert "<!-- table" not in html
    choosing = (site / "choosing" / "index.html").read_text(encoding="utf-8")
    assert all(f"<code>{row.name}</code>" in choosing for row in methods())


def test_the_zoo_has_every_target_with_known_truth(hooks):
    shown = {type(target) for target in hooks.zoo().values()}
    exported = {thing for thing in vars(targets).values() if isinstance(thing, type)}
    with_truth = {
        thing
        for thing in exported
        if issubclass(thing, targets.Target) and thing.truth is not targets.Target.truth
    }
    assert with_truth <= shown


def test_every_sampler_has_a_place_in_the_text():
    text = source("samplers")
    missing = [row.name for row in methods() if f"`{row.name}" not in text]
    assert not missing, missing


@pytest.mark.slow
def test_commands_of_the_page(tmp_path, monkeypatch):
    """In order, from a folder with the files that the page shows."""
    monkeypatch.chdir(tmp_path)
    text = source("command-line")
    for name, content in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL):
        Path(name).write_text(content, encoding="utf-8")
    shown = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    lines = shown.replace("\\\n", " ").splitlines()
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "driftbridge"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (0, 3), f"{line}\n{result.stderr}"


def heun():
    """The class of `examples/own_sampler.py`."""
    path = ROOT / "examples" / "own_sampler.py"
    spec = importlib.util.spec_from_file_location("example_own_sampler", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Heun


Heun = heun()

# The laws of a program that take a sampler alone.
LAWS = [
    law
    for name, law in vars(test_engineering).items()
    if name.startswith("test_")
    and law.__code__.co_varnames[: law.__code__.co_argcount] == ("sampler",)
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_own_sampler_keeps_the_laws_of_a_program(law):
    law(Heun(0.1))


def test_the_laws_of_a_program_are_found():
    assert len(LAWS) >= 7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("door", ["python numbers", "cast"])
def test_own_sampler_keeps_the_dtype(dtype, door):
    test_engineering.test_dtype_of_the_position_is_kept(Heun(0.1), dtype, door)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("step_size", "curvature"), [(0.3, 1.0), (0.1, 2.5)])
def test_own_sampler_has_the_variance_it_states(step_size, curvature):
    a = step_size * curvature
    variance = curvature * linear_probe.stationary(Heun(step_size), curvature)[0, 0]
    # Round-off of a linear solve whose condition number is about 1 / (contraction) < 10.
    assert variance == pytest.approx((2 - a) / (2 - a + a**2 / 2), rel=1e-12)
    assert linear_probe.mean_square_rate(Heun(1.99)) < 1 < linear_probe.mean_square_rate(Heun(2.01))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_own_sampler_has_the_strong_order_it_states(monkeypatch, record_property):
    # The path's increments are the noise of LMC and of Heun's method alike.
    monkeypatch.setitem(coupling.FOLLOW, Heun, coupling.lmc)
    reference = test_strong_order.reference.__wrapped__()
    test_strong_order.test_strong_order(Heun, reference, record_property)

"""The demonstration, and the examples of the README, run as they stand."""

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftbridge.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The README's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_demonstration(tmp_path, capfd):
    """Fewer draws than `make demo` takes; the table names the measurements."""
    draws = example("breast_cancer").main(tmp_path / "demo", num_samples=300, num_warmup=300)
    assert draws.num_draws == 300
    out = capfd.readouterr().out
    assert "coefficients[worst texture]" in out and "onverged: " in out
    assert "worst texture" in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_python_of_the_readme(code, capfd):
    assert len(code.strip().splitlines()) <= 7
    exec(compile(code, "README.md", "exec"), {})
    out = capfd.readouterr().out
    assert "converged" in out or "W2 to the target" in out


@pytest.mark.slow
@pytest.mark.parametrize("commands", blocks("bash"))
def test_commands_of_the_readme(commands, tmp_path, monkeypatch):
    """In order, from a folder with the examples; a run that has not converged exits with 3."""
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "examples", tmp_path / "examples")
    for line in commands.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "driftbridge"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (0, 3), f"{line}\n{result.stderr}"


def test_the_readme_names_files_that_exist():
    links = re.findall(r"\]\(([^):#]+)\)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, missing


def test_the_readme_has_examples_of_both_kinds():
    assert blocks("python") and blocks("bash")


@pytest.mark.slow
def test_colour_transfer(tmp_path, capfd, monkeypatch):
    """On few pixels, and by the map that compiles nothing."""
    module = example("colour_transfer")
    monkeypatch.setattr(module, "PIXELS", 200)
    fitted = module.main(tmp_path, "affine")
    assert fitted.dim == 3 and "W2 to the target" in capfd.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "colours.html",
        "colours.npz",
        "colours.png",
    ]

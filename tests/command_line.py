"""Commands run in this process, and the models they are given."""

from typer.testing import CliRunner

from driftbridge.cli import errors
from driftbridge.cli.app import app

MODELS = """
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import driftbridge as db
from driftbridge.targets import DiagonalGaussian

gauss = DiagonalGaussian(jnp.array([1.0, 2.0]))
number = 3


def made(scale):
    return DiagonalGaussian(scale)


def model(y, n, width=1.0):
    mu = numpyro.sample("mu", dist.Normal(0, width).expand([n]))
    numpyro.sample("obs", dist.Normal(mu.sum(), 1.0), obs=y)


def wrapped(y, n):
    return db.from_numpyro(model, y, n)


def discrete(y):
    k = numpyro.sample("k", dist.Poisson(3.0))
    numpyro.sample("obs", dist.Normal(k, 1.0), obs=y)


def broken(y):
    numpyro.sample("obs", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1.0), obs=y[9, 9])


def neither(y):
    return y
"""


def run(*arguments):
    """The command's exit code, output and errors."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*arguments):
    """The one line that a command refuses with."""
    result = run(*arguments)
    assert result.exit_code == errors.ERROR
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]

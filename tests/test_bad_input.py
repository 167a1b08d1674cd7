"""Every wrong input gets an error that names the value and the cure."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.samplers import (
    HMC,
    LMC,
    MALA,
    OBABO,
    Approach,
    DualAveraging,
    EnergyRule,
    Grouped,
    LocalScaleHMC,
    UniformStart,
    Warmup,
)
from driftbridge.targets import DiagonalGaussian, constraints

# Tests check types at every call; users do not, and meet the driver's own checks.
SAMPLE = db.sample.__wrapped__
TARGET = DiagonalGaussian(np.zeros(2), np.ones(2))


class Vector(db.Target):
    dim: int = 2

    def log_density(self, x):
        return -(x**2) / 2


class Nowhere(db.Target):
    dim: int = 2

    def log_density(self, x):
        return jnp.sum(x) * jnp.nan


class HalfPlane(db.Target):
    dim: int = 1

    def log_density(self, x):
        return jnp.where(x[0] > 0, -x[0], -jnp.inf)


class Wide(db.Target):
    dim: int = 2

    def log_density(self, x):
        return jnp.sum(x * jnp.zeros(2, jnp.float64))


def normal(p):
    return -jnp.sum(p["a"] ** 2) / 2


class NamedAsAxes(db.Target):
    name: str = eqx.field(static=True)
    axis: str = eqx.field(static=True)
    dim: int = 2

    def log_density(self, x):
        return -jnp.sum(x**2) / 2

    def constrain(self, x):
        return {self.name: x}

    @property
    def dims(self):
        return {self.name: (self.axis,)}


class NeedsTruth(MALA):
    facts = db.samplers.Facts(
        summary="", gradients="1", bias="none", source="", adjusted=True, needs=("truth",)
    )


class Bare(db.Target):
    dim: int = 1

    def log_density(self, x):
        return -jnp.sum(x**2) / 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SAMPLE(lambda x: -x @ x), TypeError, r"must be a driftbridge Target.*from_den"),
        (lambda: db.sample(Vector()), ValueError, r"shape \(2,\)\. Sum over observations"),
        (lambda: db.sample(Nowhere()), ValueError, r"no start with a finite.*chain 0.*init="),
        (lambda: db.sample(TARGET, num_chains=0), ValueError, r"num_chains.*at least 1; got 0"),
        (lambda: db.sample(TARGET, num_samples=0), ValueError, r"num_samples.*got 0"),
        (lambda: SAMPLE(TARGET, num_samples=1.5), ValueError, r"num_samples.*got 1\.5"),
        (lambda: db.sample(TARGET, num_warmup=-1), ValueError, r"num_warmup.*got -1"),
        (lambda: db.sample(TARGET, thin=0), ValueError, r"thin.*got 0"),
        (lambda: db.sample(TARGET, keep="nothing"), ValueError, r"keep must be.*'nothing'"),
        (lambda: SAMPLE(TARGET, key="a"), TypeError, r"key must be an int"),
        (lambda: SAMPLE(TARGET, key=jax.random.PRNGKey(0)), TypeError, r"wrap_key_data"),
        (lambda: MALA(0.0), ValueError, r"step_size must be positive and finite; got 0\.0"),
        (lambda: MALA(-0.1), ValueError, r"step_size.*got -0\.1"),
        (lambda: HMC(float("nan")), ValueError, r"step_size.*got nan"),
        (lambda: HMC(0.1, -1.0), ValueError, r"trajectory_length.*got -1\.0"),
        (lambda: LocalScaleHMC(spread=-1.0), ValueError, r"spread must be finite.*got -1\.0"),
        (lambda: LocalScaleHMC(jitter=1.5), ValueError, r"jitter must be at most 1; got 1\.5"),
        (lambda: OBABO(0.1, friction=-1.0), ValueError, r"friction.*got -1\.0"),
        (lambda: DualAveraging(1.5), ValueError, r"target.*between 0 and 1; got 1\.5"),
        (lambda: EnergyRule(0.0), ValueError, r"bias.*got 0\.0"),
        (
            lambda: Approach(Grouped(UniformStart(), 2)),
            ValueError,
            r"write Grouped\(Approach\(\.\.\.\), group_size\)",
        ),
        (lambda: UniformStart(-2.0), ValueError, r"radius.*got -2\.0"),
        (lambda: db.Until(ess=-1), ValueError, r"ess must be positive; got -1"),
        (lambda: SAMPLE(TARGET, MALA), TypeError, r"got the class MALA\. Write MALA\("),
        (lambda: SAMPLE(TARGET, "hmc"), TypeError, r"sampler must be an instance.*got 'hmc'"),
        (lambda: SAMPLE(TARGET, adapt=False), TypeError, r"adapt must be.*or None.*got False"),
        (lambda: SAMPLE(TARGET, mesh=4), TypeError, r"jax\.make_mesh\(\(4,\).*got 4"),
        (
            lambda: db.from_density(
                normal, {"a": 0.0}, constraints={"a": constraints.greater_than(np.zeros(3))}
            ),
            ValueError,
            r"constraint of 'a'.*shape \(\).*of the shape of the parameter",
        ),
        (
            lambda: db.from_density(
                normal,
                {"a": np.zeros(2)},
                constraints={"a": constraints.interval(np.zeros(3), np.ones(3))},
            ),
            ValueError,
            r"constraint of 'a'.*shape \(2,\).*an error",
        ),
        (
            lambda: db.sample(NamedAsAxes("draw", "site")),
            ValueError,
            r"a parameter of NamedAsAxes is named 'draw'.*another name",
        ),
        (
            lambda: db.sample(NamedAsAxes("x", "chain")),
            ValueError,
            r"an axis of NamedAsAxes is named 'chain'",
        ),
        (
            lambda: db.sample(TARGET, num_samples=db.Until(), num_chains=1),
            ValueError,
            r"never holds for num_chains=1.*Until\(ess=800\)",
        ),
        (lambda: db.Until(converged=False), ValueError, r"needs a condition"),
        (
            lambda: db.sample(TARGET, init=np.zeros(3)),
            ValueError,
            r"init must have shape \(2,\) or \(64, 2\).*got \(3,\)",
        ),
        (
            lambda: db.sample(TARGET, init=np.array([0.0, np.nan])),
            ValueError,
            r"init has the value nan at coordinate 1 of chain 0",
        ),
        (
            lambda: db.sample(HalfPlane(), init=np.array([[1.0], [-1.0], [1.0], [1.0]])),
            ValueError,
            r"start of chain 1.*-inf.*support",
        ),
        (lambda: db.sample(Bare(), NeedsTruth(0.1)), TypeError, r"NeedsTruth needs.*'truth'"),
        (
            lambda: db.sample(TARGET, HMC(), adapt=Warmup(EnergyRule())),
            TypeError,
            r"EnergyRule reads energy errors of an unadjusted",
        ),
        (
            lambda: db.samplers.WithEnergyError(MALA()),
            ValueError,
            r"MALA reports its energy error itself",
        ),
        (lambda: db.samplers.Splitting("OXO"), ValueError, r"X"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_density_of_another_precision_is_named(x64):
    with pytest.raises(TypeError, match=r"returns float64 for positions of float32.*arguments"):
        db.sample(Wide(), init=np.zeros(2, np.float32))


def test_a_mesh_that_does_not_divide_the_chains():
    mesh = jax.sharding.Mesh(np.array(jax.devices() * 1), ("chains",))
    assert db.sample(TARGET, MALA(0.5), num_samples=128, num_warmup=0, mesh=mesh).num_chains == 4

    class Two:
        shape = {"chains": 3}  # noqa: RUF012
        axis_names = ("chains",)

    with pytest.raises(ValueError, match="multiple of the 3 devices"):
        db.samplers.door.check_mesh(Two(), 4)


def test_a_start_as_parameters():
    draws = db.sample(
        TARGET, MALA(0.5), num_samples=128, num_warmup=0, init={"x": np.array([30.0, 30.0])}
    )
    assert (draws.positions[:, 0] > 10).all()


def test_draws_outside_the_support_are_found():
    # Langevin steps cross the boundary of the half line, whose density they never ask for: with
    # x ~ Exp(1) and h = 0.2 a few per cent of all draws lie beyond it.
    draws = db.sample(
        HalfPlane(), LMC(0.2), num_warmup=0, num_samples=500, num_chains=4, key=0, init=np.ones(1)
    )
    found = {finding.name: finding for finding in draws.warnings}["outside"]
    share = float(np.mean(np.asarray(draws.positions) <= 0))
    # 64 draws of each chain and chunk are looked at, evenly spaced.
    assert found.value == pytest.approx(share, abs=0.1)
    assert share > 0.01


def test_thinned_runs_with_refused_steps_go_on():
    # Every second step or so leaves the numbers; each kept draw has seen one of ten accepted.
    class Cliff(db.Target):
        dim: int = 1

        def log_density(self, x):
            return -jnp.abs(x[0]) / 10

        def score(self, x):
            return jnp.where(jnp.abs(x) < 0.5, -jnp.sign(x) / 10, jnp.nan)

    draws = db.sample(
        Cliff(), LMC(0.1), num_warmup=0, num_samples=200, num_chains=2, thin=10, init=np.zeros(1)
    )
    rate = np.asarray(draws.stats["acceptance_rate"])
    assert np.asarray(draws.stats["is_divergent"]).mean() > 0.9
    assert 0 < rate.mean() < 1


def test_a_seed_may_be_of_numpy():
    def first(key):
        draws = SAMPLE(TARGET, MALA(0.5), num_samples=128, num_warmup=0, key=key)
        return draws.positions, draws.metadata["seed"]

    of_numpy, seed = first(np.int64(3))
    assert np.array_equal(of_numpy, first(3)[0]) and type(seed) is int


@pytest.mark.slow
def test_the_mesh_that_the_message_advises_works():
    mesh = jax.make_mesh((1,), ("chains",))
    whole = db.sample(TARGET, HMC(), num_chains=2, num_warmup=4, num_samples=4)
    laid = db.sample(TARGET, HMC(), num_chains=2, num_warmup=4, num_samples=4, mesh=mesh)
    # One device does the same operations in the same order.
    np.testing.assert_array_equal(laid.positions, whole.positions)


@pytest.mark.slow
def test_a_script_that_ends_while_a_program_is_compiled_is_not_aborted():
    script = (
        "import jax.numpy as jnp, driftbridge as db\n"
        "db.sample(db.from_density(lambda x: jnp.nan * jnp.sum(x), jnp.zeros(2)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: no start")

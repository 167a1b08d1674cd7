"""Break the source in one place at a time, and see a named test fail each time.

`python -m tests.laws.mutations [WORD ...]` copies the package and its tests into a temporary
folder, applies one textual change, runs the quick test named for it, and prints who was killed;
the exit status is 1 if one survives. With words, only mutants whose line contains one are run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VARIANCE = "test_stationary_variance.py::test_stationary_variance"
ENGINEERING = "test_engineering.py"
BALANCE = "test_reversibility.py"
MOVE = f"{BALANCE}::test_a_move_is_an_involution_of_unit_volume_whose_energy_is_accepted"


class Mutant(NamedTuple):
    """A change of one text, found once in a file of the samplers, and the test that must fail."""

    what: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(
        "sign of the force",
        "samplers/langevin.py",
        "state.position + h * state.score",
        "state.position - h * state.score",
        f"{VARIANCE}[LMC-setting0]",
    ),
    Mutant(
        "sqrt(2) dropped",
        "samplers/langevin.py",
        "jnp.sqrt(2 * h) * noise",
        "jnp.sqrt(h) * noise",
        f"{VARIANCE}[LMC-setting0]",
    ),
    Mutant(
        "midpoint on another path",
        "samplers/langevin.py",
        "path = path + jnp.sqrt(2 * (h - time)) * noise.after",
        "path = jnp.sqrt(2 * h) * noise.after",
        f"{VARIANCE}[RandomizedMidpoint-setting0]",
    ),
    Mutant(
        "one normal used twice",
        "samplers/langevin.py",
        "return MidpointNoise(uniform, *normals)",
        "return MidpointNoise(uniform, normals[0], normals[0])",
        f"{ENGINEERING}::test_no_part_of_the_noise_occurs_twice[RandomizedMidpoint]",
    ),
    Mutant(
        "event's path one substep long",
        "samplers/poisson_midpoint.py",
        "jnp.tri(k + 1, k, -1",
        "jnp.tri(k + 1, k, 0",
        f"{VARIANCE}[PoissonMidpoint-setting0]",
    ),
    Mutant(
        "events not divided by k",
        "samplers/poisson_midpoint.py",
        "position = x + h * (score + correction)",
        "position = x + h * (score + correction / k)",
        f"{VARIANCE}[PoissonMidpoint-setting0]",
    ),
    Mutant(
        "gradients undercounted",
        "samplers/poisson_midpoint.py",
        "unadjusted_info(position, 1 + rounds)",
        "unadjusted_info(position, 2)",
        f"{ENGINEERING}::test_gradients_are_counted_as_executed[PoissonMidpoint]",
    ),
    Mutant(
        "force of KLMC held in E1",
        "samplers/kinetic.py",
        "(self.u * flight.e2) * state.score",
        "(self.u * flight.e1) * state.score",
        f"{VARIANCE}[KLMC-setting0]",
    ),
    Mutant(
        "u dropped from the kick",
        "samplers/kinetic.py",
        "(self.u * flight.e1) * state.score",
        "flight.e1 * state.score",
        f"{VARIANCE}[KLMC-setting1]",
    ),
    Mutant(
        "decay of the force after the midpoint",
        "samplers/kinetic.py",
        "after.decay * force",
        "before.decay * force",
        f"{VARIANCE}[RandomizedMidpointKinetic-setting0]",
    ),
    Mutant(
        "velocity starts at rest",
        "samplers/kinetic.py",
        "jnp.where(is_unset(state.velocity), jnp.sqrt(self.u) * normal, state.velocity)",
        "state.velocity",
        "test_first_steps.py::test_first_velocity_is_a_full_draw_from_equilibrium[BAOAB]",
    ),
    Mutant(
        "first normal used twice",
        "samplers/kinetic.py",
        "        ballistic(time),\n",
        "        flight,\n",
        "test_first_steps.py::test_first_velocity_is_a_full_draw_from_equilibrium"
        " test_first_steps.py::test_variance_after_1_3_10_steps",
    ),
    Mutant(
        "refused velocity kept",
        "samplers/kinetic.py",
        "velocity=unset(state.velocity)",
        "velocity=state.velocity",
        "test_first_steps.py::test_a_refused_state_draws_its_velocity_again[UBU]",
    ),
    Mutant(
        "every letter acts for the whole step",
        "samplers/splitting.py",
        "fraction = 1 / word.count(letter)",
        "fraction = 1.0",
        f"{VARIANCE}[BAOAB-setting0]",
    ),
    Mutant(
        "outer O not merged in full",
        "samplers/splitting.py",
        'Stage("O", merged[0].fraction + merged.pop().fraction)',
        'Stage("O", merged.pop().fraction)',
        "test_words.py::test_every_flow_acts_for_the_whole_step[OBABO]",
    ),
    Mutant(
        "old score after a drift",
        "samplers/splitting.py",
        "score = None if part.moves else score",
        "pass",
        f"{VARIANCE}[BAOAB-setting0]",
    ),
    Mutant(
        "one normal for both halves of a flight",
        "samplers/splitting.py",
        "position, velocity, flight, next(normals), next(normals)",
        "position, velocity, flight, noise[0], next(normals)",
        f"{VARIANCE}[UBU-setting0]",
    ),
    Mutant(
        "2 dropped from the noise of a flight",
        "samplers/ornstein_uhlenbeck.py",
        "jnp.sqrt(2 * u * eta * residual)",
        "jnp.sqrt(u * eta * residual)",
        "test_ornstein_uhlenbeck.py::test_covariance_is_the_integral_of_the_response",
    ),
    Mutant(
        "sign in the series",
        "samplers/ornstein_uhlenbeck.py",
        "-31 / 362880",
        "31 / 362880",
        "test_ornstein_uhlenbeck.py::test_covariance_is_the_integral_of_the_response",
    ),
    Mutant(
        "float64's switch in float32",
        "samplers/ornstein_uhlenbeck.py",
        "0.5 if jnp.finfo",
        "0.02 if jnp.finfo",
        "test_ornstein_uhlenbeck.py::test_float32_keeps_its_digits",
    ),
    Mutant(
        "composed flights forget to decay",
        "samplers/ornstein_uhlenbeck.py",
        "flight.decay * first[1] + second[1]",
        "first[1] + second[1]",
        "test_ornstein_uhlenbeck.py::test_flows_compose",
    ),
    Mutant(
        "space-time area of the wrong size",
        "samplers/high_order.py",
        "(1.0, 1 / 12, 1 / 720)",
        "(1.0, 1 / 3, 1 / 720)",
        "test_high_order.py::test_bias_on_a_gaussian[ALIGN-2-0.16666666666666666]",
    ),
    Mutant(
        "sqrt(2) dropped from the proposal",
        "samplers/mala.py",
        "jnp.sqrt(2 * h) * noise.normal",
        "jnp.sqrt(h) * noise.normal",
        f"{BALANCE}::test_detailed_balance_by_quadrature[MALA]",
    ),
    Mutant(
        "sign in the log Metropolis ratio",
        "samplers/base.py",
        "bent = move + self.diffusion_time",
        "bent = move - self.diffusion_time",
        f"{BALANCE}::test_detailed_balance_by_quadrature[MALA]",
    ),
    Mutant(
        "acceptance turned round",
        "samplers/metropolis.py",
        "jnp.exp(-jnp.maximum(error, 0))",
        "jnp.exp(jnp.minimum(error, 0))",
        f"{BALANCE}::test_detailed_balance_by_quadrature[HMC]",
    ),
    Mutant(
        "last half kick dropped",
        "samplers/hmc.py",
        "return end, velocity + step_size / 2 * end.score",
        "return end, velocity",
        MOVE,
    ),
    Mutant(
        "heat of the refreshments counted as work",
        "samplers/malt.py",
        "jnp.sum(kinetic_change(start, velocity) - heat)",
        "jnp.sum(kinetic_change(start, velocity))",
        MOVE,
    ),
    Mutant(
        "rejected velocity not reversed",
        "samplers/adjusted_kinetic.py",
        "state._replace(velocity=-velocity",
        "state._replace(velocity=velocity",
        f"{BALANCE}::test_adjusted_kinetic_keeps_the_law_of_position_and_velocity",
    ),
    Mutant(
        "a local step size that costs nothing",
        "samplers/local_scale.py",
        "jnp.where(is_local, cost, 0)",
        "jnp.where(is_local, 0, cost)",
        "test_local_scale.py::test_a_move_is_an_involution_of_unit_volume_accepted_by_its_energy",
    ),
    Mutant(
        "metric of the scores turned round",
        "samplers/fisher.py",
        "geometric_mean(spread, force)",
        "geometric_mean(force, spread)",
        "../test_ensemble.py::test_metric_of_a_gaussian_is_exact_from_few_draws",
    ),
    Mutant(
        "uniform taken from the normals",
        "samplers/noise.py",
        "numbers[size:].reshape(uniforms)",
        "numbers[:rest].reshape(uniforms)",
        "test_noise.py::test_normals_and_uniforms_are_independent",
    ),
    Mutant(
        "one stream for all purposes",
        "runtime/keys.py",
        "fold_in(key, i) for i in range(3)",
        "fold_in(key, 0) for i in range(3)",
        "test_noise.py::test_streams_differ",
    ),
    Mutant(
        "one key for all chains",
        "runtime/keys.py",
        "fold_in(key, chains)",
        "fold_in(key, 0 * chains)",
        "test_noise.py::test_chains_have_their_own_keys_whatever_others_there_are",
    ),
    Mutant(
        "one key for all steps",
        "samplers/loop.py",
        "sampler.noise(fold_in(key, step), like[0])",
        "sampler.noise(fold_in(key, 0 * step), like[0])",
        "test_driver.py::test_no_block_of_noise_occurs_twice",
    ),
]


def copy(folder: Path) -> None:
    """The package and its tests, as they are now."""
    ignore = shutil.ignore_patterns("__pycache__")
    for part in ("driftbridge", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)


def environment(folder: Path) -> dict[str, str]:
    """The copy comes before the installed package."""
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def require_the_copy(folder: Path) -> None:
    """Raise `CalledProcessError` where the installed package would be tested instead."""
    check = "import driftbridge, sys; sys.exit(not driftbridge.__file__.startswith(sys.argv[1]))"
    command = [sys.executable, "-c", check, folder]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True)


def run_tests(folder: Path, tests: str) -> int:
    """Exit status of pytest on the copy: 0 passed, 1 failed, else not run."""
    names = [f"tests/laws/{test}" for test in tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *names]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True
    ).returncode


def apply(folder: Path, mutant: Mutant) -> None:
    """Change the copy; raise where the text is not there exactly once."""
    path = folder / "driftbridge" / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.file} has {source.count(mutant.old)} times {mutant.old!r}, which the mutant "
            f"{mutant.what!r} wants once: give it the present text."
        )
    path.write_text(source.replace(mutant.old, mutant.new))


def main(words: list[str]) -> int:
    mutants = [m for m in MUTANTS if not words or any(w in " ".join(m) for w in words)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "sound"
        folder.mkdir()
        copy(folder)
        require_the_copy(folder)
        for mutant in mutants:
            apply(shutil.copytree(folder, folder.parent / "check"), mutant)
            shutil.rmtree(folder.parent / "check")
        tests = " ".join(dict.fromkeys(test for m in mutants for test in m.test.split()))
        if run_tests(folder, tests) != 0:
            raise SystemExit("The named tests do not pass on the sound source; nothing is shown.")
        survivors = 0
        print(f"{'file':34} {'mutant':42} {'':9} seconds")
        for mutant in mutants:
            broken = shutil.copytree(folder, folder.parent / "broken")
            apply(broken, mutant)
            start = time.perf_counter()
            status = run_tests(broken, mutant.test)
            shutil.rmtree(broken)
            killed = status == 1
            survivors += not killed
            verdict = "killed" if killed else "SURVIVED" if status == 0 else f"STATUS {status}"
            seconds = time.perf_counter() - start
            print(f"{mutant.file:34} {mutant.what:42} {verdict:9} {seconds:6.1f}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

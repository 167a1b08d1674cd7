"""The comparison with reference posteriors, in its quick form and by its parts."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers import LMC, MALA
from driftbridge.targets.eight_schools import EightSchools
from driftbridge.targets.state_space import BrownianMotion
from examples.posteriors.__main__ import main
from examples.posteriors.cases import CASES
from examples.posteriors.compare import compare
from examples.posteriors.reference import load
from examples.posteriors.table import closest, line, line_of_failure, table

BY_NAME = {case.name.partition("-")[0].partition("_motion")[0]: case for case in CASES}
KEPT = [name for name in BY_NAME if name != "kidiq"]


def posterior(name):
    return load(BY_NAME[name].name, None)


class Given:
    """Draws that are given, in place of sampled ones."""

    def __init__(self, parameters):
        self.parameters = parameters


def normal_draws(reference, shift=0.0, scale=1.0):
    """Independent normal draws with the reference's moments, as sites, moved by `shift` sds."""
    shape = (4, 2000, len(reference.parameters))
    noise = scale * np.random.default_rng(0).standard_normal(shape) + shift
    values = np.array(reference.mean) + np.array(reference.standard_deviation) * noise
    sites = {}
    for i, name in enumerate(reference.parameters):
        sites.setdefault(name.partition("[")[0], []).append(values[..., i])
    return Given(
        {
            site: np.stack(columns, -1) if f"{site}[1]" in reference.parameters else columns[0]
            for site, columns in sites.items()
        }
    )


@pytest.mark.parametrize("name", KEPT)
def test_targets_report_what_the_reference_names(name):
    case, kept = BY_NAME[name], posterior(name)
    with jax.enable_x64(case.float64):
        target = case.target(kept.data)
        position = jnp.full(target.dim, 0.1)
        draws = Given({k: np.asarray(v)[None, None] for k, v in target.constrain(position).items()})
        value, score = jax.jit(lambda x: target.value_and_score(x))(position)
    assert np.isfinite(value) and np.all(np.isfinite(score))
    for parameter in kept.reference.parameters:
        site, _, entry = parameter.partition("[")
        values = draws.parameters[site]
        assert values.ndim == 2 + bool(entry)
        assert not entry or int(entry[:-1]) <= values.shape[-1]


def test_brownian_moments_agree_with_an_independent_quadrature():
    kept = posterior("brownian")
    exact = BrownianMotion(np.array(kept.data["observed_locs"])).moments
    mean, sd = (np.concatenate([np.ravel(m[i]) for m in exact.values()]) for i in (0, 1))
    assert [name.partition("[")[0] for name in kept.reference.parameters[:3]] == list(exact)
    # Both rules err by less; the data are float32 numbers in either.
    np.testing.assert_allclose(kept.reference.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept.reference.standard_deviation, sd, rtol=1e-4)


def test_eight_schools_draws_agree_with_quadrature():
    reference = posterior("eight_schools").reference
    parts = [EightSchools().moments[name] for name in ("theta", "mu", "tau")]
    mean, sd = (np.concatenate([np.ravel(part[i]) for part in parts]) for i in (0, 1))
    # Twenty comparisons at five standard errors: a false alarm has probability 1e-5.
    assert np.all(np.abs(mean - reference.mean) < 5 * np.array(reference.mean_error))
    error = np.array(reference.standard_deviation_error)
    assert np.all(np.abs(sd - reference.standard_deviation) < 5 * error)


def test_comparison_passes_what_is_right_and_names_what_is_not():
    reference = posterior("eight_schools").reference
    # 8000 independent draws: gaps of a mean are 0.01 sd, of an sd 0.8 %, far within the bar.
    assert not [g for g in compare(normal_draws(reference), reference, ()).means if not g.passes]
    moved = compare(normal_draws(reference, shift=0.2), reference, ())
    assert not moved.passes
    assert not any(gap.passes for gap in moved.means)
    assert all(gap.is_seen for gap in moved.means)
    wide = compare(normal_draws(reference, scale=1.25), reference, ())
    assert not any(gap.passes for gap in wide.deviations)
    assert abs(closest(wide.deviations).value - 0.25) < 0.05


def test_quantiles_of_the_scales_are_compared():
    reference = posterior("eight_schools").reference
    found = compare(normal_draws(reference), reference, ("tau",))
    # tau is far from normal: of a normal with its moments the lower quantile is off by .5 sd.
    assert [gap.what for gap in found.quantiles] == ["tau at 5 %", "tau at 50 %", "tau at 95 %"]
    assert not found.quantiles[0].passes and not found.passes
    brownian = posterior("brownian").reference
    assert compare(normal_draws(brownian), brownian, ("innovation_noise_scale",)).quantiles == []


def test_a_folder_without_data_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"has no posteriordb/index\.json"):
        main(["--data", str(tmp_path), "--only", "arK"])
    for source in ("posteriordb", "inference_gym"):
        (tmp_path / source).mkdir()
        (tmp_path / source / "index.json").write_text(json.dumps([]))
    with pytest.raises(SystemExit, match="has the posterior arK-arK"):
        main(["--data", str(tmp_path), "--only", "arK"])


def test_an_unknown_posterior_is_named():
    with pytest.raises(SystemExit, match="no posterior has 'nine' in its name; there are eight_"):
        main(["--only", "nine"])


def test_without_the_folder_kidiq_is_skipped(capsys):
    assert main(["--only", "kidiq"]) == 0
    assert "skipped: kidiq-kidscore_interaction" in capsys.readouterr().out


def run(sampler, refused):
    """A run of 4 chains by a kernel, the first of which refused this share of its steps."""
    is_divergent = np.zeros((4, 2000))
    is_divergent[0] = refused
    stats = {"is_divergent": is_divergent, "acceptance_rate": np.ones((4, 2000))}
    numbers = {"step_size": np.array(0.1)}
    return SimpleNamespace(tuned=sampler, tuned_numbers=numbers, stats=stats, num_chains=4)


def test_verdicts():
    reference = posterior("eight_schools").reference
    right = compare(normal_draws(reference), reference, ())
    moved = compare(normal_draws(reference, shift=0.2), reference, ())
    # 8000 independent draws, so the effective size is above 4000.
    assert line("arK", "MALA", run(MALA(), 0.0), right).verdict == "pass"
    assert line("arK", "MALA", run(MALA(), 0.0), moved).verdict == "FAIL"
    assert line("arK", "LMC", run(LMC(), 0.0), right).verdict == "none seen"
    assert line("arK", "LMC", run(LMC(), 0.0), moved).verdict == "bias"
    lost = line("arK", "LMC", run(LMC(), 0.5), right)
    assert lost.verdict == "unstable" and "1 of 4 chains lost" in lost.cells
    failed = [line_of_failure("arK", "LMC", adjusted) for adjusted in (False, True)]
    assert [one.verdict for one in failed] == ["unstable", "FAIL"]
    rows = table([lost, *failed]).splitlines()
    assert len(rows) == 5 and all(row.startswith("arK") for row in rows[2:])


@pytest.mark.slow
def test_quick_form_on_the_eight_schools(capfd):
    assert main(["--only", "eight_schools", "--quick"]) == 0
    captured = capfd.readouterr()
    assert "1 of 1 adjusted runs pass" in captured.out
    kernels = [line.split()[1] for line in captured.out.splitlines() if line.startswith("eight_")]
    assert kernels == ["JitteredHMC", "OBABO"]
    assert "JitteredHMC: pass, " in captured.err

"""Stored runs: growth, exact resume, what survives, and what is refused."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray
from zarr.storage import LocalStore

import driftbridge as db
from driftbridge.runtime import store as store_module
from driftbridge.runtime.codec import NotStorable, decode, encode
from driftbridge.runtime.fingerprint import difference, fingerprint
from driftbridge.runtime.store import CHECKPOINT, DrawStore, Stored, StoredArrays, StoreError
from driftbridge.samplers import (
    MALA,
    OBABO,
    Covariance,
    Mean,
    Mixing,
    Quantiles,
    Splitting,
    diagnostics,
)
from driftbridge.samplers import sample as verb
from driftbridge.samplers.keeping import OnDisk
from driftbridge.targets import GLM, DiagonalGaussian, constraints

NUM_WARMUP = 300
X, Y = np.arange(6.0).reshape(3, 2), np.array([0.0, 1.0, 1.0])


def gaussian():
    return DiagonalGaussian(np.zeros(2), np.array([1.0, 3.0]))


def draw(path, num_samples, sampler=None, **changes):
    settings = {"num_warmup": NUM_WARMUP, "num_chains": 2, "key": 5}
    sampler = MALA(0.3) if sampler is None else sampler
    return db.sample(
        gaussian(), sampler, num_samples=num_samples, store=path, **(settings | changes)
    )


def stop_at(phase, draws):
    """Interrupts a run after `draws` of a phase, before their checkpoint is written."""

    def stop(progress):
        if progress.phase == phase and progress.done >= draws:
            raise KeyboardInterrupt

    return stop


@pytest.fixture(scope="module")
def whole():
    return draw(None, 500)


@pytest.mark.slow
def test_a_stored_run_is_the_run_in_memory(whole, tmp_path):
    stored = draw(tmp_path / "run", 500)
    assert np.array_equal(stored.positions, whole.positions)
    assert stored.summary().equals(whole.summary())
    assert np.array_equal(stored.warmup.positions, whole.warmup.positions)
    for name, value in whole.stats.items():
        assert np.array_equal(stored.stats[name], value)


@pytest.mark.slow
def test_resume_goes_on_bit_for_bit(whole, tmp_path):
    draw(tmp_path / "run", 200)
    resumed = db.resume(tmp_path / "run", num_samples=500)
    assert np.array_equal(resumed.positions, whole.positions)


@pytest.mark.slow
def test_resume_without_a_number_goes_on_to_what_was_asked(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(verb.Run, "_chunk_draws", lambda self, buffer: 128)
    assert draw(tmp_path / "run", 300, progress=stop_at("sampling", 128)).num_draws == 128
    assert db.resume(tmp_path / "run").num_draws == 300
    stopped = db.resume(tmp_path / "run", num_samples=500, progress=stop_at("sampling", 400))
    assert stopped.num_draws == 428
    assert np.array_equal(db.resume(tmp_path / "run").positions, whole.positions)
    rule = db.Until(ess=1e6, max_draws=640)
    assert db.resume(tmp_path / "run", num_samples=rule).num_draws == 640
    assert db.resume(tmp_path / "run").metadata["unmet"] is not None


@pytest.mark.slow
def test_a_rule_ends_at_the_same_draw_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(verb.Run, "_chunk_draws", lambda self, buffer: 128)
    long = draw(None, 1024)
    # Met at 640 draws, which is no look: the looks are at 512 and 768.
    ess = [min(diagnostics.ess_bulk(long.positions[:, :n]).min(),
               diagnostics.ess_tail(long.positions[:, :n]).min()) for n in (512, 640)]  # fmt: skip
    rule = db.Until(ess=float(np.mean(ess)))
    whole = draw(None, rule)
    draw(tmp_path / "run", rule, progress=stop_at("sampling", 768))  # its checkpoint is at 640
    resumed = db.resume(tmp_path / "run", num_samples=rule)
    assert resumed.num_draws == whole.num_draws
    assert np.array_equal(resumed.positions, whole.positions)


class Stop(RuntimeError):
    pass


@pytest.mark.parametrize("sampler", [MALA(0.3), OBABO(0.3)], ids=["adjusted", "unadjusted"])
@pytest.mark.parametrize("moment", [1, 3, 4, 6])
def test_resume_after_a_death_at_any_chunk(tmp_path, monkeypatch, sampler, moment):
    # Chunks of 128 draws: three of warm-up, then sampling. The process dies when draws of chunk
    # `moment` are in the store and the checkpoint is not yet.
    monkeypatch.setattr(verb.Run, "_chunk_draws", lambda self, buffer: 128)
    whole = draw(tmp_path / "whole", 500, sampler)
    real, calls = verb.checkpoint, []

    def dying(store, run):
        calls.append(run.step)
        if len(calls) == moment:
            raise Stop
        real(store, run)

    monkeypatch.setattr(verb, "checkpoint", dying)
    with pytest.raises(Stop):
        draw(tmp_path / "run", 500, sampler)
    monkeypatch.setattr(verb, "checkpoint", real)
    if moment == 1:
        with pytest.raises(StoreError, match="no checkpoint"):
            db.resume(tmp_path / "run", num_samples=500)
        return
    resumed = db.resume(tmp_path / "run", num_samples=500)
    assert np.array_equal(resumed.positions, whole.positions)
    assert np.array_equal(resumed.warmup.positions, whole.warmup.positions)


def test_reducers_resume_to_the_same_numbers(tmp_path):
    keep = [Mean(), Covariance(), Quantiles(), Mixing()]
    whole = draw(None, 500, keep=keep)
    draw(tmp_path / "run", 200, keep=keep)
    resumed = db.resume(tmp_path / "run", num_samples=500)
    assert resumed.summary().equals(whole.summary())
    for name, result in whole.reductions.items():
        for key, value in result.items():
            assert np.array_equal(resumed.reductions[name][key], value, equal_nan=True)


def test_xarray_opens_the_store(whole, tmp_path):
    draw(tmp_path / "run", 300)
    tree = xarray.open_datatree(tmp_path / "run" / "draws.zarr", engine="zarr", consolidated=False)
    assert set(tree.children) == {
        "posterior", "sample_stats", "unconstrained_posterior",
        "warmup_posterior", "warmup_sample_stats", "warmup_unconstrained_posterior",
    }  # fmt: skip
    assert tree["posterior"]["x"].dims[:2] == ("chain", "draw")
    assert np.array_equal(tree["posterior"]["x"].values, whole.positions[:, :300])
    assert tree["warmup_posterior"].sizes["draw"] == NUM_WARMUP
    tree.close()


def test_save_and_load(whole, tmp_path):
    whole.save(tmp_path / "saved")
    loaded = db.load(tmp_path / "saved")
    assert np.array_equal(loaded.positions, whole.positions)
    assert loaded.summary().equals(whole.summary())
    assert loaded.tuned.sampler.step_size == whole.tuned.sampler.step_size
    assert loaded.metadata == json.loads(json.dumps(whole.metadata))
    with pytest.raises(StoreError, match="already exists"):
        whole.save(tmp_path / "saved")


@pytest.mark.slow
def test_loading_an_unfinished_run_gives_what_there_is(tmp_path, whole):
    draw(tmp_path / "run", 300)
    (tmp_path / "run" / "result.npz").unlink()
    loaded = db.load(tmp_path / "run")
    assert loaded.tuned is None
    assert np.array_equal(loaded.positions, whole.positions[:, :300])


def test_loading_a_run_stopped_in_its_warm_up_says_so(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(verb.Run, "_chunk_draws", lambda self, buffer: 128)

    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "run", 500, progress=stop_at("warm-up", 256))
    with pytest.raises(StoreError, match=r"not left its warm-up.*driftbridge\.resume"):
        db.load(tmp_path / "run")
    resumed = db.resume(tmp_path / "run", num_samples=500)
    assert np.array_equal(resumed.positions, whole.positions)


def log_normal(p, scales):
    return -jnp.sum((p["a"] / scales) ** 2) / 2 - p["b"]


def shift(location):
    numpyro.sample("a", numpyro.distributions.Normal(location, 1.0))


MADE_OF_FUNCTIONS = {
    "from_density": lambda: db.from_density(
        log_normal, {"a": np.zeros(2), "b": 0.0}, np.array([1.0, 3.0]),
        constraints={"b": constraints.positive},
    ),
    "from_numpyro": lambda: db.from_numpyro(shift, 2.0),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE_OF_FUNCTIONS)
def test_targets_of_functions_with_names_are_stored(tmp_path, name):
    target = MADE_OF_FUNCTIONS[name]()
    settings = {"num_warmup": 0, "num_chains": 2}
    db.sample(target, MALA(0.3), num_samples=130, store=tmp_path / "run", **settings)
    resumed = db.resume(tmp_path / "run", num_samples=260)
    whole = db.sample(target, MALA(0.3), num_samples=260, **settings)
    assert np.array_equal(resumed.positions, whole.positions)
    assert type(db.load(tmp_path / "run").target) is type(target)


def local_target():
    return db.from_density(lambda p: -(p["a"] ** 2) / 2, {"a": 0.0})


@pytest.mark.slow
def test_functions_without_a_name_are_asked_for(tmp_path):
    target = local_target()
    settings = {"num_warmup": 200, "num_chains": 2}
    db.sample(target, MALA(0.3), num_samples=130, store=tmp_path / "run", **settings)
    with pytest.raises(StoreError, match="no importable name"):
        db.resume(tmp_path / "run", num_samples=260)
    whole = db.sample(target, MALA(0.3), num_samples=260, **settings)
    resumed = db.resume(tmp_path / "run", num_samples=260, target=target)
    assert np.array_equal(resumed.positions, whole.positions)
    assert list(db.load(tmp_path / "run").parameters) == ["a"]


def test_another_target_is_refused(tmp_path):
    draw(tmp_path / "run", 130)
    other = DiagonalGaussian(np.zeros(2), np.array([1.0, 4.0]))
    with pytest.raises(StoreError, match="not the one of the run"):
        db.resume(tmp_path / "run", num_samples=260, target=other)


def test_another_function_is_refused_by_name(tmp_path):
    target = local_target()
    db.sample(target, MALA(0.3), num_samples=130, num_warmup=0, store=tmp_path / "run")

    def steeper(p):
        return -(p["a"] ** 2)

    for fn, words in [
        (steeper, r"static\.0 is tests.test_store:.*steeper, stored .*lambda"),
        (lambda p: -(p["a"] ** 2), "stored .*local_target"),
    ]:
        with pytest.raises(StoreError, match=words):
            db.resume(tmp_path / "run", target=db.from_density(fn, {"a": 0.0}))


@pytest.mark.slow
def test_a_function_with_other_code_under_its_name_is_refused(tmp_path, monkeypatch):
    target = MADE_OF_FUNCTIONS["from_density"]()
    db.sample(target, MALA(0.3), num_samples=130, num_warmup=0, store=tmp_path / "run")

    def other(p, scales):
        return -jnp.sum((p["a"] / scales) ** 2) / 3 - p["b"]

    other.__qualname__ = "log_normal"
    monkeypatch.setitem(globals(), "log_normal", other)
    with pytest.raises(StoreError, match=r"log_normal of digest .* stored log_normal of digest"):
        db.resume(tmp_path / "run")


def power(exponent, scale):
    return lambda x: x**exponent * scale


class Power:
    def __init__(self, exponent):
        self.exponent = exponent

    def __call__(self, x):
        return x**self.exponent


def again(x):
    return again(x - 1) if x else jnp.sum


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (GLM(X, Y, "logistic", "gaussian"), GLM(X, Y, "logistic", "gaussian"),
         GLM(X, Y, "poisson", "gaussian")),
        (Splitting("OBABO"), Splitting("OBABO"), Splitting("BAOAB")),
        (power(2, 0.5), power(2, 0.5), power(3, 0.5)),
        (power(2, X), power(2, X.copy()), power(2, X + 1)),
        (Power(2), Power(2), Power(3)),
        (jax.jit(power(2, 0.5)), jax.jit(power(2, 0.5)), jax.jit(power(3, 0.5))),
        (np.sin, np.sin, np.cos),
        (partial(power, 2), partial(power, 2), partial(power, 3)),
        (Quantiles((0.5,)), Quantiles((0.5,)), Quantiles((0.4,))),
        (again, again, power),
    ],
)  # fmt: skip
def test_fingerprints_tell_static_fields_and_functions_apart(one, same, other):
    mark = json.loads(json.dumps(fingerprint(one)))
    assert difference(fingerprint(same), mark) is None
    assert difference(fingerprint(other), mark) is not None


def test_a_store_is_not_overwritten(tmp_path):
    first = draw(tmp_path / "run", 130)
    with pytest.raises(StoreError, match="resume"):
        draw(tmp_path / "run", 130)
    assert np.array_equal(db.load(tmp_path / "run").positions, first.positions)


def test_no_run_is_said(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        db.resume(tmp_path)
    with pytest.raises(StoreError, match="holds no run"):
        db.load(tmp_path / "nowhere")


def test_another_format_is_said(tmp_path):
    draw(tmp_path / "run", 130)
    DrawStore.open(tmp_path / "run").root.attrs.update({"version": 99})
    with pytest.raises(StoreError, match="version 99"):
        db.load(tmp_path / "run")


def test_a_store_changed_by_hand_is_said(tmp_path):
    draw(tmp_path / "run", 130)
    DrawStore.open(tmp_path / "run").truncate("sample_stats", 10)
    with pytest.raises(StoreError, match="changed by hand"):
        db.resume(tmp_path / "run", num_samples=260)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(verb.Run, "_chunk_draws", lambda self, buffer: 128)
    real, calls = store_module.DrawStore._write, []

    def full(self, *arguments):
        calls.append(arguments)
        if len(calls) == 14:
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(store_module.DrawStore, "_write", full)
    with pytest.raises(StoreError, match=r"No space left.*resume"):
        draw(tmp_path / "run", 500)
    monkeypatch.setattr(store_module.DrawStore, "_write", real)
    resumed = db.resume(tmp_path / "run", num_samples=500)
    assert np.array_equal(resumed.positions, whole.positions)


def test_a_copy_of_a_run_goes_on_elsewhere(tmp_path, whole):
    draw(tmp_path / "run", 200)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert (tmp_path / "copy" / CHECKPOINT).exists()
    resumed = db.resume(tmp_path / "copy", num_samples=500)
    assert np.array_equal(resumed.positions, whole.positions)


def test_codec_round_trip():
    tree = {"a": (1, 0.1, None), "s": OBABO(0.3), "f": np.linalg.norm, "d": np.dtype("float32")}
    description, arrays = encode(tree)
    back = decode(json.loads(json.dumps(description)), arrays)
    assert back["a"] == (1, 0.1, None)
    assert back["f"] is np.linalg.norm
    assert type(back["s"]) is OBABO and back["s"].step_size == 0.3
    with pytest.raises(NotStorable, match="importable"):
        encode(lambda x: x)


@pytest.mark.slow
def test_interruption_in_the_middle_of_a_write(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(verb.Run, "_chunk_draws", lambda self, buffer: 128)
    real, calls = store_module.DrawStore._write, []

    def interrupted(self, array, values, at):
        # The second chunk after warm-up (its draws begin at 128) is half written.
        calls.append(array.path.startswith("sample_stats") and at == 128)
        if sum(calls) == 3:
            raise KeyboardInterrupt
        return real(self, array, values, at)

    monkeypatch.setattr(store_module.DrawStore, "_write", interrupted)
    draws = draw(tmp_path / "run", 500)
    assert draws.num_draws == 128 and "interrupted" in [f.name for f in draws.warnings]
    assert np.array_equal(db.load(tmp_path / "run").positions, whole.positions[:, :128])
    monkeypatch.setattr(store_module.DrawStore, "_write", real)
    resumed = db.resume(tmp_path / "run", num_samples=500)
    assert np.array_equal(resumed.positions, whole.positions)
    assert resumed.stats["acceptance_rate"].shape == (2, 500)


@pytest.mark.slow
def test_parameters_keep_their_order(tmp_path):
    target = db.from_density(lambda p: -(p["z"] ** 2 + p["a"] ** 2) / 2, {"z": 0.0, "a": 0.0})
    names = list(target.constrain(jnp.zeros(2)))
    draws = db.sample(target, MALA(0.5), num_samples=130, num_warmup=0, store=tmp_path / "run")
    assert list(draws.parameters) == names
    assert list(db.load(tmp_path / "run").parameters) == names


class FailingWrites:
    """Lets writes of Zarr pass up to number `last`, and raises at that one; counts them."""

    def __init__(self, monkeypatch):
        self.real, self.count, self.last = LocalStore.set, 0, -1
        monkeypatch.setattr(LocalStore, "set", lambda *a, **k: self.write(*a, **k))

    async def write(self, *arguments, **options):
        self.count += 1
        if self.count - 1 == self.last:
            raise Stop
        await self.real(*arguments, **options)


@pytest.mark.slow
@pytest.mark.parametrize("step", [23, 1])
def test_a_death_at_any_write_of_zarr_loses_nothing(tmp_path, monkeypatch, step):
    monkeypatch.setattr(verb.Run, "_chunk_draws", lambda self, buffer: 128)
    writes = FailingWrites(monkeypatch)
    whole = draw(tmp_path / "whole", 256, num_warmup=128)
    total = writes.count
    assert total > 100
    for last in range(step // 2, total, step):
        path = tmp_path / str(last)
        writes.count, writes.last = 0, last
        with pytest.raises(Stop):
            draw(path, 256, num_warmup=128)
        writes.last = -1
        if not (path / CHECKPOINT).exists():
            with pytest.raises(StoreError, match=r"no checkpoint|holds no run"):
                db.resume(path)
            continue
        resumed = db.resume(path)
        assert np.array_equal(resumed.positions, whole.positions)
        assert np.array_equal(resumed.warmup.positions, whole.warmup.positions)
        assert resumed.stats["acceptance_rate"].shape == (2, 256)
        shutil.rmtree(path)


def wide():
    return DiagonalGaussian(np.zeros(6), np.arange(1.0, 7.0))


@pytest.mark.slow
def test_a_stored_run_is_read_by_blocks_and_each_once(tmp_path, monkeypatch):
    settings = {"num_samples": db.Until(ess=1e6, max_draws=128), "num_warmup": 0, "num_chains": 2}
    memory = db.sample(wide(), MALA(0.3), **settings)
    # Two columns of 2 x 128 numbers a block.
    monkeypatch.setattr(StoredArrays, "BLOCK", 512)
    reads, real = [], Stored.__getitem__

    def read(self, index):
        values = real(self, index)
        reads.append(values.size)
        return values

    monkeypatch.setattr(Stored, "__getitem__", read)
    stored = db.sample(wide(), MALA(0.3), store=tmp_path / "run", **settings)
    assert stored.metadata["unmet"] == memory.metadata["unmet"]
    reads.clear()
    found = OnDisk(wide(), DrawStore.open(tmp_path / "run")).diagnose()
    # The tests' own checks of types look at whole arrays besides.
    assert reads.count(512) == 3
    assert np.array_equal(found.ess_bulk, memory.convergence.ess_bulk)
    reads.clear()
    frame = stored.to_dataframe()
    assert reads.count(512) == 3
    assert frame.equals(memory.to_dataframe())
    assert np.array_equal(frame["x[4]"], memory.column("x[4]").ravel())

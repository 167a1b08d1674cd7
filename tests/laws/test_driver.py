"""Laws of the driver: what a run may depend on, and what it may not."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import as_key, chain_keys, streams
from driftbridge.samplers import HMC, MALA, OBABO, DualAveraging, Warmup, driver, loop, opening
from driftbridge.targets import GLM, DiagonalGaussian

SCALES = np.array([1.0, 2.0, 0.5])


def gaussian():
    return DiagonalGaussian(np.zeros(3), SCALES)


def draw(**changes):
    settings = {"num_samples": 300, "num_warmup": 150, "num_chains": 4, "key": 3}
    return db.sample(gaussian(), MALA(0.3), **(settings | changes))


@pytest.fixture(scope="module")
def reference():
    return draw()


@pytest.mark.slow
def test_draws_do_not_depend_on_chunks(reference, monkeypatch):
    # Chunks of one grid block each, where the reference had its buffer's length.
    monkeypatch.setattr(driver, "CHUNK_SECONDS", 0.0)
    assert np.array_equal(draw().positions, reference.positions)


def test_a_longer_run_begins_with_the_shorter_one(reference):
    assert np.array_equal(draw(num_samples=500).positions[:, :300], reference.positions)


@pytest.mark.slow
def test_thinning_keeps_every_kth_state(reference):
    thinned = draw(num_samples=100, thin=3)
    assert np.array_equal(thinned.positions, reference.positions[:, 2::3])
    gradients = reference.stats["num_gradients"].reshape(4, 100, 3).sum(2)
    assert np.array_equal(thinned.stats["num_gradients"], gradients)
    rates = reference.stats["acceptance_rate"].reshape(4, 100, 3).mean(2)
    # Three float32 terms, each at most one.
    np.testing.assert_allclose(thinned.stats["acceptance_rate"], rates, atol=3e-7)


@pytest.mark.slow
def test_chains_do_not_depend_on_how_many_there_are():
    # Without warm-up nothing is shared; layouts differ in the last bits, which a contracting chain
    # forgets: 1e-5 is the design's bound on a strongly log-concave target.
    alone = draw(num_warmup=0, num_chains=1)
    few = draw(num_warmup=0, num_chains=4)
    many = draw(num_warmup=0, num_chains=12)
    np.testing.assert_allclose(few.positions[:1], alone.positions, atol=1e-5)
    np.testing.assert_allclose(many.positions[:4], few.positions, atol=1e-5)


@pytest.mark.slow
def test_second_run_compiles_nothing():
    rng = np.random.default_rng(0)

    def regression(seed):
        x = np.random.default_rng(seed).normal(size=(20, 2))
        return GLM(x, (rng.uniform(size=20) < 0.5).astype(float), "logistic", "gaussian")

    def once(seed, step_size, num_samples):
        return db.sample(
            regression(seed), HMC(step_size, 1.0), num_samples=num_samples, num_warmup=60, key=seed
        ).parameters

    once(0, 0.1, 130)
    watch = Compilations()
    once(1, 0.2, 300)
    assert watch.programs == 0


@pytest.mark.slow
def test_no_block_of_noise_occurs_twice():
    sampler = MALA(0.1)
    like = jnp.zeros((5, 3), jnp.float32)
    keys = chain_keys(streams(as_key(0)).steps, jnp.arange(5))
    noise = loop.block_noise(sampler, keys, jnp.arange(400), like)
    numbers = np.asarray(noise.normal).reshape(-1)
    # 6000 draws of 24 bits: 1.07 equal pairs are expected by chance, more than 9 have
    # probability below 1e-6; a block drawn twice gives at least 15.
    assert len(numbers) - len(np.unique(numbers)) <= 9


def test_streams_are_apart():
    keys = [jax.random.key_data(k).tolist() for k in streams(as_key(0))]
    steps = jax.random.key_data(chain_keys(streams(as_key(0)).steps, jnp.arange(100)))
    everything = keys + np.asarray(steps).tolist()
    assert len({tuple(k) for k in everything}) == 103


def test_one_chain_is_not_vmapped():
    matrix = jnp.ones((2, 3), jnp.float32)

    def shapes_of_products(chains):
        function = loop.over_chains(lambda x: matrix @ x, chains)
        jaxpr = jax.make_jaxpr(function)(jnp.ones((chains, 3), jnp.float32))
        return [e.outvars[0].aval.shape for e in jaxpr.eqns if "dot" in str(e.primitive)]

    assert shapes_of_products(1) == [(2,)]
    (batched,) = shapes_of_products(4)
    assert sorted(batched) == [2, 4]


@pytest.mark.slow
def test_pure_run_is_the_driver(reference):
    target = cast_floating(gaussian(), np.float32)
    adapt = cast_floating(Warmup(), np.float32)
    start = opening.open_chains(
        target, MALA(0.3), None, None, streams(as_key(3)).start, 4, 0, np.dtype("float32")
    ).chains.states.position
    record, tuned = jax.jit(
        lambda positions: db.samplers.run(
            target, cast_floating(MALA(0.3), np.float32), positions, as_key(3),
            num_samples=300, num_warmup=150, adapt=adapt,
        )
    )(start)  # fmt: skip
    # Another program, hence other roundings: as between layouts.
    np.testing.assert_allclose(np.swapaxes(record.position, 0, 1), reference.positions, atol=2e-4)
    np.testing.assert_allclose(
        tuned.sampler.step_size, reference.tuned.sampler.step_size, rtol=1e-4
    )


@pytest.mark.slow
def test_pure_run_vmaps_over_data():
    def one(scale):
        target = DiagonalGaussian(jnp.zeros(2, jnp.float32), scale)
        record, _ = db.samplers.run(
            target, OBABO(jnp.float32(0.3), jnp.float32(1.0), jnp.float32(1.0)),
            jnp.zeros((2, 2), jnp.float32), as_key(0), num_samples=20,
        )  # fmt: skip
        return record.position

    scales = jnp.asarray([[1.0, 1.0], [2.0, 2.0]], jnp.float32)
    both = jax.vmap(one)(scales)
    np.testing.assert_allclose(both[1], one(scales[1]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_dtype_of_the_start_is_kept(x64, precision):
    draws = draw(init=np.zeros(3, precision), num_samples=128, num_warmup=100)
    assert draws.positions.dtype == precision
    leaves = jax.tree.leaves(draws.tuned)
    assert all(leaf.dtype == precision for leaf in leaves)


def test_tuned_sampler_is_ready_for_the_next_run(reference):
    again = db.sample(gaussian(), reference.tuned, num_warmup=0, num_samples=200, init=np.zeros(3))
    assert again.tuned.sampler.step_size == reference.tuned.sampler.step_size
    assert abs(again.stats["acceptance_rate"].mean() - 0.574) < 0.1


@pytest.mark.slow
def test_warm_up_reaches_its_acceptance_rate():
    draws = draw(adapt=Warmup(DualAveraging(0.8)), num_warmup=600, num_samples=1000)
    # The rate of one transition has sd about .3 and is averaged over 4000 correlated ones;
    # the step itself is averaged over 50 noisy updates, which is what .05 allows for.
    assert abs(draws.stats["acceptance_rate"].mean() - 0.8) < 0.05


def test_refused_steps_keep_the_position_and_are_counted():
    class Cliff(db.Target):
        dim: int = 1

        def log_density(self, x):
            return jnp.where(x[0] < 1.0, -jnp.sum(x**2) / 2, jnp.nan)

        def score(self, x):
            return jnp.where(x < 1.0, -x, jnp.nan)

    draws = db.sample(
        Cliff(), OBABO(0.5), num_warmup=0, num_samples=256, num_chains=2, init=np.zeros(1)
    )
    assert np.isfinite(draws.positions).all()
    assert (draws.positions < 1.0).all()
    refused = draws.stats["is_divergent"][:, 1:]
    assert refused.any()
    stays = draws.positions[:, 1:, 0] == draws.positions[:, :-1, 0]
    assert np.array_equal(stays, refused)


def test_interruption_returns_what_there_is():
    def stop(progress):
        if progress.phase == "sampling" and progress.done >= 128:
            raise KeyboardInterrupt

    draws = draw(num_samples=100_000, progress=stop)
    assert 128 <= draws.num_draws < 100_000
    assert "interrupted" in [finding.name for finding in draws.warnings]


def test_interruption_before_the_first_draw_is_an_interruption():
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(progress=stop)


def test_progress_tells_phase_rate_and_end():
    seen = []
    draw(progress=seen.append)
    assert next(s.phase for s in seen) == "warm-up" and seen[-1].phase == "sampling"
    assert seen[-1].done == seen[-1].total == 300
    assert all(s.rate > 0 and s.eta >= 0 for s in seen)


def test_every_chain_failing_raises():
    class Wall(db.Target):
        dim: int = 1

        def log_density(self, x):
            return jnp.where(jnp.all(x == 0), 0.0, jnp.nan)

        def score(self, x):
            return jnp.where(x == 0, 0.0, jnp.nan)

    with pytest.raises(db.SamplingError, match="smaller step size"):
        db.sample(Wall(), OBABO(0.5), num_warmup=0, num_samples=256, init=np.zeros(1))


@pytest.mark.slow
def test_a_recompilation_says_why_and_once(capsys):
    def sample(dim):
        target = DiagonalGaussian(np.zeros(dim), np.ones(dim))
        db.sample(target, HMC(0.4, 0.8), num_samples=128, num_warmup=0, num_chains=2)
        return capsys.readouterr().err.count("compiled sampling of DiagonalGaussian by HMC again")

    sample(11)
    assert sample(11) == 0
    assert sample(12) == 1
    assert sample(13) == 1
    assert sample(12) == 0


def test_groups_of_chains_share_their_start():
    from driftbridge.samplers import Grouped, UniformStart

    settings = {"num_samples": 256, "num_warmup": 0, "num_chains": 16}
    draws = db.sample(gaussian(), MALA(1e-6), init=Grouped(UniformStart(), 4), **settings)
    starts = draws.positions[:, 0].reshape(4, 4, 3)
    # Steps of 1e-6 move by about sqrt(2e-6); starts of groups are apart by more.
    assert np.ptp(starts, axis=1).max() < 0.01 < np.ptp(starts[:, 0], axis=0).min()
    assert draws.metadata["num_groups"] == 4
    with pytest.raises(ValueError, match="at least four"):
        db.sample(gaussian(), MALA(0.1), init=Grouped(UniformStart(), 5), **settings)

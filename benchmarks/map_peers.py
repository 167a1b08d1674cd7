"""Maps between data sets by ott-jax and POT, each as `fit(x, y) -> function of new points`."""

import warnings
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]
# Regularisations over the mean cost of centred data that peers are tried at.
SHARES = (0.01, 0.03, 0.1)


def centred_cost(x: np.ndarray, y: np.ndarray) -> float:
    """The mean of `|x - y|²` after both means are taken off."""
    return float(np.sum(x.var(axis=0)) + np.sum(y.var(axis=0)))


def ott_entropic(share: float | None = None) -> Fit:
    """The entropic map of ott-jax; None for its default epsilon."""

    def fit(x, y):
        from ott.geometry import pointcloud
        from ott.solvers import linear

        epsilon = None if share is None else share * centred_cost(x, y)
        geometry = pointcloud.PointCloud(jnp.asarray(x), jnp.asarray(y), epsilon=epsilon)
        solved = linear.solve(geometry, max_iterations=5000)
        return lambda new: np.asarray(solved.to_dual_potentials().transport(jnp.asarray(new)))

    return fit


def ott_progressive(x, y):
    """ProgOT of ott-jax, four steps of constant speed, its default epsilons."""
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.tools import progot

    geometry = pointcloud.PointCloud(jnp.asarray(x), jnp.asarray(y))
    alphas = progot.get_alpha_schedule("lin", num_steps=4)
    solved = progot.ProgOT(alphas)(linear_problem.LinearProblem(geometry))
    return lambda new: np.asarray(solved.transport(jnp.asarray(new))[1])


def pot_linear(x, y):
    """The affine map of POT between the moments of the samples."""
    import ot

    return _of_new(ot.da.LinearTransport(reg=1e-6).fit(Xs=_double(x), Xt=_double(y)))


def pot_exact(x, y):
    """POT's exact coupling, new points moved as their nearest neighbour is."""
    import ot

    return _of_new(ot.da.EMDTransport(max_iter=1_000_000).fit(Xs=_double(x), Xt=_double(y)))


def pot_sinkhorn(share: float) -> Fit:
    """POT's entropic coupling with its continuous map of new points."""

    def fit(x, y):
        import ot

        reg = share * centred_cost(x, y)
        fitted = ot.da.SinkhornTransport(reg_e=reg, tol=1e-5)
        return _of_new(fitted.fit(Xs=_double(x), Xt=_double(y)))

    return fit


def _of_new(fitted):
    return lambda new: np.asarray(fitted.transform(Xs=_double(new)))


def _double(points: np.ndarray) -> np.ndarray:
    """POT computes in the dtype it is given, and leaves its range in float32."""
    return np.asarray(points, np.float64)


# Steps of the neural peers: their defaults are 20 000 and 10 000, an hour or more on two cores.
NEURAL_STEPS, BATCH = 2000, 128


def _batches(points: np.ndarray, seed: int):
    """Random batches without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield jnp.asarray(points[rng.integers(0, len(points), BATCH)], jnp.float32)


def ott_neural_dual(x, y):
    """The neural dual solver of ott-jax with its networks and optimizers, 2000 steps."""
    from ott.neural.methods.neuraldual import W2NeuralDual

    solver = W2NeuralDual(x.shape[1], num_train_iters=NEURAL_STEPS, valid_freq=NEURAL_STEPS + 1)
    solved = solver(*(_batches(points, seed) for seed, points in enumerate((x, y, x, y))))
    return lambda new: np.asarray(solved.transport(jnp.asarray(new, jnp.float32)))


def ott_monge_gap(x, y):
    """A perceptron by ott-jax's Monge gap and Sinkhorn divergence, 2000 steps."""
    import jax
    from ott.geometry import pointcloud
    from ott.neural.methods.monge_gap import MongeGapEstimator, monge_gap_from_samples
    from ott.neural.networks.potentials import PotentialMLP
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence

    epsilon = 0.05 * centred_cost(x, y)

    def divergence(image, target):
        value = sinkhorn_divergence(
            pointcloud.PointCloud, x=image, y=target, epsilon=epsilon, static_b=True
        )[0]
        return value, None

    def gap(source, image):
        return monge_gap_from_samples(source, image, epsilon=epsilon), None

    network = PotentialMLP(dim_hidden=[64, 64, 64], is_potential=False, act_fn=jax.nn.gelu)
    solver = MongeGapEstimator(
        x.shape[1], network, fitting_loss=divergence, regularizer=gap,
        num_train_iters=NEURAL_STEPS,
    )  # fmt: skip
    state, _ = solver.train_map_estimator(
        *(_batches(points, seed) for seed, points in enumerate((x, y, x, y)))
    )
    return lambda new: np.asarray(
        state.apply_fn({"params": state.params}, jnp.asarray(new, jnp.float32))
    )


NEURAL: dict[str, Fit] = {"ott neural dual": ott_neural_dual, "ott Monge gap": ott_monge_gap}


def quiet(call: Callable, *arguments):
    """A peer's call with its warnings (deprecated names, limits reached) put aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments)


PEERS: dict[str, Fit] = {
    "ott entropic, default": ott_entropic(),
    **{f"ott entropic, {share}": ott_entropic(share) for share in SHARES},
    "ott progressive": ott_progressive,
    "POT linear": pot_linear,
    "POT exact": pot_exact,
    **{f"POT entropic, {share}": pot_sinkhorn(share) for share in SHARES},
}

"""Problems with an exact truth, drawn by number, and populations with numbers known in advance."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from lodrop_theory import CurvatureInputs
from lodrop_theory.solvable import (
    FactorRegression,
    FrozenARegression,
    GroundTruth,
    exact_law,
    memorizer,
    sampled_law,
    sign_classifier,
    truth_of_hold_out,
    truth_of_regression,
)

FAMILIES = (
    "frozen A",
    "both factors",
    "frozen A",
    "Gibbs classifier",
    "frozen A",
    "held-out losses",
    "frozen A",
    "held-out errors",
)
DELTAS = (0.01, 0.05, 0.1, 0.3)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One drawn problem."""

    family: str
    dropout_rate: float
    delta: float
    truth: GroundTruth


def _regression(rng: np.random.Generator, rate: float, **fixed: object) -> FrozenARegression:
    atoms, features, outputs = (int(rng.integers(*ends)) for ends in ((2, 5), (1, 4), (1, 3)))
    rank = int(rng.integers(1, features + 1))
    turned, _ = np.linalg.qr(rng.standard_normal((features, rank)))
    numbers = {
        "inputs": rng.uniform(-1, 1, (atoms, features)),
        "targets": rng.choice([-1.0, 1.0], (atoms, outputs)),
        "factor": turned.T * rng.uniform(0.5, 2, (rank, 1)),
        "rescale": bool(rng.integers(2)),
        "penalty": float(rng.choice([0.05, 0.3, 1.0])),
        "masked": bool(rng.integers(2)),
    }
    return FrozenARegression(dropout_rate=rate, **{**numbers, **fixed})  # type: ignore[arg-type]


def _truth(family: str, rng: np.random.Generator, rate: float) -> GroundTruth:
    n = int(rng.integers(4, 25))
    if family == "Gibbs classifier":
        x, y = rng.uniform(-1, 1, (4, 2)), rng.choice([-1.0, 1.0], 4)
        noise = float(rng.uniform(0.5, 2))
        algorithm, divergence = sign_classifier(x, y, dropout_rate=rate, noise_scale=noise)
        law = exact_law(rng.dirichlet(np.full(4, 3.0)), n, algorithm)
        return GroundTruth(
            law=law, loss_interval=(0.0, 1.0), kl_nats=np.asarray(divergence(law.counts))
        )
    if family == "both factors":
        features = int(rng.integers(2, 4))
        full = _regression(
            rng,
            rate,
            inputs=rng.uniform(-1, 1, (3, features)),
            targets=rng.choice([-1.0, 1.0], (3, features)),
            factor=np.eye(features),
        )
        both = FactorRegression(full=full, rank=1)
        return GroundTruth(law=exact_law(rng.dirichlet(np.full(3, 3.0)), n, both.algorithm()))
    if family == "held-out errors":
        wrong = rng.permutation([0.0, 0.0, 0.0, 1.0])
        law = exact_law(
            rng.dirichlet(np.full(4, 3.0)), n, lambda counts: np.broadcast_to(wrong, counts.shape)
        )
        return GroundTruth(law=law, loss_interval=(0.0, 1.0), held_out=True)
    problem = _regression(rng, rate)
    probabilities = rng.dirichlet(np.full(len(problem.inputs), 3.0))
    if family == "frozen A":
        return truth_of_regression(problem, probabilities, n)
    trained = exact_law(probabilities, n, problem.algorithm())
    index = int(rng.choice(len(trained.chance), p=trained.chance / trained.chance.sum()))
    interval = (float(trained.loss.min()), float(trained.loss.max()))
    return truth_of_hold_out(trained, index, n, loss_interval=interval)


def draw_problem(number: int) -> Problem:
    """Problem ``number``: the same on every machine."""
    rng = np.random.default_rng([240409610, number])
    family = FAMILIES[number % len(FAMILIES)]
    rate, delta = float(rng.uniform(0.05, 0.9)), float(rng.choice(DELTAS))
    return Problem(family=family, dropout_rate=rate, delta=delta, truth=_truth(family, rng, rate))


def cube_curvature(features: int, n: int, p: float) -> tuple[CurvatureInputs, float]:
    r"""Curvature and range of the loss on the corners of a cube, before any data are seen.

    Inverted scaling, one output y = -1 or 1, no other penalty. The Hessian is :math:`\hat\Sigma /
    q + \kappa I`, :math:`\kappa = p/q^2`, since every coordinate is -1 or 1. Through the singular
    values of the data the minimizer has norm at most :math:`\max_\sigma \sigma / (\sigma^2/q +
    \kappa) = W = \tfrac12 \sqrt{q^3/p}`; on that ball a gradient has norm at most :math:`(d/q +
    \kappa) W + \sqrt d` and a loss lies in :math:`[0, \tfrac12 (1 + \sqrt d W)^2 + \tfrac12 (d p/q
    + \kappa) W^2]`.
    """
    q, d = 1 - p, features
    kappa, w = p / q**2, 0.5 * np.sqrt(q**3 / p)
    curvature = CurvatureInputs(
        n_train=n,
        dropout_rate=p,
        lipschitz=(d / q + kappa) * w + np.sqrt(d),
        hessian_min_eig=kappa,
        penalty=0.0,
    )
    return curvature, 0.5 * (1 + np.sqrt(d) * w) ** 2 + 0.5 * (d * p / q + kappa) * w**2


def _cube(features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners with a noisy label: inputs, labels and probabilities of 2^(d+1) atoms."""
    corners = np.array(list(product((-1.0, 1.0), repeat=features)))
    inputs = np.concatenate([corners, corners])
    labels = np.repeat([1.0, -1.0], len(corners))
    agrees = np.where(labels * inputs[:, 0] > 0, 0.85, 0.15)
    return inputs, labels, agrees / agrees.sum()


def coverage_populations(
    n_draws: int, generator: np.random.Generator
) -> Iterator[tuple[str, GroundTruth]]:
    """Populations too large to enumerate, with numbers that are certified in advance."""
    inputs, labels, chances = _cube(4)
    p = 0.5
    problem = FrozenARegression(
        inputs=inputs, targets=labels[:, None], factor=np.eye(4), dropout_rate=p, rescale=True
    )
    for n in (100, 10_000):
        law = sampled_law(chances, n, problem.algorithm(), n_draws=n_draws, generator=generator)
        curvature, length = cube_curvature(4, n, p)
        yield (
            "cube, frozen A",
            GroundTruth(law=law, curvature=curvature, loss_interval=(0.0, length)),
        )
    algorithm, divergence = sign_classifier(inputs, labels, dropout_rate=0.2, noise_scale=0.5)
    for n in (20, 100, 1000):
        law = sampled_law(chances, n, algorithm, n_draws=n_draws, generator=generator)
        yield (
            "cube, Gibbs classifier",
            GroundTruth(
                law=law, loss_interval=(0.0, 1.0), kl_nats=np.asarray(divergence(law.counts))
            ),
        )
    wrong = (labels * inputs[:, 0] < 0).astype(float)
    for n in (20, 100, 1000):
        law = sampled_law(
            chances,
            n,
            lambda counts: np.broadcast_to(wrong, counts.shape),
            n_draws=n_draws,
            generator=generator,
        )
        yield "cube, held-out errors", GroundTruth(law=law, loss_interval=(0.0, 1.0), held_out=True)


def memorizer_truth(n_draws: int, generator: np.random.Generator) -> GroundTruth:
    """The negative control: 1000 atoms, 100 examples, pointwise stability 0."""
    law = sampled_law(np.full(1000, 0.001), 100, memorizer, n_draws=n_draws, generator=generator)
    return GroundTruth(law=law, loss_interval=(0.0, 1.0))


def truths_over_rates(n_train: int) -> Iterator[tuple[float, GroundTruth]]:
    """One frozen-A problem with four atoms, against the dropout rate."""
    rng = np.random.default_rng(3)
    inputs, targets = rng.uniform(-1, 1, (4, 2)), rng.choice([-1.0, 1.0], (4, 1))
    chances = rng.dirichlet(np.full(4, 3.0))
    for rate in np.round(np.arange(0.05, 0.91, 0.05), 2):
        problem = FrozenARegression(
            inputs=inputs,
            targets=targets,
            factor=np.eye(2),
            dropout_rate=float(rate),
            rescale=True,
            penalty=0.05,
        )
        yield float(rate), truth_of_regression(problem, chances, n_train)

r"""A linearized Laplace approximation around the finished `lora` runs.

The posterior over all trained parameters is Gaussian with the whole generalized Gauss-Newton
matrix and an isotropic prior,

.. math:: \Sigma = \Bigl(\sum_i J_i^\top (\operatorname{diag} \pi_i - \pi_i \pi_i^\top) J_i
          + \tau I\Bigr)^{-1}, \qquad
          f(x) \sim N\bigl(f_\theta(x),\; J(x) \Sigma J(x)^\top\bigr),

and the prediction is the mean softmax over draws of f. With 256 training rows the matrix has rank
at most 256 K, so it is used exactly. Laplace-LoRA (Yang et al. 2024, arXiv:2308.13111) has the same
predictive with Kronecker factors and a prior from the marginal likelihood; here the precision tau
is the one of least NLL on the validation rows.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.quality.laplace     (after the runs)
Writes  records of the arm `laplace-full-ggn` in runs/quality
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from tests.benchmarks.quality import records
from tests.benchmarks.quality.__main__ import provenance, results_of
from tests.benchmarks.quality.adapters import ShortModel, build, trained
from tests.benchmarks.quality.arms import ARMS
from tests.benchmarks.quality.problem import Problem, Rows, load_problem
from tests.benchmarks.quality.train import Finished

NAME = "laplace-full-ggn"
PRECISIONS = np.logspace(-3, 4, 29)
DRAWS = 512


def jacobians(short: ShortModel, rows: Rows) -> tuple[Tensor, Tensor]:
    """Logits (n, K) and their derivatives (n, K, parameters), masks off."""
    parameters = list(trained(short.model).values())
    logits: list[Tensor] = [torch.empty(0)] * len(rows.examples)
    derivatives: list[Tensor] = [torch.empty(0)] * len(rows.examples)
    for batch in rows.batches(1):
        row, each = int(batch["index"]), short(batch)[0]
        slopes = [torch.autograd.grad(f, parameters, retain_graph=True) for f in each]
        logits[row] = each.detach()
        derivatives[row] = torch.stack([torch.cat([g.flatten() for g in s]) for s in slopes])
    return torch.stack(logits), torch.stack(derivatives)


class Posterior:
    """Covariances of logits under any prior precision.

    Args:
        logits: Of the training rows, (n, K).
        derivatives: Of the training rows, (n, K, parameters).
    """

    def __init__(self, logits: Tensor, derivatives: Tensor) -> None:
        p = logits.softmax(-1)
        # diag p - p p^T = L L^T with L = diag sqrt p - p sqrt p^T.
        L = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]
        self.rows = (L.mT @ derivatives).flatten(0, 1)
        self.eigenvalues, self.vectors = torch.linalg.eigh((self.rows @ self.rows.T).double())

    def project(self, derivatives: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`covariance` needs of other rows: J J^T and J G^T U."""
        cross = torch.stack([each @ self.rows.T for each in derivatives]).double()
        return (derivatives @ derivatives.mT).double(), cross @ self.vectors

    def covariance(self, projected: tuple[Tensor, Tensor], precision: float) -> Tensor:
        """J Sigma J^T, (n, K, K), by Woodbury's identity."""
        squares, cross = projected
        weights = 1 / (precision + self.eigenvalues.clamp_min(0))
        return (squares - (cross * weights) @ cross.mT) / precision


def predictive(logits: Tensor, covariance: Tensor) -> Tensor:
    """Mean softmax over Gaussian draws, (n, K), with the same normal numbers every time."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = torch.randn(
        DRAWS, *logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    spread = torch.einsum("nij,nj,dnj->dni", vectors, values.clamp_min(0).sqrt(), noise)
    return (logits.double() + spread).softmax(-1).mean(0)


def fitted(problem: Problem, weights: dict[str, Tensor]) -> tuple[Finished, float]:
    """The predictive of one split under the best precision, as log-probabilities."""
    model, _ = build(problem, ARMS["lora"])
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(weights) == set(trained(model))
    short = ShortModel(model)
    with short.shortened(problem.blocks):
        posterior = Posterior(*jacobians(short, problem.train))
        seen = {}
        for name in ("validation", "test"):
            logits, derivatives = jacobians(short, getattr(problem, name))
            seen[name] = logits, posterior.project(derivatives)
    labels = problem.validation.labels

    def risk(precision: float) -> float:
        logits, projected = seen["validation"]
        predicted = predictive(logits, posterior.covariance(projected, precision))
        return float(-predicted[torch.arange(len(labels)), labels].log().mean())

    best = min(PRECISIONS, key=risk)
    finished = Finished()
    for name, (logits, projected) in seen.items():
        predicted = predictive(logits, posterior.covariance(projected, best))
        finished.logits[f"{name}.mean"] = predicted.log().float().numpy()
    return finished, float(best)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.laplace")
    parser.add_argument("--out", type=Path, default=records.RUNS)
    parser.add_argument("--commit", default=None, help="where the tree has no git repository")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, where = Console(), provenance(options.commit)
    for record in list(records.read_all(options.out)):
        if record["config"]["arm"]["name"] != "lora":
            continue
        config: dict[str, Any] = {
            **record["config"],
            "arm": {"name": NAME, "of": record["run_id"], "draws": DRAWS},
        }
        if records.read(options.out, records.run_id(config)) is not None:
            continue
        start = time.process_time()
        problem = load_problem(config["data"], config["seed"], config["blocks"])
        weights = load_file(options.out / "weights" / f"{record['run_id']}.safetensors")
        finished, precision = fitted(problem, weights)
        finished.logits = {f"{k}.{config['epochs']}": v for k, v in finished.logits.items()}
        finished.rows_trained, finished.train_seconds = (
            record["rows_trained"],
            record["train_seconds"],
        )
        finished.update_square = record["update_square"]
        finished.evaluation_seconds = time.process_time() - start
        results = {**results_of(problem, finished), "precision": precision}
        records.write(options.out, config, results, finished.logits, {}, where)
        test = results["trace"][str(config["epochs"])]["test.mean"]
        console.print(
            f"{config['data']} {config['seed']}: tau {precision:.2g}, "
            f"test NLL {test['nll']:.3f}, {finished.evaluation_seconds:.0f} s",
            highlight=False,
        )


if __name__ == "__main__":
    main()

"""Runs for the ends of one Hessian after the other, from losses to a spectrum."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor

from lodrop_nn.measure.evaluation import LossPart, trained_parameters
from lodrop_nn.measure.gauge import Gauge, gauge
from lodrop_nn.measure.hessian_products import HessianOfSum
from lodrop_nn.measure.spectrum import Spectrum, dense_spectrum, krylov_spectrum

Vector = Float64[Tensor, " n_parameters"]
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class CurvatureRun:
    """What is kept of a run when its graphs are gone.

    Attributes:
        spectrum: The ends.
        directions: The gauge.
        gradient: Gradient of the risk, flat.
        graphs_kept: Whether memory held all gradients' graphs.
        seconds: Wall-clock seconds of the products.
    """

    spectrum: Spectrum
    directions: Gauge
    gradient: Vector
    graphs_kept: bool
    seconds: float


@dataclass(kw_only=True)
class CurvatureRuns:
    """Runs of the same kind, one after the other; the caller sets evaluation mode and masks.

    Attributes:
        model: Adapted classifier.
        adapter_name: Name of the adapter.
        n_runs: How many there will be.
        steps: Products per run, where no matrix is built.
        seed: Seed of the start vector, the same in all runs.
        level: Probability of the enclosures of a run.
        retain: Whether gradients' graphs are kept.
        dense_up_to: Largest number of parameters for which the whole matrix is built.
        on_step: Called as ``on_step(done, total)``, over all runs.
    """

    model: PeftModel
    adapter_name: str
    n_runs: int
    steps: int
    seed: int
    level: float
    retain: bool
    dense_up_to: int
    on_step: OnStep | None
    _n_done: int = 0

    def run(self, losses: Sequence[LossPart]) -> CurvatureRun:
        """The ends of the Hessian of a sum of losses."""
        parameters = list(trained_parameters(self.model).values())
        hessian = HessianOfSum(losses, parameters, retain=self.retain)
        directions = gauge(self.model, adapter_name=self.adapter_name, device=hessian.device)
        begin = time.perf_counter()
        if hessian.n_parameters <= self.dense_up_to:
            spectrum = dense_spectrum(hessian, directions, on_step=self._progress)
        else:
            stream = torch.Generator().manual_seed(self.seed)
            start = torch.randn(hessian.n_parameters, dtype=torch.float64, generator=stream)
            spectrum = krylov_spectrum(
                hessian,
                directions,
                start.to(hessian.device),
                steps=self.steps,
                level=self.level,
                on_step=self._progress,
            )
        self._n_done += 1
        return CurvatureRun(
            spectrum=spectrum,
            directions=directions,
            gradient=hessian.gradient,
            graphs_kept=hessian.retained,
            seconds=time.perf_counter() - begin,
        )

    def _progress(self, step: int, steps: int) -> None:
        if self.on_step is not None:
            self.on_step(self._n_done * steps + step, self.n_runs * steps)

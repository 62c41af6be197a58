"""Curvature of the training risk at the solution: with masks off, across the gauge, under masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.curvature_runs import CurvatureRuns
from lodrop_nn.measure.evaluation import (
    Batch,
    mean_losses,
    mean_predictor,
)
from lodrop_nn.measure.masked_losses import masked_losses
from lodrop_nn.measure.spectrum import End, Spectrum
from lodrop_theory.records import Estimate, Provenance

Vector = Float64[Tensor, " n_parameters"]
OnStep = Callable[[int, int], None]
Eigenvalue = Literal[
    "hessian_min_eig",
    "hessian_max_eig",
    "transverse_min_eig",
    "dropout_min_eig",
    "dropout_max_eig",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curvature:
    r"""Curvature at the solution in the trained coordinates, and its gauge.

    Eigenvalues are in nats per parameter^2, of the plain cross-entropy without any penalty. A
    ridge :math:`\tau \|\theta\|^2` adds exactly :math:`2\tau` to each; it also reduces the
    gauge to rotations, so transverse values with a ridge need its own gauge.

    Attributes:
        hessian_min_eig: Smallest Hessian eigenvalue of the training risk, masks off.
        hessian_max_eig: Largest.
        transverse_min_eig: Smallest on the complement of the gauge directions.
        gauge_dimension: Number of gauge directions.
        gauge_residual: Largest norm of the Hessian times a unit gauge direction.
        dropout_min_eig: Smallest eigenvalue under drawn masks; None where it was not measured.
        dropout_max_eig: Largest.
        gradient: Gradient of the training risk, masks off, flat.
        residuals: Norms of H y - value y of the vectors y behind the eigenvalues.
        converged: Whether the interval of an eigenvalue is at most the tolerance times the
            spectral norm wide.
        skipped: Layers of the adapter that have no gauge directions here.
        n_parameters: Dimension of the Hessian.
        graphs_kept: Whether memory held all gradients' graphs.
        seconds_per_product: Wall-clock seconds of a product, masks off.
    """

    hessian_min_eig: Estimate
    hessian_max_eig: Estimate
    transverse_min_eig: Estimate
    gauge_dimension: int
    gauge_residual: Estimate
    dropout_min_eig: Estimate | None
    dropout_max_eig: Estimate | None
    gradient: Vector
    residuals: dict[Eigenvalue, float]
    converged: dict[Eigenvalue, bool]
    skipped: tuple[str, ...]
    n_parameters: int
    graphs_kept: bool
    seconds_per_product: float


def curvature(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    level: float = 0.95,
    n_masks: int = 0,
    with_masks: bool = True,
    retain: bool = True,
    tolerance: float = 1e-2,
    dense_up_to: int = 2500,
    adapter_name: str = "default",
    on_step: OnStep | None = None,
) -> Curvature:
    r"""Extreme eigenvalues of the Hessian of the training risk, without and with masks.

    .. math:: H = \nabla^2_\theta \frac1n \sum_i \ell_i(\theta), \qquad
              H_m = \nabla^2_\theta \frac1n \sum_i \ell_i(\theta \odot m_i), \qquad
              \ell_i = -\ln \pi(y_i \mid x_i)

    in the coordinates that are trained: the factors A and B and the classifier. Each Hessian takes
    one Krylov run across the gauge, from which both its transverse and its whole ends follow
    (:mod:`~lodrop_nn.measure.spectrum`); small ones are built as a matrix.

    **Intervals.** A value is a Rayleigh quotient, hence on the inner side of the eigenvalue. The
    outer end is a bound that holds with probability ``level`` over the random start vector, for
    all ends of one Hessian together and whatever the spectrum
    (:mod:`~lodrop_nn.measure.enclosure`). Value and residual alone would not bound the minimum:
    some eigenvalue is within the residual of the value, but not always the extreme one. The
    enclosure is that of the symmetrized operator that the products compute in the parameters'
    precision, with the rounding that they show estimated and allowed for. A dense matrix has no
    random start; its interval is twice the visible rounding, on both sides.

    **Masks.** :math:`H_m` is that of one draw, an unbiased estimate of :math:`\mathbb E_m H_m`.
    Its smallest eigenvalue is not: the minimum is concave, so
    :math:`\mathbb E \lambda_{\min}(H_m) \le \lambda_{\min}(\mathbb E H_m)`, and the largest
    likewise lies too high. The interval is about the drawn :math:`H_m`; as a statement about the
    mean over masks the value is plug-in and marked so. Both runs have the same start vector.

    Args:
        model: Adapted classifier; its trained parameters are the coordinates.
        bank: The masks of its adapter.
        batches: All training examples; one retained graph each.
        steps: Products per Hessian, >= 2.
        seed: Seed >= 0 of the start vector and of the masks.
        level: Probability in (0, 1) of the enclosures.
        n_masks: 0 for one mask per example; N >= 1 for the mean over N masks for all examples, at
            N times the cost.
        with_masks: Whether :math:`H_m` is measured at all. At p = 0 it is H and costs nothing.
        retain: Whether the gradients' graphs are kept (fast) or rebuilt for each product (small
            memory); where memory does not suffice, they are rebuilt in any case.
        tolerance: Width of an interval, as a fraction of the spectral norm, that counts as
            converged.
        dense_up_to: Largest number of parameters for which the whole matrix is built.
        adapter_name: Name of the adapter.
        on_step: Called as ``on_step(done, total)`` after each product, over all Hessians.

    Returns:
        Eigenvalues with their intervals, the gauge and the gradient.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained or there is no example.

    Source:
        Products: Pearlmutter (1994), Fast exact multiplication by the Hessian. What the theorem
        reads: Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"`steps` must be a whole number >= 2, got {steps!r}.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level!r}.")
    is_masked = any(layer.input_rate or layer.output_rate for layer in bank.layers)
    runs = CurvatureRuns(
        model=model,
        adapter_name=adapter_name,
        n_runs=2 if with_masks and is_masked else 1,
        steps=steps,
        seed=seed,
        level=level,
        retain=retain,
        dense_up_to=dense_up_to,
        on_step=on_step,
    )
    with mean_predictor(model, bank, batches):
        plain = runs.run(mean_losses(model, batches))
        masked, words = (plain.spectrum, "masks off, p = 0") if with_masks else (None, "")
        if with_masks and is_masked:
            with masked_losses(model, bank, batches, n_masks=n_masks, seed=seed) as (parts, words):
                masked = runs.run(parts).spectrum
    ends: dict[Eigenvalue, tuple[End, Spectrum, str]] = {
        "hessian_min_eig": (plain.spectrum.min, plain.spectrum, "masks off"),
        "hessian_max_eig": (plain.spectrum.max, plain.spectrum, "masks off"),
        "transverse_min_eig": (
            plain.spectrum.transverse_min,
            plain.spectrum,
            "masks off, across the gauge",
        ),
    }
    if masked is not None:
        ends["dropout_min_eig"] = masked.min, masked, words
        ends["dropout_max_eig"] = masked.max, masked, words
    drawn = with_masks and is_masked
    found = {
        name: _estimate(end, spectrum, level, of, drawn=drawn and name.startswith("dropout"))
        for name, (end, spectrum, of) in ends.items()
    }
    return Curvature(
        hessian_min_eig=found["hessian_min_eig"],
        hessian_max_eig=found["hessian_max_eig"],
        transverse_min_eig=found["transverse_min_eig"],
        gauge_dimension=plain.directions.dimension,
        gauge_residual=Estimate(
            value=plain.directions.residual(plain.gradient),
            n_draws=max(1, plain.directions.dimension),
            method="largest singular value of the Hessian on the gauge directions, in closed form "
            "from the gradient, whose rounding is not enclosed",
        ),
        dropout_min_eig=found.get("dropout_min_eig"),
        dropout_max_eig=found.get("dropout_max_eig"),
        gradient=plain.gradient,
        residuals={name: end.residual for name, (end, _, _) in ends.items()},
        converged={
            name: end.high - end.low <= tolerance * _norm(spectrum)
            for name, (end, spectrum, _) in ends.items()
        },
        skipped=plain.directions.skipped,
        n_parameters=len(plain.gradient),
        graphs_kept=plain.graphs_kept,
        seconds_per_product=plain.seconds / plain.spectrum.n_products,
    )


def _norm(spectrum: Spectrum) -> float:
    return max(abs(spectrum.min.value), abs(spectrum.max.value))


def _estimate(end: End, spectrum: Spectrum, level: float, of: str, *, drawn: bool) -> Estimate:
    if spectrum.method == "dense":
        method = f"dense Hessian ({of}); interval: twice its visible rounding"
    else:
        method = (
            f"{spectrum.method} on Hessian-vector products ({of}), residual {end.residual:.2g}; "
            "interval: Ritz value to Lanczos-polynomial bound"
        )
    provenance: Provenance | None = "plug-in" if drawn else None
    return Estimate(
        value=end.value,
        low=end.low,
        high=end.high,
        level=level,
        n_draws=spectrum.n_products,
        method=method,
        provenance=provenance,
    )

"""Eigenvalues of the Hessian of the training risk, one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft import PeftModel

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.curvature import Curvature
from lodrop_nn.measure.curvature import curvature as measured_curvature
from lodrop_nn.measure.evaluation import Batch
from lodrop_nn.measure.hessian_products import HessianOfSum
from lodrop_theory.records import Estimate


@dataclass(frozen=True, kw_only=True)
class ExtremeEigenvalues:
    """Both ends of the spectrum of one Hessian.

    Attributes:
        min: Smallest eigenvalue. Nats per parameter^2; may be negative.
        max: Largest eigenvalue. Nats per parameter^2.
        min_converged: Whether the interval of ``min`` is as short as the tolerance asks.
        max_converged: Whether the interval of ``max`` is.
        n_parameters: Dimension of the Hessian.
    """

    min: Estimate
    max: Estimate
    min_converged: bool
    max_converged: bool
    n_parameters: int


def hessian_extreme_eigs(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    level: float = 0.95,
    retain: bool = True,
    tolerance: float = 1e-2,
    dense_up_to: int = 2500,
    on_step: Callable[[int, int], None] | None = None,
) -> ExtremeEigenvalues:
    r"""Extreme eigenvalues of the Hessian of the training risk, masks off.

    .. math:: H = \nabla^2_\theta \frac1n \sum_i -\ln \pi_\theta(y_i \mid x_i)

    A part of :func:`~lodrop_nn.measure.curvature.curvature`, which says what the intervals hold.

    Args:
        model: Adapted model; its trained parameters are the coordinates.
        bank: The masks of its adapter; they are off during the measurement.
        batches: All training examples; one retained graph each.
        steps: Products, >= 2.
        seed: Seed of the start vector.
        level: Probability in (0, 1) with which both intervals hold.
        retain: Whether the gradients' graphs are kept (fast) or rebuilt (small memory).
        tolerance: Width of an interval, as a fraction of the spectral norm, that counts as
            converged.
        dense_up_to: Largest number of parameters for which the whole matrix is built.
        on_step: Called as ``on_step(step, steps)`` after each product.

    Returns:
        Both ends as estimates, with their convergence.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained, or there is no example.
    """
    found = measured_curvature(
        model,
        bank,
        batches,
        steps=steps,
        seed=seed,
        level=level,
        with_masks=False,
        retain=retain,
        tolerance=tolerance,
        dense_up_to=dense_up_to,
        on_step=on_step,
    )
    return ExtremeEigenvalues(
        min=found.hessian_min_eig,
        max=found.hessian_max_eig,
        min_converged=found.converged["hessian_min_eig"],
        max_converged=found.converged["hessian_max_eig"],
        n_parameters=found.n_parameters,
    )


def hessian_min_eig(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    curvature: Curvature | None = None,
) -> Estimate:
    r"""Smallest eigenvalue of the Hessian of the training risk, masks off.

    See :func:`~lodrop_nn.measure.curvature.curvature`.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        steps: Products, >= 2.
        seed: Seed >= 0 of the start vector.
        curvature: The curvature, where it has been measured already; nothing is computed then.

    Returns:
        Nats per parameter^2; may be negative.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained, or there is no example.
    """
    curvature = curvature or measured_curvature(
        model, bank, batches, steps=steps, seed=seed, with_masks=False
    )
    return curvature.hessian_min_eig


def hessian_max_eig(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    curvature: Curvature | None = None,
) -> Estimate:
    r"""Largest eigenvalue of the Hessian of the training risk, masks off.

    See :func:`~lodrop_nn.measure.curvature.curvature`.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        steps: Products, >= 2.
        seed: Seed >= 0 of the start vector.
        curvature: The curvature, where it has been measured already; nothing is computed then.

    Returns:
        Nats per parameter^2.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained, or there is no example.
    """
    curvature = curvature or measured_curvature(
        model, bank, batches, steps=steps, seed=seed, with_masks=False
    )
    return curvature.hessian_max_eig


def transverse_min_eig(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    curvature: Curvature | None = None,
) -> Estimate:
    r"""Smallest eigenvalue of that Hessian on the complement of the gauge directions, masks off.

    .. math:: \min_{v \perp (XA, -BX)} v^\top H v / |v|^2

    See :func:`~lodrop_nn.measure.curvature.curvature`.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        steps: Products, >= 2.
        seed: Seed >= 0 of the start vector.
        curvature: The curvature, where it has been measured already; nothing is computed then.

    Returns:
        Nats per parameter^2; not below ``hessian_min_eig``.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained, or there is no example.
    """
    curvature = curvature or measured_curvature(
        model, bank, batches, steps=steps, seed=seed, with_masks=False
    )
    return curvature.transverse_min_eig


def gauge_residual(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    curvature: Curvature | None = None,
) -> Estimate:
    r"""Largest norm of the Hessian times a unit gauge direction: zero at a stationary point.

    .. math:: \max_{q = (XA, -BX),\ |q| = 1} \|H q\|, \qquad H (XA, -BX) = (-X^\top g_A, g_B X^\top)

    From the gradient g alone; see :mod:`~lodrop_nn.measure.gauge`. Zero also without a gauge.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        steps: Products, >= 2.
        seed: Seed >= 0 of the start vector.
        curvature: The curvature, where it has been measured already; nothing is computed then.

    Returns:
        Nats per parameter^2, >= 0; without an interval.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained, or there is no example.
    """
    curvature = curvature or measured_curvature(
        model, bank, batches, steps=steps, seed=seed, with_masks=False
    )
    return curvature.gauge_residual


def dropout_min_eig(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    curvature: Curvature | None = None,
) -> Estimate | None:
    r"""Smallest eigenvalue of the Hessian of the training risk under drawn masks.

    See :func:`~lodrop_nn.measure.curvature.curvature` for its bias against the mean over masks.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        steps: Products, >= 2.
        seed: Seed >= 0 of the start vector and of the masks.
        curvature: The curvature, where it has been measured already; nothing is computed then.

    Returns:
        Nats per parameter^2, or None if ``curvature`` was measured without masks.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained, or there is no example.
    """
    curvature = curvature or measured_curvature(model, bank, batches, steps=steps, seed=seed)
    return curvature.dropout_min_eig


__all__ = [
    "ExtremeEigenvalues",
    "HessianOfSum",
    "dropout_min_eig",
    "gauge_residual",
    "hessian_extreme_eigs",
    "hessian_max_eig",
    "hessian_min_eig",
    "transverse_min_eig",
]

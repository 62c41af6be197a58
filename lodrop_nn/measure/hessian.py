"""Eigenvalues of the Hessian of the training risk, one by one."""

from collections.abc import Sequence

from peft import PeftModel

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.curvature import Curvature
from lodrop_nn.measure.curvature import curvature as measured_curvature
from lodrop_nn.measure.evaluation import Batch
from lodrop_theory.records import Estimate


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
    "dropout_min_eig",
    "gauge_residual",
    "hessian_max_eig",
    "hessian_min_eig",
    "transverse_min_eig",
]

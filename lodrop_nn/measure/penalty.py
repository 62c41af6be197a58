r"""The weight :math:`\lambda` of the penalty that LoRA Dropout is read as, estimated three ways.

The paper replaces training under masks by the penalized risk

.. math:: \hat R(D) + \lambda\, s(p)\, \|D\|_F^2, \qquad s(p) = 2p - p^2,

with D the low-rank update of the adapted weights and lambda left free. On a network no lambda
makes the two equal; each estimator here answers for one property of them, and their spread shows
how far the reading carries.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from lodrop_nn.adapter import kinds
from lodrop_nn.adapter.attach import adapter_layers
from lodrop_nn.adapter.report import delta_weights
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.curvature import Curvature
from lodrop_nn.measure.curvature import curvature as measured_curvature
from lodrop_nn.measure.evaluation import Batch
from lodrop_nn.measure.intervals import mean_estimate
from lodrop_nn.measure.lipschitz import ExampleGradients, example_gradients
from lodrop_nn.measure.predictions import Predictions, predict_all
from lodrop_nn.measure.risk import negative_log_likelihoods
from lodrop_theory.records import Estimate


def delta_weight_norm(model: PeftModel, *, adapter_name: str = "default") -> Estimate:
    r"""Frobenius norm of the update of all adapted layers together, masks off.

    .. math:: \|D\|_F = \Bigl(\sum_{\text{layers}} \|s B A\|_F^2\Bigr)^{1/2}

    Args:
        model: Adapted model.
        adapter_name: Name of its adapter.

    Returns:
        A number >= 0, exact up to rounding; ``n_draws`` counts the layers.
    """
    deltas = delta_weights(model, adapter_name)
    return Estimate(
        value=math.sqrt(_square(deltas.values())),
        n_draws=len(deltas),
        method="Frobenius norm of s B A over all adapted layers, as applied with masks off",
    )


def penalty(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    n_masks: int,
    seed: int,
    level: float = 0.95,
    adapter_name: str = "default",
    predictions: Predictions | None = None,
) -> Estimate | None:
    r"""Lambda by energy: what the masks add to the training loss, per unit of the penalty.

    .. math:: \lambda = \frac{\mathbb E_m \hat R_m - \hat R}{s(p)\, \|D\|_F^2}

    with the plain cross-entropy that is trained, :math:`\hat R_m` under a mask draw and
    :math:`\hat R` with masks off. It may be negative: masks need not raise the loss.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        n_masks: Mask draws, >= 1.
        seed: Seed >= 0 of the masks.
        level: Coverage of the interval over mask draws, in (0, 1).
        adapter_name: Name of the adapter.
        predictions: Predictions on ``batches``, where they have been computed already.

    Returns:
        Nats per parameter^2, or None where the penalty is zero (p = 0 or D = 0).

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        The penalty: Lin et al. (2024), arXiv:2404.09610v1, equations 9 to 11, which give no way
        to find lambda; the estimator is ours.
    """
    unit = _penalty_per_unit(model, bank, adapter_name)
    if unit == 0.0:
        return None
    if predictions is None:
        predictions = predict_all(model, bank, batches, n_masks=n_masks, seed=seed)
    labels = predictions.labels
    masked = negative_log_likelihoods(predictions.member_probabilities, labels).mean(-1)
    plain = negative_log_likelihoods(predictions.mean_probabilities, labels).mean()
    draws = np.asarray((masked - plain) / unit)
    return mean_estimate(draws, level, "loss added by the masks over s(p) ||D||^2, masks drawn")


def penalty_kkt(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    adapter_name: str = "default",
    gradients: ExampleGradients | None = None,
) -> Estimate | None:
    r"""Lambda by stationarity: the weight at which the penalty balances the risk along B.

    .. math:: \lambda = -\frac{\langle \nabla_B \hat R, B \rangle}{2\, s(p)\, \|D\|_F^2}

    A minimizer of the penalized risk satisfies this, because :math:`D` is linear in B and so
    :math:`\langle \nabla_B \|D\|^2, B \rangle = 2 \|D\|^2`; layers whose B is frozen do not
    count. Away from a minimizer, as after a
    fixed number of steps, it also absorbs what is left of the gradient; it may be negative.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        adapter_name: Name of the adapter.
        gradients: Their gradients, where they have been computed already.

    Returns:
        Nats per parameter^2 without an interval, or None where the penalty is zero (p = 0 or
        D = 0).

    Raises:
        ValueError: If the factors B are not trained.

    Source:
        Stationarity of Lin et al. (2024), arXiv:2404.09610v1, equation 11; the estimator is ours.
    """
    if _penalty_per_unit(model, bank, adapter_name) == 0.0:
        return None
    gradients = gradients or example_gradients(model, bank, batches)
    slope, square = _along_the_update(model, gradients.mean, adapter_name)
    if square == 0.0:
        return None
    unit = bank.dropout_rate * (2 - bank.dropout_rate) * square
    return Estimate(
        value=-slope / (2 * unit),
        n_draws=len(gradients.norms),
        method="-<grad_B R, B> over 2 s(p) ||D||^2, masks off, at a point that need not be "
        "stationary",
    )


def penalty_curvature(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    steps: int,
    seed: int,
    curvature: Curvature | None = None,
) -> Estimate | None:
    r"""Lambda by curvature: how much the masks lift the smallest Hessian eigenvalue.

    .. math:: \lambda = \frac{\lambda_{\min}(H_m) - \lambda_{\min}(H)}{2\, s(p)}

    A penalty :math:`\lambda s(p) \|\theta\|^2` would lift it by :math:`2 \lambda s(p)`. Both
    eigenvalues are at the trained point; :math:`H_m` is that of one draw of masks, whose smallest
    eigenvalue is on average too low (:func:`~lodrop_nn.measure.curvature.curvature`), and so is
    this lambda. It may be negative. The interval takes the enclosures of the two eigenvalues end
    against end; it does not hold the draw of the masks.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter.
        batches: The training examples.
        steps: Products per Hessian, >= 2.
        seed: Seed >= 0 of the start vector and of the masks.
        curvature: The curvature, where it has been measured already.

    Returns:
        Nats per parameter^2, or None at p = 0, or if ``curvature`` was measured without masks.

    Raises:
        ValueError: If an argument is outside its range, nothing is trained or there is no example.

    Source:
        Strong convexity in Lin et al. (2024), arXiv:2404.09610v1, Proposition 4.2; the estimator is
        ours.
    """
    p = bank.dropout_rate
    if p == 0.0:
        return None
    curvature = curvature or measured_curvature(model, bank, batches, steps=steps, seed=seed)
    plain, masked = curvature.hessian_min_eig, curvature.dropout_min_eig
    if masked is None:
        return None
    unit = 2 * p * (2 - p)
    # Each interval misses with probability 1 - level.
    level = 1 - sum(1 - e.level for e in (plain, masked) if e.level is not None)
    return Estimate(
        value=(masked.value - plain.value) / unit,
        low=(masked.lower - plain.upper) / unit,
        high=(masked.upper - plain.lower) / unit,
        level=level if level > 0 else None,
        n_draws=min(plain.n_draws, masked.n_draws),
        method="smallest Hessian eigenvalue under drawn masks less that without, over 2 s(p); "
        "interval: enclosures of both",
        provenance="plug-in",
    )


def _penalty_per_unit(model: PeftModel, bank: MaskBank, adapter_name: str) -> float:
    """s(p) ||D||^2, the penalty at lambda = 1."""
    p = bank.dropout_rate
    return p * (2 - p) * delta_weight_norm(model, adapter_name=adapter_name).value ** 2


def _along_the_update(
    model: PeftModel, gradient: Mapping[str, Tensor], adapter_name: str
) -> tuple[float, float]:
    """Slope of the risk when all trained B grow by the same factor, and ||D||^2 of their layers.

    Raises:
        ValueError: If no B is trained.
    """
    keys = {
        name: kinds.kind_of(layer, name).lora_B_key(name, adapter_name)
        for name, layer in adapter_layers(model, adapter_name).items()
    }
    trained = {name: key for name, key in keys.items() if key in gradient}
    if not trained:
        raise ValueError(
            f"`model` must train the factors B of adapter {adapter_name!r}, got none that "
            "requires gradients."
        )
    deltas = delta_weights(model, adapter_name)
    factors = {key: model.get_parameter(key) for key in trained.values()}
    slope = math.fsum(
        float((gradient[key] * lora_B.detach().to("cpu", torch.float64)).sum())
        for key, lora_B in factors.items()
    )
    return slope, _square(deltas[name] for name in trained)


def _square(deltas: Iterable[Tensor]) -> float:
    return math.fsum(float(delta.detach().to(torch.float64).square().sum()) for delta in deltas)

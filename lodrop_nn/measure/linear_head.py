r"""A Lipschitz constant that is proved, where the logits are linear in what is trained.

Let :math:`z = \Theta \varphi(x) + c(x)` with :math:`\Theta` all trained parameters, one row per
class (:mod:`~lodrop_nn.measure.linear_logits`). The gradient of a loss of the logits is
:math:`\nabla_z \ell \otimes \varphi`, of norm :math:`\|\nabla_z \ell\| \|\varphi\|`, and for the
cross-entropy

.. math:: \|\nabla_z \ell\|^2 = \|\pi - e_y\|^2 = (1 - \pi_y)^2 + \sum_{k \ne y} \pi_k^2
    \le 2 (1 - \pi_y)^2 \le 2,

because the :math:`\pi_k` with :math:`k \ne y` are not negative and sum to :math:`1 - \pi_y`. The
loss of an example is therefore Lipschitz with constant :math:`\sqrt2 \|\varphi(x)\|` in *all*
parameters, however far from the solution; so is the smoothed cross-entropy, whose gradient is a
multiple in [0, 1] of it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.evaluation import Batch, count_rows, mean_predictor, trained_parameters
from lodrop_nn.measure.linear_logits import feature_vector, single_row, why_not_linear
from lodrop_theory.records import Estimate

# Features are sums and products in the model's precision: some units of rounding, outward.
_ROUNDINGS = 64


def lipschitz_bound(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> Estimate | None:
    r"""Proved Lipschitz constant of the loss of the rows given, masks off, over all parameters.

    .. math:: \rho = \sqrt 2 \max_i \|\varphi(x_i)\|

    See the top of this module for the proof, and
    :func:`~lodrop_nn.measure.linear_logits.why_not_linear` for where it applies.

    It holds for the rows given and for any whose features are no longer; a fresh example may have
    longer ones.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter; they are off.
        batches: The training examples.
        on_batch: Called as ``on_batch(rows_done, rows)``.

    Returns:
        The constant in nats per parameter norm, rounded upward, as the upper end of what encloses
        the smallest such constant; None where the logits are not linear in what is trained.

    Raises:
        ValueError: If nothing is trained or there is no example.

    Source:
        Derived here.
    """
    n_rows, done, largest = count_rows(batches), 0, 0.0
    with mean_predictor(model, bank, batches):
        if why_not_linear(model, batches[0]) is not None:
            return None
        for batch in batches:
            for row in range(len(batch["labels"])):
                features = feature_vector(model, single_row(model, batch, row))
                largest = max(largest, float(features.norm()))
            done += len(batch["labels"])
            if on_batch is not None:
                on_batch(done, n_rows)
    eps = max(torch.finfo(p.dtype).eps for p in trained_parameters(model).values())
    bound = math.sqrt(2) * largest * (1 + _ROUNDINGS * eps)
    return Estimate(
        value=bound,
        low=0.0,
        high=bound,
        n_draws=n_rows,
        method="proved: the logits are linear in the trained parameters; sqrt(2) times the largest "
        "feature norm of the rows given",
    )

"""Whether a ridge makes the training objective strongly convex in what is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft import PeftModel

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.evaluation import Batch, mean_predictor
from lodrop_nn.measure.linear_logits import why_not_linear


@dataclass(frozen=True, kw_only=True)
class Convexity:
    """Whether the cross-entropy is convex in the trained parameters.

    Attributes:
        is_linear: Whether the logits are linear in them, by structure and by a numerical check.
            The cross-entropy is then convex, and with a ridge tau the objective is 2 tau-strongly
            convex everywhere.
        reason: Why, or why not.
    """

    is_linear: bool
    reason: str


def strongly_convex(model: PeftModel, bank: MaskBank, batches: Sequence[Batch]) -> Convexity:
    """Whether a ridge makes the training objective strongly convex in the trained parameters.

    It does where the logits are linear in them
    (:func:`~lodrop_nn.measure.linear_logits.why_not_linear`). A ``False`` is no proof of the
    opposite.

    Args:
        model: Adapted classifier.
        bank: The masks of its adapter; they are off.
        batches: Rows to try, at least one.

    Returns:
        The verdict and its reason.

    Raises:
        ValueError: If nothing is trained or there is no row.
    """
    with mean_predictor(model, bank, batches):
        reason = why_not_linear(model, batches[0])
    if reason is not None:
        return Convexity(is_linear=False, reason=reason)
    return Convexity(is_linear=True, reason="the logits are linear in all that is trained")

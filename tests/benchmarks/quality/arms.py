"""The ways of training that are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training an adapter.

    Attributes:
        name: What it is called in records.
        dropout_rate: p of LoRA Dropout; 0 attaches none.
        n_masks: N, masks per step; a step costs N times as much.
        mask_scope: One mask per "batch" or per "example".
        mask_law: "iid" or "balanced".
        peft_dropout: PEFT's own `lora_dropout`.
        monteclora: Whether the layers are PEFT's MonteCLoRA at its default configuration.
        decay_from: Arm whose masks set the weight of a penalty on the squared update.
        member: Which of several adapters with other initializations, heads and orders.
        adalora: Whether the adapter is AdaLoRA; it is scored at the last epoch alone.
        learning_rate: Of the first step; None is that of the other arms.
        cost: Training rows passed per example and epoch, for the time left.
    """

    name: str
    dropout_rate: float = 0.0
    n_masks: int = 1
    mask_scope: str = "batch"
    mask_law: str = "iid"
    peft_dropout: float = 0.0
    monteclora: bool = False
    decay_from: str | None = None
    member: int = 0
    adalora: bool = False
    learning_rate: float | None = None
    cost: float = field(default=1.0, compare=False)

    @property
    def ensemble(self) -> str | None:
        """What its members differ in: "masks", whole stochastic "passes", or None."""
        if self.dropout_rate > 0:
            return "masks"
        return "passes" if self.peft_dropout > 0 or self.monteclora else None


P = 0.5
# The first wave answers the question; the second adds rivals that cost more or promise less; the
# third, which has its own record, asks it again of AdaLoRA.
WAVES: Sequence[Sequence[Arm]] = (
    (
        Arm(name="lora", cost=1.2),
        Arm(name="batch", dropout_rate=P, cost=2.6),
        Arm(name="example", dropout_rate=P, mask_scope="example", cost=3.0),
        Arm(
            name="example-balanced",
            dropout_rate=P,
            mask_scope="example",
            mask_law="balanced",
            cost=3.0,
        ),
        Arm(name="n4", dropout_rate=P, n_masks=4, cost=5.6),
        Arm(name="peft-lora-dropout", peft_dropout=P, cost=2.8),
        Arm(name="decay-to-init", decay_from="batch", cost=1.3),
    ),
    (
        *(Arm(name=f"lora-member-{k}", member=k, cost=1.2) for k in (1, 2, 3)),
        Arm(name="monteclora", monteclora=True, cost=3.2),
    ),
    (
        Arm(name="adalora", adalora=True, learning_rate=1e-2, cost=1.2),
        Arm(
            name="adalora-dropout",
            adalora=True,
            learning_rate=1e-2,
            dropout_rate=P,
            mask_scope="example",
            mask_law="balanced",
            cost=2.8,
        ),
    ),
)
ARMS = {arm.name: arm for wave in WAVES for arm in wave}

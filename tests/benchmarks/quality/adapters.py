"""An adapter of each arm, and the short way through its model."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
)
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.train.finetune import INITIALIZATION
from tests.benchmarks.quality import adalora
from tests.benchmarks.quality.arms import Arm
from tests.benchmarks.quality.problem import FROZEN, Problem

TARGETS = ("query", "key", "value", "attention.output.dense")
RANK, LORA_ALPHA = 8, 16.0


def run_seed(problem: Problem, arm: Arm) -> int:
    """Seed of initialization, order and masks; the first member's is that of the split."""
    return problem.seed + 1000 * arm.member


def build(problem: Problem, arm: Arm, n_steps: int = 0) -> tuple[PeftModel, MaskBank | None]:
    """The adapter of an arm, in evaluation mode: equal factors at the start for equal seeds.

    Args:
        problem: Has the base model.
        arm: Which adapter.
        n_steps: Steps of the training to come, which AdaLoRA's schedule needs.
    """
    seed = run_seed(problem, arm)
    special: dict[str, Any] = {"lora_dropout": arm.peft_dropout}
    if arm.monteclora:
        from peft import MontecloraConfig  # older ones have none

        special["monteclora_config"] = MontecloraConfig()
    if arm.adalora:
        special |= adalora.settings(RANK, n_steps)
    model = _adapter(problem, seed, special)
    if arm.monteclora:  # its samplers draw between the layers
        plain = _adapter(problem, seed, {}).state_dict()
        factors = {name: value for name, value in plain.items() if ".lora_A." in name}
        model.load_state_dict(factors, strict=False)
    bank = None
    if arm.dropout_rate > 0:
        law = {} if arm.mask_law == "iid" else {"mask_law": arm.mask_law}
        bank = attach_lora_dropout(
            model,
            arm.dropout_rate,
            n_masks=arm.n_masks,
            mask_scope=arm.mask_scope,
            seed=seed,
            **law,
        )
    return model.eval(), bank


def _adapter(problem: Problem, seed: int, special: Mapping[str, Any]) -> PeftModel:
    kind = AdaLoraConfig if "target_r" in special else partial(LoraConfig, r=RANK)
    config = kind(
        task_type=TaskType.SEQ_CLS,
        lora_alpha=LORA_ALPHA,
        target_modules=list(TARGETS),
        layers_to_transform=list(problem.blocks),
        **special,
    )
    start = seeded_generator(seed, INITIALIZATION)
    base = problem.base(seed)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.default_generator.manual_seed(start.initial_seed())
        return get_peft_model(base, config)


class ShortModel:
    """A classifier that computes only what depends on the adapter and is read.

    The model itself runs, hooks of the masks included; its embeddings, its frozen blocks and the
    frozen maps of its first adapted block hand on what was computed once, and the last block
    computes its first token alone. Values and derivatives are those of the whole model.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self._batch: Mapping[str, Tensor] = {}

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (b, K) of a batch from :meth:`Rows.batches`."""
        self._batch = batch
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.model(**inputs).logits

    @contextmanager
    def shortened(self, blocks: tuple[int, ...]) -> Iterator[None]:
        """The context in which it may be called."""
        bert = self.model.get_base_model().bert
        first, last = bert.encoder.layer[min(blocks)].attention, bert.encoder.layer[-1].attention
        with ExitStack() as stack:
            replaced: dict[Module, Any] = {
                bert.embeddings: lambda *args, **kwargs: self._batch["states"],
                last.self: partial(_attend_from_first_token, last.self),
            }
            for block in bert.encoder.layer[: min(blocks)]:
                replaced[block] = lambda states, *args, **kwargs: states
            for name in FROZEN[1:]:
                base_layer = getattr(first.self, name).base_layer
                replaced[base_layer] = lambda states, name=name: self._batch[name]
            for module, forward in replaced.items():
                stack.enter_context(_forward(module, forward))
            handle = last.output.register_forward_pre_hook(
                lambda module, args: tuple(states[:, :1] for states in args)
            )
            stack.callback(handle.remove)
            yield


def _attend_from_first_token(
    attention: Any, states: Tensor, mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """BERT's self-attention with the first token as the only query."""
    mask = kwargs.get("attention_mask", mask)
    heads = attention.num_attention_heads
    query, key, value = (
        map_(rows).unflatten(-1, (heads, -1)).transpose(1, 2)
        for map_, rows in (
            (attention.query, states[:, :1]),
            (attention.key, states),
            (attention.value, states),
        )
    )
    seen = None if mask is None else mask[:, :, :1]
    context = scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return context.transpose(1, 2).flatten(2), None


@contextmanager
def _forward(module: Module, forward: Any) -> Iterator[None]:
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def trained(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that fine-tuning moves, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def update_square(model: PeftModel) -> Tensor:
    r"""||s B A||_F^2 over all layers, differentiable: tr((B^T B)(A A^T)) s^2."""
    parameters = dict(model.named_parameters())
    total = torch.zeros(())
    for name, A in parameters.items():
        if ".lora_A." in name:
            B = parameters[name.replace(".lora_A.", ".lora_B.")]
            total = total + ((B.T @ B) * (A @ A.T)).sum()
    return total * (LORA_ALPHA / RANK) ** 2


def knows_law(arm: Arm) -> bool:
    """Whether this version of the package can draw the masks of an arm."""
    from lodrop_nn.masks import MaskSettings

    return arm.mask_law == "iid" or "mask_law" in {f.name for f in dataclasses.fields(MaskSettings)}

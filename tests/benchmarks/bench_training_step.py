"""A training step of LoRA Dropout beside PEFT's own: time, memory kept for backward, FLOPs.

MiniLM-L6 on movie-review sentences, LoRA r = 8 on query, key, value and attention output, one
thread. `all` adapts the six blocks, `upper` the upper three, below which late tiling works once.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_training_step     (four minutes)
Writes  tests/benchmarks/records/training_step.json
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.data import batches, load_base_model, load_data, split, tokenize
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.train.objective import masked_risk
from tests.benchmarks import record

RATE, N_MASKS, BATCH, REPEATS = 0.5, 4, 16, 25
TARGETS = ["query", "key", "value", "attention.output.dense"]
BLOCKS = {"all": None, "upper": [3, 4, 5]}

Step = Callable[[], None]


@functools.cache
def data() -> dict[str, torch.Tensor]:
    """Sixteen sentences, padded to the longest of them."""
    rows, _ = split(load_data("movie-reviews"), BATCH, 2, seed=0)
    _, tokenizer = load_base_model("minilm-l6", 2, seed=0)
    return batches(tokenize(rows, tokenizer), BATCH, order="given")[0]


def model(blocks: str, **options: Any) -> PeftModel:
    base, _ = load_base_model("minilm-l6", 2, seed=0)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        target_modules=TARGETS,
        layers_to_transform=BLOCKS[blocks],
        init_lora_weights=False,
        **options,
    )
    return get_peft_model(base, config).train()


def plain(model: PeftModel) -> Step:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        masked_risk(model, data(), n_masks=1).backward()
        optimizer.step()

    return step


def with_masks(blocks: str, *, n_masks: int = 1, late: bool = False, **options: Any) -> Step:
    adapted = model(blocks)
    bank = attach_lora_dropout(adapted, RATE, n_masks=n_masks, seed=0, **options)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-5)
    prefix = FrozenPrefix.below_the_adapter(adapted, bank) if late else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        masked_risk(adapted, data(), n_masks=n_masks, prefix=prefix).backward()
        optimizer.step()

    return step


def sequential(blocks: str) -> Step:
    adapted = model(blocks)
    attach_lora_dropout(adapted, RATE, seed=0)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(N_MASKS):
            (masked_risk(adapted, data(), n_masks=1) / N_MASKS).backward()
        optimizer.step()

    return step


def saved_bytes(step: Step) -> int:
    """Bytes of distinct tensors that autograd keeps for backward, parameters left out."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    machine = {**record.environment(), **record.versions("torch", "transformers", "peft")}
    results: dict[str, Any] = {}
    for blocks in BLOCKS:
        steps = {
            "peft": plain(model(blocks)),
            "peft_again": plain(model(blocks)),  # what the spread of a ratio of 1 is here
            "peft_lora_dropout": plain(model(blocks, lora_dropout=RATE)),
            "one_per_batch": with_masks(blocks),
            "one_per_example": with_masks(blocks, mask_scope="example"),
            "four_tiled": with_masks(blocks, n_masks=N_MASKS),
            "four_sequential": sequential(blocks),
        }
        if blocks == "upper":
            steps["four_late_tiled"] = with_masks(blocks, n_masks=N_MASKS, late=True)
        for step in steps.values():  # warm up
            step()
        # A sequential step keeps no more than one of its passes at a time.
        kept = {n: saved_bytes(step) for n, step in steps.items() if n != "four_sequential"}
        work = {name: flops(step) for name, step in steps.items()}
        ratios = record.paired_ratios(steps, "peft", REPEATS)
        results[blocks] = {
            name: {
                **ratios[name],
                "saved_mb": kept[name] / 1e6 if name in kept else None,
                "saved_ratio": kept[name] / kept["peft"] if name in kept else None,
                "gflop": work[name] / 1e9,
                "flop_ratio": work[name] / work["peft"],
            }
            for name in steps
        }
    # Forward F; backward (1 - f) F through the adapted blocks, which for f = 0 includes all.
    f = 0.5
    limits = {
        "four_late_tiled_over_peft": (f + 2 * N_MASKS * (1 - f)) / (2 - f),
        "four_tiled_over_peft": N_MASKS,
    }
    settings = {"dropout_rate": RATE, "rows": BATCH, "tokens": data()["input_ids"].shape[1]}
    content = {"environment": machine, "settings": settings, "limits": limits, "results": results}
    print(record.write("training_step", content))


if __name__ == "__main__":
    main()

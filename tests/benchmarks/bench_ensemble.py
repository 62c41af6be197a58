"""An ensemble over masks beside the usual Monte Carlo recipe: time, FLOPs, and generation.

MiniLM-L6 on movie-review sentences, LoRA r = 8 on query, key, value and attention output, 16
members, one thread. `all` adapts the six blocks, `upper` the upper three. `ensemble` is one call of
`ensemble_predict`; `sequential` takes the same members one pass after the other, each over the
whole model; `mc_dropout` is an adapter with PEFT's `lora_dropout`, whose Dropout modules alone are
in training mode, for 16 passes.

With f the share of a pass that lies below the first adapted block, N members cannot cost less than
f + N (1 - f) passes if no more than that is shared: `limit` is N / (f + N (1 - f)).

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_ensemble     (four minutes)
        `... bench_ensemble quick` only tries everything once and writes nothing.
Writes  tests/benchmarks/records/ensemble.json
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.data import batches, load_base_model, load_data, split, tokenize
from lodrop_nn.predict.ensemble import ensemble_predict
from lodrop_nn.predict.generate import ensemble_generate, member_generate
from lodrop_nn.predict.late_tiling import FrozenPrefix
from tests.benchmarks import record

RATE, N_MASKS = 0.5, 16
TARGETS = ["query", "key", "value", "attention.output.dense"]
BLOCKS = {"all": None, "upper": [3, 4, 5]}
REPEATS = {1: 15, 8: 9, 32: 6}  # by batch size
N_WRITERS, NEW_TOKENS, WRITER_BLOCKS = 8, 32, {"all": None, "upper": [4, 5, 6, 7]}


def classifier(blocks: str, **options: Any) -> PeftModel:
    base, _ = load_base_model("minilm-l6", 2, seed=0)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        target_modules=TARGETS,
        layers_to_transform=BLOCKS[blocks],
        init_lora_weights=False,
        **options,
    )
    return get_peft_model(base, config).eval()


def sentences(n_rows: int) -> dict[str, Tensor]:
    """The shorter half of a sample of movie-review sentences, padded to the longest of them."""
    rows, _ = split(load_data("movie-reviews"), 2 * n_rows, 2, seed=0)
    _, tokenizer = load_base_model("minilm-l6", 2, seed=0)
    examples = batches(tokenize(rows, tokenizer), n_rows, order="length")
    batch = min(examples, key=lambda batch: batch["input_ids"].shape[1])
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def ways_to_predict(blocks: str, x: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    model = classifier(blocks)
    bank = attach_lora_dropout(model, RATE)
    usual = classifier(blocks, lora_dropout=RATE)
    for name, module in usual.named_modules():
        if "lora_dropout" in name and isinstance(module, nn.Dropout):
            module.train()

    def sequential() -> Tensor:
        members = []
        with torch.no_grad(), bank.fixed(N_MASKS, 0, "balanced"):
            for i in range(N_MASKS):
                with bank.members(i, i + 1):
                    members.append(model(**x).logits)
        return torch.stack(members)

    def mc_dropout() -> Tensor:
        with torch.no_grad():
            return torch.stack([usual(**x).logits for _ in range(N_MASKS)])

    return {
        "ensemble": lambda: ensemble_predict(model, x, n_masks=N_MASKS, seed=0).member_logits,
        "sequential": sequential,
        "mc_dropout": mc_dropout,
    }


def flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def share_below_the_adapter(blocks: str, x: dict[str, Tensor]) -> float:
    """f: FLOPs of the blocks below the first adapted one, over those of the base model's pass."""
    model = classifier(blocks)
    first = len(FrozenPrefix.below_the_adapter(model, attach_lora_dropout(model, RATE)).blocks)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), model.disable_adapter():
        model(**x)
    below = sum(
        sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if name.endswith(tuple(f"encoder.layer.{i}" for i in range(first)))
    )
    return below / counter.get_total_flops()


def prediction(blocks: str, n_rows: int, repeats: int) -> dict[str, Any]:
    x = sentences(n_rows)
    ways = ways_to_predict(blocks, x)
    close = torch.testing.assert_close
    close(ways["ensemble"](), ways["sequential"](), rtol=1e-3, atol=1e-4)  # warm, and the same
    ways["mc_dropout"]()
    f = share_below_the_adapter(blocks, x)
    limit = N_MASKS / (f + N_MASKS * (1 - f))
    fewer = flops(ways["sequential"]) / flops(ways["ensemble"])
    return {
        "tokens": list(x["input_ids"].shape),
        "share_below_the_adapter": round(f, 4),
        "limit": round(limit, 4),
        "flop_ratio": round(fewer, 4),
        "flop_ratio_over_limit": round(fewer / limit, 4),
        "times": record.paired_ratios(ways, "ensemble", repeats),
    }


def writer(blocks: str) -> PeftModel:
    """A random Llama of 7 million parameters."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096,
                num_attention_heads=8,
                num_key_value_heads=4,
                pad_token_id=0,
                **sizes,
            )
        )
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=8,
            target_modules=["q_proj", "v_proj"],
            layers_to_transform=WRITER_BLOCKS[blocks],
            init_lora_weights=False,
        )
        return get_peft_model(base, config).eval()


def generation(blocks: str, repeats: int) -> dict[str, Any]:
    model = writer(blocks)
    bank = attach_lora_dropout(model, RATE)
    ids = torch.randint(3, 4096, (1, 16), generator=torch.Generator().manual_seed(0))
    x = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": 4096}  # no end
    masks = {"n_masks": N_WRITERS, "seed": 0}

    def sequential() -> Tensor:
        sequences = []
        with bank.fixed(N_WRITERS, 0, "balanced"):
            for i in range(N_WRITERS):
                with bank.members(i, i + 1):
                    sequences.append(model.generate(**x, **options))
        return torch.stack(sequences)

    ways: dict[str, Callable[[], Tensor]] = {
        "members": lambda: member_generate(model, x, **masks, **options),
        "sequential": sequential,
        "ensemble": lambda: ensemble_generate(model, x, **masks, **options),
    }
    same = float((ways["members"]() == sequential()).double().mean())
    return {"tokens_that_agree": same, "times": record.paired_ratios(ways, "members", repeats)}


def main(*, quick: bool) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    machine = {**record.environment(), **record.versions("torch", "transformers", "peft")}
    results: dict[str, Any] = {"environment": machine, "n_masks": N_MASKS, "prediction": {}}
    for blocks in BLOCKS:
        for n_rows, repeats in REPEATS.items():
            found = prediction(blocks, n_rows, 1 if quick else repeats)
            results["prediction"][f"{blocks}, batch {n_rows}"] = found
    results["generation"] = {
        "members": N_WRITERS,
        "new_tokens": NEW_TOKENS,
        **{blocks: generation(blocks, 1 if quick else 7) for blocks in WRITER_BLOCKS},
    }
    print(results if quick else record.write("ensemble", results))


if __name__ == "__main__":
    main(quick="quick" in sys.argv[1:])

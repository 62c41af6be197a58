"""Eight replicas in one pass beside eight plain PEFT runs, one after the other.

MiniLM-L6 on movie-review sentences, LoRA r = 8 on query, key, value and attention output of the
upper three of six blocks, head trained too, one optimizer step each, one thread. The replicas have
LoRA Dropout at eight rates, the plain runs have none. `limit` is what FLOPs allow once the states
below the adapters are stored: (2 - f) / (2 (1 - f)), with f the counted share of the blocks below
in a forward pass.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_replicas     (three minutes)
        ... bench_replicas --smoke                                      (one round, no record)
Writes  tests/benchmarks/records/replicas.json
"""

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from lodrop_nn.data import batches, load_base_model, load_data, split, tokenize
from lodrop_nn.data.examples import Batch, Examples
from lodrop_nn.masks import MaskSettings
from lodrop_nn.train.prefix_cache import PrefixCache
from lodrop_nn.train.replica_adapters import add_replicas
from lodrop_nn.train.replica_settings import ReplicaSettings
from lodrop_nn.train.replicas import Replicas
from lodrop_nn.train.tiling import tile_batch
from tests.benchmarks import record

N_REPLICAS, BATCH_SIZES, ROUNDS = 8, (16, 4), 15
ONE_AFTER_THE_OTHER = "eight plain runs"

Step = Callable[[], None]


def model() -> PeftModel:
    base, _ = load_base_model("minilm-l6", 2, seed=0)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        target_modules=["query", "key", "value", "attention.output.dense"],
        layers_to_transform=[3, 4, 5],
        init_lora_weights=False,
    )
    return get_peft_model(base, config)


def sentences() -> Examples:
    rows, _ = split(load_data("movie-reviews"), max(BATCH_SIZES), 2, seed=0)
    _, tokenizer = load_base_model("minilm-l6", 2, seed=0)
    return tokenize(rows, tokenizer)


def start_of(cache: PrefixCache | None, batch: Batch) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if cache is None else cache.replay(batch)


def inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def plain_runs(examples: Examples, batch: Batch, *, cached: bool) -> Step:
    adapted = model()
    cache = PrefixCache(adapted, examples) if cached else None
    trained = [parameter for parameter in adapted.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def steps() -> None:
        for _ in range(N_REPLICAS):  # the numbers do not matter to the time
            optimizer.zero_grad(set_to_none=True)
            with start_of(cache, batch):
                logits = adapted(**inputs(batch)).logits
            cross_entropy(logits, batch["labels"]).backward()
            optimizer.step()

    return steps


def replicas(examples: Examples, batch: Batch, *, cached: bool) -> Step:
    adapted = model()
    laws = {f"p{k}": MaskSettings(0.1 * k, seed=k) for k in range(N_REPLICAS)}
    add_replicas(adapted, laws)
    cache = PrefixCache(adapted, examples) if cached else None
    together = Replicas(adapted.train(), {name: ReplicaSettings() for name in laws})
    optimizer, tiled = together.optimizer(), tile_batch(batch, N_REPLICAS)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with together.active(), start_of(cache, tiled):
            logits = adapted(**inputs(tiled)).logits
        losses = cross_entropy(logits, tiled["labels"], reduction="none")
        together.objective(losses.unflatten(0, (N_REPLICAS, -1))).sum().backward()
        optimizer.step()

    return step


def share_below(examples: Examples, batch: Batch) -> float:
    """f, the share of a forward pass that lies below the adapters, in FLOPs."""
    adapted = model().eval()
    cache = PrefixCache(adapted, examples)
    counts = []
    for start in (contextlib.nullcontext(), cache.replay(batch)):
        with torch.no_grad(), start, FlopCounterMode(display=False) as counter:
            adapted(**inputs(batch))
        counts.append(counter.get_total_flops())
    return 1 - counts[1] / counts[0]


def compared(examples: Examples, batch_size: int, rounds: int) -> dict[str, Any]:
    batch = batches(examples, batch_size, order="given")[0]
    functions = {
        ONE_AFTER_THE_OTHER: plain_runs(examples, batch, cached=False),
        f"{ONE_AFTER_THE_OTHER}, states stored": plain_runs(examples, batch, cached=True),
        "eight replicas in one pass": replicas(examples, batch, cached=False),
        "eight replicas in one pass, states stored": replicas(examples, batch, cached=True),
    }
    for function in functions.values():  # the first step allocates
        function()
    share = share_below(examples, batch)
    return {
        "tokens": batch["input_ids"].numel(),
        "share_below": share,
        "limit": (2 - share) / (2 * (1 - share)),
        # Time over that of the plain runs: 0.5 is twice as fast.
        "times": record.paired_ratios(functions, ONE_AFTER_THE_OTHER, rounds),
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    smoke = "--smoke" in sys.argv[1:]
    machine = {**record.environment(), **record.versions("torch", "transformers", "peft")}
    examples = sentences()
    results = {
        f"batch of {size}": compared(examples, size, 1 if smoke else ROUNDS) for size in BATCH_SIZES
    }
    print(results if smoke else record.write("replicas", {"environment": machine, **results}))


if __name__ == "__main__":
    main()

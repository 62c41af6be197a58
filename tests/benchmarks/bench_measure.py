"""What a full measurement costs, part by part, against n and against the number of parameters.

Run     python -m tests.benchmarks.bench_measure     (one core, half an hour)
Writes  tests/benchmarks/records/measure.json

Adapters of MiniLM's upper three blocks at p = 0.5, trained for one epoch: where the adapter
stands decides how many gradients a refit takes, and nothing else. Seconds are those of the
processor, on one thread; each size is measured once. An exponent is the slope of the line through
the logarithms.
"""

import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from lodrop_nn.config import RunConfig
from lodrop_nn.data import batches, load_base_model, load_data, split, tokenize
from lodrop_nn.measure import MeasureSettings, measure
from lodrop_nn.train.finetune import build_adapter, fine_tune
from tests.benchmarks import record

SIZES = (64, 128, 256)
RANKS = (2, 8, 32)
FEW = 64  # training rows where the rank varies
N_TEST = 128


def seconds_of(config: RunConfig) -> tuple[dict[str, float], int]:
    """Processor seconds of each stage, and the number of trained parameters."""
    data = load_data(config.data)
    train_rows, test_rows = split(data, config.n_train, config.n_test, config.seed)
    base, tokenizer = load_base_model(config.model, data.n_classes, config.seed)
    train, test = tokenize(train_rows, tokenizer), tokenize(test_rows, tokenizer)
    model, bank = build_adapter(config, base)
    fine_tune(model, bank, train, config)
    spent: dict[str, float] = defaultdict(float)
    now = {"stage": "", "at": time.process_time()}

    def on_stage(stage: str, _: float) -> None:
        at = time.process_time()
        if now["stage"]:
            spent[now["stage"]] += at - now["at"]
        now.update(stage=stage, at=at)

    found = measure(
        model,
        bank,
        batches(train, 16, order="length"),
        batches(test, 8, order="length"),
        MeasureSettings(),
        config=config.as_json(),
        run_id=config.run_id,
        environment={},
        vote_shares=test_rows.vote_shares,
        on_stage=on_stage,
    )
    return dict(spent), found.n_parameters


def exponent(at: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log size."""
    return float(np.polyfit(np.log(at), np.log(seconds), 1)[0])


def growth(runs: list[dict[str, Any]], by: str) -> dict[str, float]:
    """Exponents of the whole and of each stage that takes a hundredth of it or more."""
    at = [run[by] for run in runs]
    whole = [sum(run["seconds"].values()) for run in runs]
    stages = [s for s, t in runs[-1]["seconds"].items() if t >= 0.01 * whole[-1]]
    parts = {stage: exponent(at, [run["seconds"][stage] for run in runs]) for stage in stages}
    return {"whole": exponent(at, whole), **parts}


def main() -> None:
    torch.set_num_threads(1)
    environment = record.environment() | record.versions("torch", "transformers", "peft")
    runs: dict[str, list[dict[str, Any]]] = {"n_train": [], "n_parameters": []}
    done: dict[tuple[int, int], dict[str, Any]] = {}
    wanted = [("n_train", n, 8) for n in SIZES] + [("n_parameters", FEW, r) for r in RANKS]
    for axis, n_train, rank in wanted:
        if (n_train, rank) not in done:
            config = RunConfig(
                dropout_rate=0.5, n_train=n_train, n_test=N_TEST, rank=rank, epochs=1
            )
            seconds, n_parameters = seconds_of(config)
            done[n_train, rank] = {
                "n_train": n_train,
                "rank": rank,
                "n_parameters": n_parameters,
                "seconds": seconds,
            }
            print(n_train, rank, n_parameters, {k: round(v, 1) for k, v in seconds.items()})
        runs[axis].append(done[n_train, rank])
    results = {
        "environment": environment,
        "seconds_are": "processor time on one thread, one measurement per size",
        "n_test": N_TEST,
        "runs": runs,
        "exponents": {axis: growth(of, axis) for axis, of in runs.items()},
    }
    record.write("measure", results)


if __name__ == "__main__":
    main()

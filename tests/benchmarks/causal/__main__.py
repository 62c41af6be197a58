"""Run the arms; see the package."""

import argparse
import copy
import hashlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lodrop_nn.data import TextClassificationData, load_movie_reviews
from lodrop_nn.data.smollm2 import load_language_model
from tests.benchmarks.causal import evaluate, problem, train
from tests.benchmarks.quality import records

RUNS = records.ROOT / "runs" / "causal"
# None is the model before fine-tuning.
RATES: tuple[float | None, ...] = (None, 0.0, 0.5)
SEEDS = range(5)
SETTING = train.Setting(
    n_train=96,
    n_test=128,
    n_blocks=6,
    epochs=8,
    traced=(2, 4),
    batch_size=8,
    learning_rate=4e-3,
    n_masks=8,
)
Run = tuple[int, float | None]


def config_of(run: Run, setting: train.Setting) -> dict[str, Any]:
    """All that defines a run."""
    seed, rate = run
    return {
        "seed": seed,
        "dropout_rate": rate,
        "model": "smollm2-135m, dequantized from 4-bit (Q4_1)",
        "data": "movie-reviews",
        "sentence_tokens": [problem.SHORTEST, problem.LONGEST],
        "prompt": [problem.BEFORE, problem.AFTER, list(problem.WORDS)],
        "target_modules": list(train.TARGETS),
        "rank": train.RANK,
        "lora_alpha": train.LORA_ALPHA,
        "mask_scope": "example",
        "mask_law": "balanced",
        "member_law": "balanced",
        "member_seed": evaluate.MEMBER_SEED,
        "smoothing": evaluate.SMOOTHING,
        "precision": "fp32",
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(setting).items()},
    }


def results_of(task: train.Problem, finished: train.Finished) -> dict[str, Any]:
    """Scores, and what the run cost."""
    rows, found = task.rows, finished.outputs
    vocabulary = task.model.get_base_model().config.vocab_size
    return {
        "scores": {name: evaluate.scores(found[name], rows[name]) for name in rows},
        "language": evaluate.measurements(found, rows, vocabulary),
        "trace": {
            name.removeprefix("test."): evaluate.scores(each, rows["test"])["mean"]
            for name, each in found.items()
            if name.startswith("test.")
        },
        "epoch_losses": finished.epoch_losses,
        "seconds": {**finished.seconds, "stored_states": task.prefix_seconds},
        "n_steps": finished.n_steps,
        "n_parameters": sum(p.numel() for p in task.trained.values()),
        "n_tokens": {name: sum(map(len, each.examples.input_ids)) for name, each in rows.items()},
    }


def run_all(
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    data: TextClassificationData,
    runs: Sequence[Run],
    setting: train.Setting,
    folder: Path,
    *,
    provenance: Mapping[str, Any],
    say: Callable[[str], None],
    minutes: float = float("inf"),
) -> None:
    """Finish the runs that have no record, in their order.

    Args:
        load: Gives the base model and its tokenizer.
        data: Reviews.
        runs: Seeds and dropout rates.
        setting: How to train.
        folder: Where records go.
        provenance: Put into each record.
        say: Gets one line per run.
        minutes: Processor-minutes after which no run begins.
    """
    todo = [run for run in runs if records.read(folder, _name(run, setting)) is None]
    if not todo:
        return
    begun = time.process_time()
    base, tokenizer = load()
    pool = problem.short_sentences(data, tokenizer)
    task: train.Problem | None = None
    spent: dict[str, list[float]] = {}
    for place, (seed, rate) in enumerate(todo):
        if (time.process_time() - begun) / 60 > minutes:
            say(f"{len(todo) - place} runs left for another call: {minutes} minutes are over")
            return
        if task is None or task.seed != seed:
            rows = problem.divided(pool, tokenizer, setting.n_train, setting.n_test, seed)
            task = train.Problem(copy.deepcopy(base), rows, setting, seed)
        start = time.process_time()
        finished = task.untrained() if rate is None else task.run(rate)
        results = results_of(task, finished)
        arrays = {
            f"{rows}.{key}": value.astype("float32")
            for rows, each in finished.outputs.items()
            for key, value in each.items()
        }
        config = config_of((seed, rate), setting)
        records.write(folder, config, results, arrays, finished.weights, provenance)
        spent.setdefault(_kind(rate), []).append(time.process_time() - start)
        say(_line(place + 1, todo, results, spent))


def _name(run: Run, setting: train.Setting) -> str:
    return records.run_id(config_of(run, setting))


def _kind(rate: float | None) -> str:
    return "base" if rate is None else "members" if rate else "plain"


def _line(
    done: int, todo: Sequence[Run], results: Mapping[str, Any], spent: Mapping[str, list[float]]
) -> str:
    """What a run found, and processor-minutes left as the runs so far cost."""
    seed, rate = todo[done - 1]
    costs = {kind: sum(each) / len(each) for kind, each in spent.items()}
    left = sum(costs.get(_kind(r), max(costs.values())) for _, r in todo[done:])
    train_, test = (results["scores"][name]["ensemble"] for name in ("train", "test"))
    return (
        f"[{done}/{len(todo)}] seed {seed}, p = {rate}: {spent[_kind(rate)][-1]:.0f} s; ensemble "
        f"text {train_['text_nll']:.3f} -> {test['text_nll']:.3f}, "
        f"label {train_['label_nll']:.3f} -> {test['label_nll']:.3f}, "
        f"accuracy {test['label_accuracy']:.3f}; {left / 60:.0f} min left"
    )


def _provenance(commit: str | None) -> dict[str, Any]:
    """The commit at the start (the tree may differ) and a hash of the sources that run."""
    if commit is None:
        command = ["git", "-C", str(records.ROOT), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    digest = hashlib.sha256(records.source_hash().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return {"commit": commit, "source_sha256": digest.hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.causal")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument(
        "--rates",
        nargs="*",
        default=RATES,
        help="'base' is the model as it comes",
        type=lambda text: None if text == "base" else float(text),
    )
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--commit", default=None, help="where the tree has no git repository")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after")
    for name in ("epochs", "n-train", "n-test", "batch-size"):
        parser.add_argument(f"--{name}", type=int, default=getattr(SETTING, name.replace("-", "_")))
    parser.add_argument("--learning-rate", type=float, default=SETTING.learning_rate)
    parser.add_argument("--traced", type=int, nargs="*", default=SETTING.traced)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    setting = replace(
        SETTING,
        epochs=options.epochs,
        n_train=options.n_train,
        n_test=options.n_test,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        traced=tuple(options.traced),
    )
    run_all(
        lambda: load_language_model("smollm2-135m"),
        load_movie_reviews(),
        [(seed, rate) for seed in options.seeds for rate in options.rates],
        setting,
        options.out,
        provenance=_provenance(options.commit),
        say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        minutes=options.minutes,
    )


if __name__ == "__main__":
    main()

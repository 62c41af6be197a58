"""Variance of a mask ensemble's prediction under i.i.d., balanced and orthogonal masks.

A MiniLM adapter, trained on movie reviews at p, predicts held-out rows with ensembles of N members.
Over draws of the masks the mean probability of class 1 varies; its variance, averaged over rows, is
compared with that of N i.i.d. masks, which is the variance of one member over N. Every batch of
rows has draws of its own, so that few draws per row are many in all; intervals are jackknives over
batches.

Run     OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_mask_variance
        Interrupt it at any time: what was measured lies in runs/mask_variance and is kept.
Writes  tests/benchmarks/records/mask_variance.json
"""

import itertools
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from scipy import stats

from lodrop_nn.config import RunConfig
from lodrop_nn.data import batches, load_base_model, load_data, split, tokenize
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_nn.train.finetune import build_adapter, fine_tune
from lodrop_nn.train.tiling import tile_batch
from tests.benchmarks import record

RATES, LAWS, SIZES, LEVEL = (0.25, 0.5), ("iid", "balanced", "orthogonal"), (4, 8, 16), 0.95
# A law has 8 draws of 4 members, 4 of 8 and 2 of 16 for every batch.
ROWS, BATCH, MEMBERS = 160, 4, 32
DRAWS = [("iid", SIZES[0]), *((law, n) for law in LAWS[1:] for n in SIZES)]
KEPT = Path("runs/mask_variance")

Batch = dict[str, torch.Tensor]


def trained(config: RunConfig, weights: Path) -> tuple[PeftModel, MaskBank, list[Batch]]:
    """The fine-tuned adapter, kept in a file, and the held-out batches."""
    data = load_data(config.data)
    train_rows, test_rows = split(data, config.n_train, config.n_test, config.seed)
    base, tokenizer = load_base_model(config.model, data.n_classes, config.seed)
    model, bank = build_adapter(config, base)
    if not weights.exists():
        fine_tune(model, bank, tokenize(train_rows, tokenizer), config)
        tuned = {name: each for name, each in model.named_parameters() if each.requires_grad}
        torch.save(tuned, weights.with_suffix(".part"))
        weights.with_suffix(".part").replace(weights)
    model.load_state_dict(torch.load(weights), strict=False)
    return model, bank, batches(tokenize(test_rows, tokenizer), BATCH, order="length")


@torch.no_grad()
def member_probabilities(
    model: PeftModel, bank: MaskBank, prefix: FrozenPrefix, batch: Batch, first_seed: int
) -> dict[str, np.ndarray]:
    """Probability of class 1, shape (draws, N, rows), by law and N."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    seeds, found = itertools.count(first_seed), {}
    for law, n_masks in DRAWS:
        tiled, logits = tile_batch(inputs, n_masks), []
        for seed in itertools.islice(seeds, MEMBERS // n_masks):
            with bank.fixed(n_masks, seed, mask_law=law), prefix.shared(n_masks):
                logits.append(model(**tiled).logits.double().unflatten(0, (n_masks, -1)))
        found[f"{law} {n_masks}"] = torch.stack(logits).softmax(-1)[..., 1].numpy()
    return found


def measure(rate: float) -> list[dict[str, np.ndarray]]:
    """Probabilities (draws, N, rows) of each batch at one rate."""
    config = RunConfig(dropout_rate=rate, n_test=ROWS)
    folder = KEPT / config.run_id
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i}.npz" for i in range(ROWS // BATCH)]
    if not all(file.exists() for file in files):
        model, bank, held_out = trained(config, folder / "adapter.pt")
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        for i, (file, batch) in enumerate(zip(files, held_out, strict=True)):
            if not file.exists():
                found = member_probabilities(model, bank, prefix, batch, 1000 * i)
                with file.with_suffix(".part").open("wb") as stream:
                    np.savez(stream, **found)
                file.with_suffix(".part").replace(file)
    return [dict(np.load(file)) for file in files]


def compared(parts: list[dict[str, np.ndarray]], law: str, n_masks: int) -> dict[str, float]:
    """The variance of a law's ensembles over the i.i.d. one, and what goes with it."""
    ensembles = [part[f"{law} {n_masks}"].mean(1) for part in parts]  # (draws, rows)
    members = [part[f"iid {SIZES[0]}"].reshape(MEMBERS, -1) for part in parts]
    own = np.array([each.var(0, ddof=1).mean() for each in ensembles])
    independent = np.array([each.var(0, ddof=1).mean() for each in members]) / n_masks
    value, n = own.mean() / independent.mean(), len(parts)
    left_out = np.log((own.sum() - own) / (independent.sum() - independent))
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    shift = [a.mean(0) - b.mean(0) for a, b in zip(ensembles, members, strict=True)]
    noise = (own.mean() + independent.mean()) * n_masks / MEMBERS
    return {
        "variance_ratio": round(value, 4),
        "low": round(value * np.exp(-half), 4),
        "high": round(value * np.exp(half), 4),
        "rmse": round(np.sqrt(own.mean()), 5),
        "rmse_iid": round(np.sqrt(independent.mean()), 5),
        "iid_members_of_equal_rmse": round(n_masks / value, 1),
        # Squared difference of the law's mean prediction to that of i.i.d. masks, over what noise
        # makes of it: about 1 if the law is unbiased (0 for these masks against themselves).
        "squared_shift_over_noise": round((np.stack(shift) ** 2).mean() / noise, 3),
    }


def main() -> None:
    machine = {
        **record.environment(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }
    rates: dict[str, Any] = {}
    for rate in RATES:
        parts = measure(rate)
        rates[f"p = {rate:g}"] = {f"{law}, N = {n}": compared(parts, law, n) for law, n in DRAWS}
    settings = {"rows": ROWS, "rows_per_batch": BATCH, "members": MEMBERS, "level": LEVEL}
    results = {"environment": machine, "settings": settings, "rates": rates}
    print(record.write("mask_variance", results))


if __name__ == "__main__":
    main()

"""Runs of a sweep that can be trained in one pass, and their training.

Replicas share the rows, their order, the base with its head and the start of the factors, all of
which the seed and the size of a run decide. So only runs of one seed are trained together, and only
what :data:`MAY_DIFFER` names may differ: there, each ends where a run of its own would have, up to
rounding.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lodrop_nn.sweep.grid import SweepRun

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from lodrop_nn.sweep.training import Progress

# Field of a configuration, and the value that it is compared at.
MAY_DIFFER: Mapping[str, Any] = {
    "dropout_rate": 0.0,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "rescale": True,
    "mask_law": "iid",
    "train_A": True,
}


def units_of(runs: Sequence[SweepRun], *, max_replicas: int = 8) -> list[tuple[SweepRun, ...]]:
    """Runs in groups that can be trained in one pass, in the order of their first members.

    Full measurements stay alone: they cost more than the training that could be shared.

    Args:
        runs: Runs.
        max_replicas: Runs per group, >= 1; memory grows with it.

    Returns:
        Each run in one group.

    Raises:
        ValueError: If ``max_replicas`` is below 1.

    Example:
        >>> from lodrop_nn.config import RunConfig
        >>> rates = [SweepRun(config=RunConfig(dropout_rate=p)) for p in (0.1, 0.3, 0.5)]
        >>> [len(unit) for unit in units_of(rates, max_replicas=2)]
        [2, 1]
    """
    if max_replicas < 1:
        raise ValueError(f"`max_replicas` must be >= 1, got {max_replicas!r}.")
    groups: dict[SweepRun, list[SweepRun]] = {}
    for run in runs:
        shared = run
        if run.measure == "scores":
            shared = replace(run, config=replace(run.config, **MAY_DIFFER))
        groups.setdefault(shared, []).append(run)
    return [
        tuple(group[start : start + max_replicas])
        for group in groups.values()
        for start in range(0, len(group), max_replicas)
    ]


def run_unit(
    runs: Sequence[SweepRun],
    *,
    device: "torch.device | str | None" = None,
    on_progress: "Progress | None" = None,
) -> list[dict[str, Any]]:
    """The records of one run, or of runs that are trained in one pass.

    Args:
        runs: One group of :func:`units_of`.
        device: Where; None takes the GPU where there is one.
        on_progress: Called with the fraction of the fine-tuning that is done.

    Returns:
        The content of their records, in the order of ``runs``.

    Raises:
        ValueError: If the runs are not of one group.
    """
    from lodrop_nn.sweep.training import run_one

    if len(units_of(runs, max_replicas=len(runs))) != 1:
        raise ValueError("`runs` must be one group of `units_of`, got runs of several.")
    if len(runs) == 1:
        return [run_one(runs[0], device=device, on_progress=on_progress)]
    return _train_together(runs, device, on_progress)


def _train_together(
    runs: Sequence[SweepRun], device: "torch.device | str | None", on_progress: "Progress | None"
) -> list[dict[str, Any]]:
    from lodrop_nn.adapter.attach import mask_bank
    from lodrop_nn.sweep.training import Material, Scorer, score_record
    from lodrop_nn.train.replica_training import train_replicas
    from lodrop_nn.train.replicas import Replicas

    first = runs[0].config
    material = Material(first, device)
    model, names = _replicated(runs, material.base)
    model.to(material.device)
    material.store_prefixes(model)
    settings = {name: _settings(run) for name, run in zip(names, runs, strict=True)}
    replicas = Replicas(model, settings)
    scorers = {
        name: Scorer(run, material, model, mask_bank(model, name), replicas.parameters(name))
        for name, run in zip(names, runs, strict=True)
    }
    diverged_after: dict[str, int] = {}

    def on_step(step: int, n_steps: int, losses: Mapping[str, float]) -> None:
        for name, loss in losses.items():
            if not math.isfinite(loss):
                diverged_after.setdefault(name, step - 1)
        if scorers[names[0]].is_due(step):
            for name in (name for name in names if name not in diverged_after):
                model.set_adapter(name)
                scorers[name].score(step)
                if scorers[name].diverged_after is not None:
                    diverged_after[name] = step
            # Training goes on from the first: it takes all up again when another one is active.
            model.set_adapter(names[-1])
        if on_progress is not None:
            on_progress(step / n_steps)

    start = time.perf_counter()
    results = train_replicas(
        model,
        settings,
        material.train,
        epochs=first.epochs,
        batch_size=first.batch_size,
        precision=first.precision,
        prefix=material.train_prefix,
        on_step=on_step,
    )
    seconds = time.perf_counter() - start - sum(each.seconds for each in scorers.values())
    return [
        score_record(
            run,
            material,
            scorers[name],
            losses=() if name in diverged_after else results[name].epoch_objectives,
            diverged_after=diverged_after.get(name),
            train_seconds=seconds / len(runs),
            n_together=len(runs),
        )
        for run, name in zip(runs, names, strict=True)
    ]


def _replicated(runs: Sequence[SweepRun], base: Any) -> "tuple[PeftModel, list[str]]":
    """A model with an adapter for each run, all where a run of its own would start."""
    from lodrop_nn.masks import MaskSettings
    from lodrop_nn.train.finetune import build_adapter
    from lodrop_nn.train.replica_adapters import add_replicas

    model, _ = build_adapter(runs[0].config, base)
    names = ["default", *(f"run{number}" for number in range(1, len(runs)))]
    masks = {
        name: MaskSettings(
            config.dropout_rate,
            n_masks=config.n_masks_train,
            mask_scope=config.mask_scope,
            mask_law=config.mask_law,
            rescale=config.rescale,
            seed=config.seed,
        )
        for name, config in zip(names, (run.config for run in runs), strict=True)
    }
    add_replicas(model, {name: masks[name] for name in names[1:]})
    return model.eval(), names


def _settings(run: SweepRun) -> Any:
    from lodrop_nn.train.replica_settings import ReplicaSettings

    return ReplicaSettings(
        learning_rate=run.config.learning_rate,
        weight_decay=run.config.weight_decay,
        train_A=run.config.train_A,
        order_seed=run.config.seed,
    )

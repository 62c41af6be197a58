"""The ensemble's prediction of a data set, batch by batch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.progress import track

from lodrop_nn.config import MaskLaw
from lodrop_nn.predict.ensemble import ensemble_predict
from lodrop_nn.predict.prediction import EnsemblePrediction


def ensemble_predict_batches(
    model: PeftModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    mask_law: MaskLaw = "balanced",
    chunk: int | None = None,
    progress: bool = False,
) -> Iterator[EnsemblePrediction]:
    """Predict batch after batch with the same members.

    Batches may differ in their number of rows and in their length. Between two of them the model
    is in its own mode, so the loop over the result may use it.

    Args:
        model: A model whose adapter has LoRA Dropout.
        batches: What the model reads, for example a ``DataLoader``.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter whose masks are meant; it must be active and not merged.
        mask_law: How the members depend on each other.
        chunk: Members per forward pass, >= 1; None chooses by memory and cache, and takes one where
            the model has a layer that serves no more.
        progress: Whether to draw a progress bar on standard error.

    Yields:
        The prediction of each batch, on the CPU, when it is asked for;
        :meth:`EnsemblePrediction.concatenate` makes one of those of a classifier.

    Raises:
        ValueError: As :func:`~lodrop_nn.predict.ensemble.ensemble_predict` does.

    Example:
        >>> import torch
        >>> from lodrop_nn import attach_lora_dropout
        >>> from peft import LoraConfig, get_peft_model
        >>> from torch import nn
        >>> config = LoraConfig(r=2, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
        >>> _ = attach_lora_dropout(model, 0.5)
        >>> batches = [{"input": torch.ones(rows, 4)} for rows in (5, 2)]
        >>> predictions = ensemble_predict_batches(model, batches, n_masks=8, seed=0)
        >>> EnsemblePrediction.concatenate(list(predictions)).mean_probabilities.shape
        torch.Size([7, 3])
    """
    shown = batches
    if progress:
        console = Console(stderr=True)
        shown = track(batches, f"Ensemble of {n_masks}", console=console)
    for batch in shown:
        prediction = ensemble_predict(
            model,
            batch,
            n_masks=n_masks,
            seed=seed,
            adapter_name=adapter_name,
            mask_law=mask_law,
            chunk=chunk,
        )
        yield EnsemblePrediction(prediction.member_logits.cpu())

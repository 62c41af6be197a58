"""What an adapter says of rows: log-probabilities of their tokens, logits of the label words."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from lodrop_nn import (
    EnsemblePrediction,
    PrefixCache,
    SequenceScores,
    ensemble_predict,
    mean_predict,
)
from lodrop_nn.data import batches
from lodrop_nn.measure.calibration import brier_scores, calibration_error
from lodrop_nn.measure.language import language_measurement
from lodrop_nn.measure.language_losses import SequenceLosses
from lodrop_theory.records import PREDICTORS
from tests.benchmarks.causal.problem import IGNORED, Rows

BATCH, MEMBER_SEED, SMOOTHING, N_BINS = 8, 0, 0.05, 15
Arrays = Mapping[str, NDArray[np.floating]]


@torch.no_grad()
def outputs(
    model: PeftModel, rows: Rows, stored: PrefixCache, n_masks: int
) -> dict[str, NDArray[np.floating]]:
    """Log-probabilities and logits of all rows, in their order.

    Args:
        model: The adapted model.
        rows: The rows.
        stored: What lies below the adapter for them.
        n_masks: Members, the same for every row; 0 for the mean predictor alone.

    Returns:
        "mean.tokens" (n, tokens), of each predicted token, else 0, and "mean.words" (n, 2), logits
        of the two label words; "members.tokens" and "members.words" with an axis of members
        before.
    """
    n, width = len(rows.examples), max(map(len, rows.examples.input_ids))
    found = {"mean.tokens": np.zeros((n, width)), "mean.words": np.zeros((n, 2))}
    if n_masks:
        found["members.tokens"] = np.zeros((n_masks, n, width))
        found["members.words"] = np.zeros((n_masks, n, 2))
    for batch in batches(rows.examples, BATCH, order="length"):
        targets, logits = rows.targets(batch), {}
        with stored.replay(batch), predicted_only(model, targets):
            logits["mean"] = mean_predict(model, batch)
            if n_masks:
                logits["members"] = ensemble_predict(
                    model, batch, n_masks=n_masks, seed=MEMBER_SEED, chunk=1
                ).member_logits
        # The word is the last token of its row, so the logits before it tell of both words.
        last = (targets != IGNORED).sum(1).cumsum(0) - 1
        row, token = (targets != IGNORED).nonzero(as_tuple=True)
        index = batch["index"]
        for name, each in logits.items():
            log_probs = torch.stack([_chosen(x, targets) for x in each.view(-1, *each.shape[-2:])])
            words = each[..., last, :][..., list(rows.words)].double()
            shape = (*each.shape[:-2], -1)
            found[f"{name}.tokens"][..., index[row], token] = log_probs.view(shape).numpy()
            found[f"{name}.words"][..., index, :] = words.numpy()
    return found


@contextmanager
def predicted_only(model: PeftModel, targets: Tensor) -> Iterator[None]:
    """Logits (predicted tokens, V) instead of (b, tokens, V): the head is most of the cost here.

    Args:
        model: A causal model.
        targets: Labels of the batch (b, tokens), as :meth:`Rows.targets` makes them.
    """
    read = torch.nn.functional.pad(targets[:, 1:] != IGNORED, (0, 1))
    head = model.get_base_model().lm_head
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][read],))
    try:
        yield
    finally:
        handle.remove()


def _chosen(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of the predicted tokens."""
    chosen = targets[targets != IGNORED]
    return logits.log_softmax(-1).gather(1, chosen[:, None]).squeeze(1).double()


def scores(found: Arrays, rows: Rows) -> dict[str, dict[str, float]]:
    """Scores of each predictor that was run, by name.

    Of the sentences' tokens "text_nll", nats per token, and "text_perplexity", its exponential. Of
    the label under a softmax over the two words "label_nll", "label_accuracy", "label_ece" and
    "label_brier"; "word_nll" is that of the word under the softmax over all tokens.
    """
    text, labels = _text(rows), np.array(rows.examples.labels)
    n_tokens = int(text.sum())
    made = {}
    for predictor in PREDICTORS:
        source = "mean" if predictor == "mean" else "members"
        if f"{source}.tokens" not in found:
            continue
        tokens = np.atleast_3d(found[f"{source}.tokens"].T).T  # with an axis of members
        words = torch.from_numpy(np.atleast_3d(found[f"{source}.words"].T).T)
        probabilities = EnsemblePrediction(words).member_probabilities.numpy()
        if predictor == "ensemble":
            tokens = np.logaddexp.reduce(tokens, axis=0, keepdims=True) - math.log(len(tokens))
            probabilities = probabilities.mean(0, keepdims=True)
        of_text = -np.where(text, tokens, 0.0).sum((1, 2)) / n_tokens
        of_word = -np.stack([tokens[:, row, at] for row, at in enumerate(_word_places(rows))], 1)
        right = probabilities[:, np.arange(len(labels)), labels]
        made[predictor] = {
            "text_nll": float(of_text.mean()),
            "text_perplexity": float(np.exp(of_text.mean())),
            "label_nll": float(-np.log(right).mean()),
            "label_accuracy": float((probabilities.argmax(-1) == labels).mean()),
            "label_ece": calibration_error(probabilities, labels, n_bins=N_BINS),
            "label_brier": float(brier_scores(probabilities, labels).mean()),
            "word_nll": float(of_word.mean()),
        }
    return made


def measurements(found: Mapping[str, Arrays], rows: Mapping[str, Rows], vocabulary: int) -> Any:
    """The text's `LanguageMeasurement` of each predictor, as JSON: risks with their intervals."""
    losses = {name: _losses(found[name], rows[name], vocabulary) for name in ("train", "test")}
    return {
        predictor: asdict(
            language_measurement(losses["train"], losses["test"], predictor, all_train=True)
        )
        for predictor in PREDICTORS
    }


def _losses(found: Arrays, rows: Rows, vocabulary: int) -> SequenceLosses:
    text = torch.from_numpy(_text(rows))
    log_probs = SequenceScores(
        member_token_log_probs=torch.from_numpy(found["members.tokens"]) * text,
        mean_token_log_probs=torch.from_numpy(found["mean.tokens"]) * text,
        is_scored=text,
    )
    by_predictor = {
        "gibbs": log_probs.member_token_log_probs,
        "ensemble": log_probs.ensemble_token_log_probs[None],
        "mean": log_probs.mean_token_log_probs[None],
    }

    def mean_over_tokens(losses: Tensor) -> NDArray[np.float64]:
        return np.asarray(torch.where(text, losses, 0.0).sum(-1) / log_probs.n_tokens)

    floor = SMOOTHING / vocabulary
    return SequenceLosses(
        nll={p: mean_over_tokens(-logs) for p, logs in by_predictor.items()},
        smoothed={
            p: mean_over_tokens(-torch.log((1 - SMOOTHING) * logs.exp() + floor))
            for p, logs in by_predictor.items()
        },
        n_tokens=log_probs.n_tokens.numpy(),
    )


def _word_places(rows: Rows) -> list[int]:
    return [len(ids) - 1 for ids in rows.examples.input_ids]


def _text(rows: Rows) -> NDArray[np.bool_]:
    """Where the tokens of the sentences are, shape (n, tokens)."""
    ends = np.array(_word_places(rows))[:, None] + 1 - rows.n_after
    place = np.arange(max(map(len, rows.examples.input_ids)))
    return (place >= rows.start) & (place < ends)

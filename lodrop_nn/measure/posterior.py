"""The randomized adapter of the PAC-Bayes bounds, measured for any trained adapter."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from lodrop_nn.certify.posterior import NoisyPart, drawn, noisy_parts
from lodrop_nn.certify.risk import kl_estimate, monte_carlo_estimate, smoothed_interval
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.masks.settings import check_count, check_seed
from lodrop_nn.measure.evaluation import Batch, count_rows, model_inputs, only_tokens_read
from lodrop_nn.predict.late_tiling import FrozenPrefix
from lodrop_theory.losses import smoothed_cross_entropy
from lodrop_theory.records import PosteriorPoint

Float64Array = NDArray[np.float64]
POSTERIOR_STREAM = 5  # key of the random stream; 0 to 4 are those of masks and of a run


def posterior(
    model: PeftModel,
    bank: MaskBank,
    batches: Sequence[Batch],
    *,
    noise_stds: Sequence[float],
    n_passes: int,
    seed: int,
    smoothing: float,
    initial: Mapping[str, Tensor] | None = None,
    level: float = 0.95,
    adapter_name: str = "default",
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[PosteriorPoint, ...]:
    """The randomized adapter over a grid of noise scales: divergence from the prior and risks.

    One draw of masks and noise per batch and pass, for layers of every kind; what lies below the
    adapter is computed once per batch. The same noise, scaled, serves every scale.

    Args:
        model: Adapted classifier; its values and modes come back unchanged.
        bank: The masks of its adapter.
        batches: The training examples.
        noise_stds: Scales sigma > 0 of the noise in stored entries, the same for all trained
            parameters.
        n_passes: Passes over the examples per scale, >= 1.
        seed: Seed >= 0 of masks and noise.
        smoothing: a in (0, 1) of the smoothed cross-entropy.
        initial: Centers of the prior by parameter, independent of the examples; None takes
            :func:`~lodrop_nn.certify.posterior.initial_values`.
        level: Coverage of the intervals over the draws, in (0, 1).
        adapter_name: The adapter.
        on_step: Called with the passes over a batch that are done, and all of them.

    Returns:
        One point per scale, in their order. A choice of the scale after the risks are seen is a
        choice among as many priors (``n_priors`` of
        :class:`~lodrop_theory.inputs.PacBayesInputs`).

    Raises:
        ValueError: If an argument is outside its range, or nothing is trained.
    """
    check_count("n_passes", n_passes)
    check_seed("seed", seed)
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level!r}.")
    if not noise_stds:
        raise ValueError(f"`noise_stds` must hold at least one scale, got {noise_stds!r}.")
    count_rows(batches)
    points = [
        noisy_parts(model, bank, std, initial=initial, adapter_name=adapter_name)
        for std in noise_stds
    ]
    sizes = [len(batch["labels"]) for batch in batches for _ in range(n_passes)]
    losses = np.empty((2, len(points), len(sizes)))
    done, n_steps, n_classes = 0, len(points) * len(sizes), 0
    with torch.no_grad(), evaluation_mode(model), only_tokens_read(model, batches):
        prefix = FrozenPrefix.below_the_adapter(model, bank)
        # Blocks with noise of their own (trained biases, say) compute something else in each draw.
        prefix.blocks = [b for b in prefix.blocks if not any(map(_is_trained, b.parameters()))]
        for group in range(len(sizes)):
            batch = batches[group // n_passes]
            for index, parts in enumerate(points):
                probabilities = _one_draw(model, bank, batch, parts, prefix, (seed, group))
                losses[:, index, group] = _mean_losses(probabilities, batch, smoothing)
                n_classes, done = probabilities.shape[1], done + 1
                if on_step is not None:
                    on_step(done, n_steps)
    low, length = smoothed_interval(smoothing, n_classes)
    method = "Monte Carlo over masks and noise, one draw per batch and pass"
    return tuple(
        PosteriorPoint(
            noise_std=float(std),
            kl_nats=kl_estimate(parts),
            empirical_risk=monte_carlo_estimate(
                losses[0, index], sizes, low=low, length=length, level=level, method=method
            ),
            error_rate=monte_carlo_estimate(
                losses[1, index], sizes, low=0.0, length=1.0, level=level, method=method
            ),
        )
        for index, (std, parts) in enumerate(zip(noise_stds, points, strict=True))
    )


def _one_draw(
    model: PeftModel,
    bank: MaskBank,
    batch: Batch,
    parts: Sequence[NoisyPart],
    prefix: FrozenPrefix,
    key: tuple[int, int],
) -> Float64Array:
    """Probabilities of a batch under one draw of masks and noise."""
    generator = seeded_generator(key[0], POSTERIOR_STREAM, key[1])
    masks = int(torch.randint(2**62, (), generator=generator))
    with drawn(parts, generator), bank.fixed(n_masks=1, seed=masks), prefix.shared(1):
        logits = model(**model_inputs(model, batch)).logits
    return np.asarray(logits.to("cpu", torch.float64).softmax(-1).numpy())


def _is_trained(parameter: Tensor) -> bool:
    return parameter.requires_grad


def _mean_losses(probabilities: Float64Array, batch: Batch, smoothing: float) -> tuple[float, ...]:
    """Mean smoothed cross-entropy and mean 0-1 loss of a batch."""
    labels = batch["labels"].cpu().numpy()
    smoothed = smoothed_cross_entropy(probabilities, labels, smoothing)
    return float(smoothed.mean()), float((probabilities.argmax(-1) != labels).mean())

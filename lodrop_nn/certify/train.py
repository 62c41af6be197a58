r"""Training for the bound: the mean loss of the randomized adapter plus what its divergence costs.

.. math:: \frac1n \sum_i \mathrm E_{h \sim Q}\, \ell(h, z_i) + w\, \frac{\mathrm{KL}(Q \| P)}{n}

with the plain cross-entropy, a draw of masks and noise per row and step, and both scales of the
noise (that of the factors and that of the head) trained along. It is the form of Catoni (2007);
the weight w stands for his inverse temperature and for the rate of nats to errors. Nothing here
has to be exact: a bound holds for every posterior. The scales end on the grid that was fixed
beforehand.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR

from lodrop_nn.certify.config import CertifyConfig, nearest_std
from lodrop_nn.certify.posterior import keep_rates, moved_parameters
from lodrop_nn.certify.rows import RowDraws
from lodrop_nn.data.examples import Batch, Examples, batches
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.laws import seeded_generator
from lodrop_nn.measure.evaluation import model_inputs
from lodrop_nn.train.finetune import ORDER
from lodrop_nn.train.prefix_cache import PrefixCache

# Key of the random stream, after those of masks, runs, and lodrop_nn.measure.posterior.
TRAINING_STREAM = 6
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training for the bound did, beside moving the parameters.

    Attributes:
        noise_std: Scale of the noise of each trained parameter, on the grid.
        epoch_losses: Mean cross-entropy of each epoch under masks and noise, while it moved. Nats.
        seconds: Wall-clock seconds.
    """

    noise_std: Mapping[str, float]
    epoch_losses: tuple[float, ...]
    seconds: float


def is_factor(name: str) -> bool:
    """Whether a parameter is a factor of an adapted layer rather than a part of the head."""
    return ".lora_" in name


def train_posterior(
    model: PeftModel,
    bank: MaskBank,
    examples: Examples,
    cache: PrefixCache,
    config: CertifyConfig,
    initial: Mapping[str, Tensor],
    *,
    on_step: OnStep | None = None,
) -> Trained:
    """Train the posterior in place; leaves the model in evaluation mode.

    Args:
        model: Adapted model in evaluation mode, at the center of the prior.
        bank: The masks of its adapter.
        examples: The sample.
        cache: Hidden states of its rows below the adapter.
        config: Schedule, weight of the divergence and scales to start from.
        initial: Center of the prior, by parameter.
        on_step: Called with the steps done, the steps in all and the loss.

    Returns:
        The scales of the noise, on the grid, and how training went.

    Raises:
        FloatingPointError: If the loss stops being finite.
    """
    trained, rates = moved_parameters(model), keep_rates(model, bank)
    device = next(iter(trained.values())).device
    log_std = {
        group: torch.tensor(math.log(std), device=device, requires_grad=True)
        for group, std in ((True, config.factors_std), (False, config.head_std))
    }
    generator = seeded_generator(config.seed, TRAINING_STREAM)

    def kl_nats() -> Tensor:
        terms = [
            rates[name] * (p - initial[name]).square().sum() / (2 * scale(name) ** 2)
            for name, p in trained.items()
        ]
        return torch.stack([term.to(torch.float32) for term in terms]).sum()

    def scale(name: str) -> Tensor:
        return log_std[is_factor(name)].exp()

    def risk(batch: Batch) -> tuple[Tensor, Tensor]:
        scales = {name: scale(name) for name in trained}
        draws = RowDraws(model, bank, scales, generator)
        with draws.pass_over(len(batch["labels"])), cache.replay(batch):
            logits = model(**model_inputs(model, batch)).logits
        loss = cross_entropy(logits.float(), batch["labels"])
        return loss, loss + config.kl_weight * kl_nats() / len(examples)

    start = time.perf_counter()
    with _only_draws(model, bank):
        losses = _descend(
            [*trained.values(), *log_std.values()], risk, examples, config, ORDER, on_step
        )
    stds = {name: nearest_std(scale(name).item()) for name in trained}
    seconds = time.perf_counter() - start
    return Trained(noise_std=stds, epoch_losses=losses, seconds=seconds)


@contextmanager
def _only_draws(model: PeftModel, bank: MaskBank) -> Iterator[None]:
    """Evaluation mode without masks of the bank's own; gradients are gone at the end."""
    model.eval()
    try:
        with bank.off():
            yield
    finally:
        model.zero_grad(set_to_none=True)


def _descend(
    parameters: list[Tensor],
    risk: Callable[[Batch], tuple[Tensor, Tensor]],
    examples: Examples,
    config: CertifyConfig,
    stream: int,
    on_step: OnStep | None,
) -> tuple[float, ...]:
    """Adam at a rate that falls linearly to 0; mean loss of each epoch.

    Raises:
        FloatingPointError: If the objective stops being finite.
    """
    n_steps = config.epochs * math.ceil(len(examples) / config.batch_size)
    optimizer = Adam(parameters, lr=config.learning_rate)
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=n_steps)
    shuffle, step, epoch_losses = seeded_generator(config.seed, stream), 0, []
    device = parameters[0].device
    for _ in range(config.epochs):
        total = 0.0
        for batch in batches(
            examples, config.batch_size, order="length", generator=shuffle, device=device
        ):
            loss, objective = risk(batch)
            if not math.isfinite(objective.item()):
                raise FloatingPointError(
                    f"The objective must be finite, got {objective.item()!r} at step {step + 1} "
                    f"of {n_steps}; lower `learning_rate`, {config.learning_rate!r} now."
                )
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
            schedule.step()
            step, total = step + 1, total + loss.item() * len(batch["labels"])
            if on_step is not None:
                on_step(step, n_steps, loss.item())
        epoch_losses.append(total / len(examples))
    return tuple(epoch_losses)

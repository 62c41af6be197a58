r"""The randomized adapter of PAC-Bayes: masks, and normal noise around the trained values.

Posterior and prior draw the *same* masks and the same noise; the posterior centers it at the
trained values, the prior at values that do not depend on the sample. Noise is added to a stored
entry before masks and scaling act. An entry that its mask drops is 0 under both laws, a kept one is
multiplied by a constant: a bijection, which no divergence feels. So by the chain rule

.. math:: \mathrm{KL} = \sum_j q_j \frac{(\theta_j - \theta_{0j})^2}{2 \sigma_j^2}

with :math:`q_j` the probability that entry j is kept (1 for parameters without masks, such as a
head), *whether or not* kept entries are divided by q. In the words of
:func:`~lodrop_theory.bounds.gaussian_masks.masked_factors_kl`, whose sigma is the noise in deployed
entries, that is ``rescale=False`` at :math:`\sigma`, and the same number with ``rescale=True``
at :math:`\sigma / q`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import torch
from peft import PeftModel
from torch import Tensor, nn

from lodrop_nn.masks.bank import MaskBank
from lodrop_theory import masked_factors_kl


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyPart:
    """A trained parameter under the posterior.

    Attributes:
        name: Its name in the model.
        parameter: Its trained values, the mean of the noise before masks act.
        initial: Center of the prior, of the same shape.
        keep_rate: q in (0, 1], the probability that the masks keep an entry.
        noise_std: sigma > 0 in stored entries.
    """

    name: str
    parameter: nn.Parameter
    initial: Tensor
    keep_rate: float
    noise_std: float

    @property
    def squared_distance(self) -> float:
        """Squared Euclidean distance of the trained values from the center of the prior."""
        trained = self.parameter.detach().to("cpu", torch.float64)
        return float((trained - self.initial.to("cpu", torch.float64)).square().sum())

    @property
    def kl_nats(self) -> float:
        """Divergence of this part of the posterior from the prior, rounded upward."""
        # 1e-9 covers the rounding of the float64 sum, however many entries there are.
        squared = self.squared_distance * (1.0 + 1e-9)
        return float(
            masked_factors_kl(squared, 1.0 - self.keep_rate, self.noise_std, rescale=False)
        )


def moved_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name: those that require gradients.

    Raises:
        ValueError: If there is none.
    """
    moved = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not moved:
        raise ValueError(
            "`model` must have parameters that require gradients, got none; "
            "load the adapter with is_trainable=True."
        )
    return moved


def initial_values(model: PeftModel, adapter_name: str = "default") -> dict[str, Tensor]:
    """Centers for a prior, by parameter: what is known of the start of training without a record.

    For a module that PEFT trains as a copy (``modules_to_save``, a head), the original; for
    everything else 0. The initial factors themselves, kept by a caller who has them, are the
    better center of A.

    Args:
        model: Adapted model.
        adapter_name: Its adapter.
    """
    everything = dict(model.named_parameters())
    centers = {}
    for name, parameter in moved_parameters(model).items():
        original = everything.get(
            name.replace(f".modules_to_save.{adapter_name}.", ".original_module.")
        )
        known = original is not None and original is not parameter
        centers[name] = (
            original.detach().clone()  # type: ignore[union-attr]
            if known
            else torch.zeros_like(parameter, requires_grad=False)
        )
    return centers


def keep_rates(model: PeftModel, bank: MaskBank, adapter_name: str = "default") -> dict[str, float]:
    """Probability that the masks keep an entry of each trained parameter; 1 where none act.

    Args:
        model: Adapted model.
        bank: The masks of its adapter.
        adapter_name: The adapter.
    """
    rates = {}
    for name in moved_parameters(model):
        rates[name] = 1.0
        for layer in bank.layers:
            for factor, dropped in (("A", layer.input_rate), ("B", layer.output_rate)):
                # Embeddings say lora_embedding_A; experts and convolutions as linear layers do.
                starts = (f"{layer.name}.lora_{kind}{factor}." for kind in ("", "embedding_"))
                if any(f"{name}.".startswith(f"{start}{adapter_name}.") for start in starts):
                    rates[name] = 1.0 - dropped
    return rates


def noisy_parts(
    model: PeftModel,
    bank: MaskBank,
    noise_std: float | Mapping[str, float],
    *,
    initial: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
) -> tuple[NoisyPart, ...]:
    """The trained parameters of an adapter as parts of its posterior.

    What is not trained (a frozen A, the base) has no noise and no part: it is the same under the
    prior, as long as it does not depend on the sample.

    Args:
        model: Adapted model.
        bank: The masks of its adapter.
        noise_std: sigma > 0, for all parameters or by parameter.
        initial: Centers of the prior by parameter, none of them chosen with the sample; None takes
            :func:`initial_values`.
        adapter_name: The adapter.

    Returns:
        One part per trained parameter.

    Raises:
        ValueError: If nothing is trained, a parameter lacks a center or a scale, a center has
            another shape, or a scale is not finite and > 0.
    """
    centers = initial_values(model, adapter_name) if initial is None else initial
    rates = keep_rates(model, bank, adapter_name)
    parts = []
    for name, parameter in moved_parameters(model).items():
        if name not in centers or centers[name].shape != parameter.shape:
            got = tuple(centers[name].shape) if name in centers else "none"
            raise ValueError(
                f"`initial` must hold {name!r} of shape {tuple(parameter.shape)}, got {got}."
            )
        std = noise_std.get(name) if isinstance(noise_std, Mapping) else noise_std
        parts.append(
            NoisyPart(
                name=name,
                parameter=parameter,
                initial=centers[name].detach(),
                keep_rate=rates[name],
                noise_std=_checked_std(name, std),
            )
        )
    return tuple(parts)


def total_kl(parts: Sequence[NoisyPart]) -> float:
    """Divergence of the posterior from the prior in nats, rounded upward: the sum over parts."""
    return math.fsum(part.kl_nats for part in parts) * (1.0 + 1e-12)


@contextmanager
def drawn(parts: Sequence[NoisyPart], generator: torch.Generator) -> Iterator[None]:
    """One draw of the noise, added to the parameters in place for the time of the context.

    Works with every kind of layer: layers mask what they find. The trained values come back to
    the last bit, also after an error.

    Args:
        parts: The posterior.
        generator: CPU generator: the same noise on every device.

    Yields:
        Nothing.
    """
    saved = [part.parameter.detach().clone() for part in parts]
    try:
        with torch.no_grad():
            for part in parts:
                noise = torch.randn(part.parameter.shape, generator=generator)
                part.parameter.add_(noise.to(part.parameter) * part.noise_std)
        yield
    finally:
        with torch.no_grad():
            for part, values in zip(parts, saved, strict=True):
                part.parameter.copy_(values)


def _checked_std(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0.0 < float(value) < math.inf:
        raise ValueError(f"`noise_std` of {name!r} must be finite and > 0, got {value!r}.")
    return float(value)

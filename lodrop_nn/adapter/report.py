"""What LoRA Dropout acts on: the adapted layers, their updates, and how sparse masks make them."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from lodrop_nn.adapter import kinds
from lodrop_nn.adapter.attach import adapter_layers, mask_bank


@dataclass(frozen=True, kw_only=True)
class AdaptedLayer:
    """A layer whose update is masked.

    Attributes:
        name: Path of the layer in the model.
        kind: Class of the layer in PEFT.
        input_rate: Probability in [0, 1) that an input coordinate is dropped.
        output_rate: Probability in [0, 1) that an output coordinate is dropped.
        in_features: Coordinates that the column mask covers.
        out_features: Coordinates that the row mask covers.
    """

    name: str
    kind: str
    input_rate: float
    output_rate: float
    in_features: int
    out_features: int

    @property
    def update_sparsity(self) -> float:
        """Expected zero fraction of the masked update: 1 - (1 - p_A)(1 - p_B), so 2p - p^2."""
        return 1.0 - (1.0 - self.input_rate) * (1.0 - self.output_rate)


@dataclass(frozen=True, kw_only=True)
class RealizedSparsity:
    """Zero fraction of masked updates, counted on drawn masks.

    Attributes:
        value: Mean over layers, weighted by their entries, in [0, 1]; its expectation is
            2p - p^2.
        n_draws: Number of draws behind it.
        per_layer: The same for each layer, by name.
    """

    value: float
    n_draws: int
    per_layer: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """What masks act on in an adapter; as text, a table of its layers.

    Attributes:
        adapter_name: The adapter.
        layers: The layers whose updates are masked.
        sparsity: Zero fraction of their updates, counted on drawn masks.
        unmasked: Layers that train as plain LoRA, with the reason, by name.
    """

    adapter_name: str
    layers: tuple[AdaptedLayer, ...]
    sparsity: RealizedSparsity
    unmasked: Mapping[str, str]

    def __str__(self) -> str:
        """The table, a line per layer."""
        realized = self.sparsity.per_layer
        header = ("layer", "class", "in", "out", "p in", "p out", "expected", "realized")
        rows = [
            (
                layer.name,
                layer.kind,
                str(layer.in_features),
                str(layer.out_features),
                f"{layer.input_rate:g}",
                f"{layer.output_rate:g}",
                f"{layer.update_sparsity:.3f}",
                f"{realized[layer.name]:.3f}",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            f"adapter {self.adapter_name!r}, layers masked: {len(rows)}, "
            f"zeros in their updates: {self.sparsity.value:.3f} over {self.sparsity.n_draws} draws"
        ]
        for row in (header, *rows):
            cells = zip(row, widths, strict=True)
            text = [x.ljust(w) if i < 2 else x.rjust(w) for i, (x, w) in enumerate(cells)]
            lines.append("  ".join(text).rstrip())
        lines += [f"not masked: {name} ({reason})" for name, reason in self.unmasked.items()]
        return "\n".join(lines)


def adapter_report(
    model: PeftModel, adapter_name: str = "default", *, n_draws: int = 100, seed: int = 0
) -> AdapterReport:
    """What LoRA Dropout acts on in an adapter, and what it leaves alone and why.

    Args:
        model: A model whose adapter has LoRA Dropout.
        adapter_name: The adapter.
        n_draws: Masks to count zeros on, >= 1.
        seed: Seed >= 0 of these masks.

    Returns:
        The report; ``print`` shows it as a table.

    Raises:
        ValueError: If an argument is outside its range, or the adapter has no LoRA Dropout.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from torch import nn
        >>> from lodrop_nn.adapter import attach_lora_dropout
        >>> base = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
        >>> model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1"]))
        >>> bank = attach_lora_dropout(model, (0.0, 0.5))
        >>> print(adapter_report(model))
        adapter 'default', layers masked: 1, zeros in their updates: 0.553 over 100 draws
        layer               class   in  out  p in  p out  expected  realized
        base_model.model.1  Linear   4    3     0    0.5     0.500     0.553
        not masked: base_model.model.0 (embedding, and mask_embeddings is False)
    """
    settings = mask_bank(model, adapter_name).settings
    reasons = {
        name: kinds.why_unmasked(layer, settings)
        for name, layer in adapter_layers(model, adapter_name).items()
    }
    return AdapterReport(
        adapter_name=adapter_name,
        layers=tuple(adapted_layers(model, adapter_name)),
        sparsity=realized_sparsity(model, n_draws, seed, adapter_name),
        unmasked={name: reason for name, reason in reasons.items() if reason is not None},
    )


def adapted_layers(model: PeftModel, adapter_name: str = "default") -> list[AdaptedLayer]:
    """The layers that LoRA Dropout acts on: what is not listed here trains without it.

    Args:
        model: A model whose adapter has LoRA Dropout.
        adapter_name: The adapter.

    Returns:
        One entry per layer; a layer that the model uses several times is listed once.

    Raises:
        ValueError: If the adapter does not exist or has no LoRA Dropout.
    """
    bank = mask_bank(model, adapter_name)
    layers = adapter_layers(model, adapter_name)
    return [
        AdaptedLayer(
            name=layer.name,
            kind=type(layers[layer.name]).__name__,
            input_rate=layer.input_rate,
            output_rate=layer.output_rate,
            in_features=layer.in_features,
            out_features=layer.out_features,
        )
        for layer in bank.layers
    ]


def realized_sparsity(
    model: PeftModel, n_draws: int, seed: int, adapter_name: str = "default"
) -> RealizedSparsity:
    r"""The fraction of entries of the updates that masks set to zero.

    An entry (i, j) of an update survives if output i and input j do, so a layer with
    :math:`a` of :math:`d_{in}` inputs and :math:`b` of :math:`d_{out}` outputs kept has zero
    fraction :math:`1 - ab / (d_{in} d_{out})`, whose expectation is :math:`1-(1-p)^2 = 2p - p^2`.

    Args:
        model: A model whose adapter has LoRA Dropout.
        n_draws: Masks to draw, >= 1.
        seed: Seed >= 0 of the masks.
        adapter_name: The adapter.

    Returns:
        The fraction over all layers and for each of them.

    Raises:
        ValueError: If an argument is outside its range, or the adapter has no LoRA Dropout.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eq. (9): sparsity 2p - p^2.
    """
    bank = mask_bank(model, adapter_name)
    masks = bank.draw(n_draws, seed)
    per_layer: dict[str, float] = {}
    zeros = entries = 0.0
    adapted = adapter_layers(model, adapter_name)
    for layer in bank.layers:
        kind = kinds.kind_of(adapted[layer.name], layer.name)
        n_parts = kind.factors(adapted[layer.name], adapter_name).n_parts
        # Each part (expert) keeps what its own masks keep.
        columns, rows = (
            x.reshape(n_draws, n_parts, -1).sum(2).double() for x in layer.split(masks)
        )
        kept = float((columns * rows).sum(1).mean())
        size = layer.in_features * layer.out_features / n_parts
        per_layer[layer.name] = 1.0 - kept / size
        zeros += size - kept
        entries += size
    return RealizedSparsity(value=zeros / entries, n_draws=n_draws, per_layer=per_layer)


def delta_weights(
    model: PeftModel, adapter_name: str = "default"
) -> dict[str, Float[Tensor, "out_features in_features"]]:
    r"""The mean update :math:`\Delta W` of each layer, as :math:`y = (W + \Delta W) x` uses it.

    That is :math:`s B A`, times :math:`(1-p_A)(1-p_B)` where masks are not rescaled; whether masks
    are on or off at the moment does not matter. An adapter without LoRA Dropout is taken as it is.

    Args:
        model: A model with LoRA adapters.
        adapter_name: The adapter.

    Returns:
        Updates by layer name, differentiable in the factors. Conv1D layers and embeddings, which
        store their weight transposed, come in the same orientation as all others; convolutions as
        matrices (out_channels, in_channels * positions of the kernel).

    Raises:
        ValueError: If the adapter does not exist or has no LoRA layer.
        NotImplementedError: If the adapter has a layer of a kind that is not supported yet.
    """
    updates = {}
    for name, layer in adapter_layers(model, adapter_name).items():
        kind = kinds.kind_of(layer, name)
        masks = kind.installed(layer, adapter_name)
        if masks is None:
            kind.check(layer, name, adapter_name)
        factor = 1.0 if masks is None else masks.mean_factor
        updates[name] = kind.factors(layer, adapter_name).delta_weight * factor
    return updates

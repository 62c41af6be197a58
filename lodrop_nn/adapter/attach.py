"""Add LoRA Dropout to an adapter of a PEFT model, and take it away."""

from collections.abc import Mapping

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from lodrop_nn.adapter import kinds, variant
from lodrop_nn.adapter.adalora import accept_labels
from lodrop_nn.config import MaskLaw, MaskScope
from lodrop_nn.masks import MaskBank, MaskSettings
from lodrop_nn.masks.settings import Rate


def attach_lora_dropout(
    model: PeftModel,
    dropout_rate: Rate,
    *,
    adapter_name: str = "default",
    rate_pattern: Mapping[str, Rate] | None = None,
    n_masks: int = 1,
    mask_scope: MaskScope = "batch",
    mask_law: MaskLaw = "iid",
    rescale: bool = True,
    seed: int | None = None,
    mask_embeddings: bool = False,
) -> MaskBank:
    r"""Mask the factors of every LoRA layer of an adapter while the model trains.

    Each training pass replaces the update :math:`s B A` of a layer by

    .. math:: \frac{s}{(1-p_A)(1-p_B)} \, \mathrm{diag}(m_B) \, B \, A \, \mathrm{diag}(m_A)

    with fresh Bernoulli masks (without the division if ``rescale`` is False). In evaluation mode
    the adapter acts as the mean over masks, which with ``rescale`` is the stored adapter. No
    parameter is added and no state-dict key changes.

    One mask per batch, the default, works on every model. Where rows are padded and not packed,
    ``mask_scope="example", mask_law="balanced"`` is the better choice: at the same cost its test
    loss was lower, and equal to that of N = 4 masks per step at a quarter of their cost
    (``paper_figures/out/tab02_quality.md``).

    Args:
        model: A model with LoRA adapters, trained or not, on linear layers (quantized or not),
            convolutions (the coordinates are channels), embeddings or expert tensors.
        dropout_rate: p in [0, 1), the probability that an input or output coordinate is dropped,
            or a pair (p_A, p_B) for inputs and outputs.
        adapter_name: The adapter to attach to.
        rate_pattern: Rates of some layers, by a regular expression on the end of the layer's
            name, as in PEFT's ``rank_pattern``; the others have ``dropout_rate``.
        n_masks: N >= 1, masks per training pass; the batch must then hold N instances of its
            examples (:func:`lodrop_nn.train.tiling.tile_batch`).
        mask_scope: ``"batch"`` for masks that all examples of an instance share, ``"example"``
            for one mask per example.
        mask_law: How the masks of a pass depend on each other: ``"iid"``, ``"balanced"`` or
            ``"orthogonal"``.
        rescale: Whether kept coordinates are divided by 1 - p. The paper's equations do not; the
            stored adapter is then :math:`1/(1-p)^2` too strong when plain PEFT loads it, and
            :func:`lodrop_nn.adapter.saving.save_adapter` folds the factor in.
        seed: Seed >= 0 of the training masks; None draws from torch's default generator.
        mask_embeddings: Whether to mask embedding layers, whose input coordinates are vocabulary
            entries: a share p of them then loses its update everywhere. Else they stay plain
            LoRA beside the layers that are masked.

    Returns:
        The adapter's masks, with the contexts ``fixed`` and ``off``.

    Raises:
        TypeError: If ``model`` is not a PeftModel.
        ValueError: If an argument is outside its range, a key of ``rate_pattern`` matches no
            layer, the adapter does not exist, is merged or has no LoRA layer to mask, or it
            already is a LoRA variant (DoRA, another LoRA Dropout, ...).
        NotImplementedError: If the adapter has a layer of a kind that is not supported yet.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eqs. (2), (3) and (7).

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from torch import nn
        >>> base = nn.Sequential(nn.Linear(4, 3))
        >>> model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
        >>> attach_lora_dropout(model, 0.5, seed=0).n_coordinates
        7
    """
    settings = MaskSettings(
        dropout_rate,
        rate_pattern=rate_pattern or {},
        n_masks=n_masks,
        mask_scope=mask_scope,
        mask_law=mask_law,
        rescale=rescale,
        seed=seed,
        mask_embeddings=mask_embeddings,
    )
    _check_unmerged(adapter_layers(model, adapter_name), adapter_name)
    return _attach(model, settings, adapter_name)


def detach_lora_dropout(model: PeftModel, adapter_name: str = "default") -> None:
    """Make an adapter ordinary LoRA again; its weights stay as they are.

    Args:
        model: A model whose adapter has LoRA Dropout.
        adapter_name: The adapter to detach from.

    Raises:
        ValueError: If the adapter does not exist, has no LoRA Dropout or is merged.
    """
    layers = adapter_layers(model, adapter_name)
    banks = _banks(layers, adapter_name)
    _check_unmerged(layers, adapter_name)
    for bank in banks:
        bank.unwatch()
    for name, layer in layers.items():
        kinds.uninstall(layer, name, adapter_name)


def mask_bank(model: PeftModel, adapter_name: str = "default") -> MaskBank:
    """The masks of an adapter that has LoRA Dropout.

    An adapter that ``get_peft_model`` made from a
    :class:`~lodrop_nn.adapter.config.LoraDropoutConfig` gets its bank here: PEFT shows a config
    the layers but not the model, so until this call each layer draws for itself.

    Args:
        model: A model whose adapter has LoRA Dropout.
        adapter_name: The adapter.

    Returns:
        The one bank of all the adapter's layers.

    Raises:
        ValueError: If the adapter does not exist or has no LoRA Dropout.
    """
    layers = adapter_layers(model, adapter_name)
    banks = _banks(layers, adapter_name)
    if len(banks) == 1 and banks[0].is_watching:
        return banks[0]
    layers = _masked_layers(layers, banks[0].settings, adapter_name)  # refuses before any change
    for name, layer in layers.items():
        kinds.uninstall(layer, name, adapter_name)
    return _attach(model, banks[0].settings, adapter_name)


def adapter_layers(model: PeftModel, adapter_name: str) -> dict[str, LoraLayer]:
    """The LoRA layers of an adapter, by their path in the model.

    Raises:
        TypeError: If ``model`` is not a PeftModel.
        ValueError: If there is no such adapter or it has no LoRA layer.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"`model` must be a peft.PeftModel, got {type(model).__name__}: wrap it with "
            "`peft.get_peft_model(model, LoraConfig(...))` first."
        )
    if adapter_name not in model.peft_config:
        raise ValueError(
            f"`adapter_name` must be one of {sorted(model.peft_config)}, got {adapter_name!r}."
        )
    layers = kinds.lora_layers(model, adapter_name)
    if not layers:
        kind = type(model.peft_config[adapter_name]).__name__
        raise ValueError(f"adapter {adapter_name!r} ({kind}) has no LoRA layer.")
    return layers


def _attach(model: PeftModel, settings: MaskSettings, adapter_name: str) -> MaskBank:
    layers = _masked_layers(adapter_layers(model, adapter_name), settings, adapter_name)
    # All checks come before the first change: a refused model is left as it was.
    for name, layer in layers.items():
        kinds.check_layer(layer, name, adapter_name, settings)
    bank = MaskBank(settings)
    for name, layer in layers.items():
        kinds.install(layer, name, adapter_name, bank)
    bank.watch(variant.pass_roots(model))
    accept_labels(model, adapter_name)
    return bank


def _check_unmerged(layers: Mapping[str, LoraLayer], adapter_name: str) -> None:
    """Refuse a merged adapter: masks do not reach it, and unmerging would take away another update.

    Raises:
        ValueError: If it is.
    """
    if any(adapter_name in layer.merged_adapters for layer in layers.values()):
        raise ValueError(
            f"adapter {adapter_name!r} must not be merged into the base weights: call "
            "`model.unmerge_adapter()` first."
        )


def _masked_layers(
    layers: Mapping[str, LoraLayer], settings: MaskSettings, adapter_name: str
) -> dict[str, LoraLayer]:
    """The layers that settings mask.

    Raises:
        ValueError: If there is none, or a pattern of rates matches none.
    """
    masked = {n: x for n, x in layers.items() if kinds.why_unmasked(x, settings) is None}
    if not masked:
        kinds.refuse_only_embeddings(adapter_name)
    settings.check_patterns(masked)
    return masked


def _banks(layers: dict[str, LoraLayer], adapter_name: str) -> list[MaskBank]:
    """The banks that layers take their masks from, each once.

    Raises:
        ValueError: If there is none.
    """
    found = (kinds.installed(layer, name, adapter_name) for name, layer in layers.items())
    banks = list({id(masks.bank): masks.bank for masks in found if masks is not None}.values())
    if not banks:
        raise ValueError(
            f"adapter {adapter_name!r} has no LoRA Dropout: call `attach_lora_dropout` first."
        )
    return banks

"""LoRA Dropout from a config, for frameworks that call ``get_peft_model`` themselves."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from lodrop_nn.adapter import kinds, variant
from lodrop_nn.adapter.sidecar import AdapterFileError, read_sidecar, write_sidecar
from lodrop_nn.config import MaskLaw, MaskScope
from lodrop_nn.masks import MaskBank, MaskSettings
from lodrop_nn.masks.settings import Rate


@dataclass(kw_only=True)
class LoraDropoutConfig(LoraConfig):
    """A ``LoraConfig`` whose adapter has LoRA Dropout.

    ``get_peft_model(base, LoraDropoutConfig(dropout_rate=0.5, ...))`` is all it takes, so it fits
    where a trainer takes a ``peft_config``. ``peft_type`` stays LORA and ``adapter_config.json``
    stays what plain LoRA writes; the fields below go into ``lora_dropout.json`` beside it. The
    factors are written as trained. In the paper's form (``rescale=False``) their mean factor goes
    into the written ``lora_alpha`` and ``alpha_pattern``, so that plain PEFT loads the mean
    predictor, and :meth:`from_pretrained` takes it out again. Where these cannot express it
    (``rate_pattern`` together with ``alpha_pattern``, or embeddings left unmasked), plain PEFT
    would load too strong an update: use :func:`lodrop_nn.adapter.saving.save_adapter`.

    PEFT shows a config the layers but not the model. Until the first call of
    :func:`~lodrop_nn.adapter.attach.mask_bank` on the model, which the trainer mixin and the
    ensemble make, each layer therefore draws for itself when it runs, with the same law.
    Recomputation under gradient checkpointing then sees a layer's latest masks: call ``mask_bank``
    before training a model that uses a layer several times in a pass.

    It defines the first adapter of a model; PEFT grows further ones inside existing layers without
    asking the config, which is refused. For those, attach with
    :func:`~lodrop_nn.adapter.attach.attach_lora_dropout`.

    Attributes:
        dropout_rate: p in [0, 1), the probability that an input or output coordinate is dropped,
            or a pair for inputs and outputs. PEFT's ``lora_dropout`` is another method and stays
            available.
        rate_pattern: Rates of some layers, by a regular expression on the end of their names.
        n_masks: N >= 1, masks per training pass.
        mask_scope: ``"batch"``, or ``"example"`` for a mask per example; N is then 1.
        mask_law: ``"iid"``, ``"balanced"`` or ``"orthogonal"``.
        rescale: Whether kept coordinates are divided by 1 - p.
        mask_seed: Seed >= 0 of the training masks, or None.
        mask_embeddings: Whether embedding layers are masked too; else they stay plain LoRA.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> from peft import get_peft_model
        >>> from torch import nn
        >>> config = LoraDropoutConfig(dropout_rate=0.5, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
        >>> from lodrop_nn.adapter import mask_bank
        >>> mask_bank(model).dropout_rate
        0.5
    """

    dropout_rate: Rate
    rate_pattern: dict[str, Rate] = field(default_factory=dict)
    n_masks: int = field(default=1)
    mask_scope: MaskScope = field(default="batch")
    mask_law: MaskLaw = field(default="iid")
    rescale: bool = field(default=True)
    mask_seed: int | None = field(default=None)
    mask_embeddings: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._put_masks_on = _PutMasksOn(self)
        variant.make_layers_with(self, self._put_masks_on)

    @property
    def mask_settings(self) -> MaskSettings:
        """The law of the masks."""
        return MaskSettings(
            self.dropout_rate,
            rate_pattern=self.rate_pattern,
            n_masks=self.n_masks,
            mask_scope=self.mask_scope,
            mask_law=self.mask_law,
            rescale=self.rescale,
            seed=self.mask_seed,
            mask_embeddings=self.mask_embeddings,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a plain LoRA config, and the side-car for the weights as trained beside it."""
        # The values as they are, without the checks and changes of a new construction.
        plain = object.__new__(LoraConfig)
        vars(plain).update(vars(self), **self._mean_alpha())
        plain.save_pretrained(str(save_directory), **kwargs)
        write_sidecar(
            Path(save_directory),
            self.mask_settings,
            is_folded=False,
            alpha_as_trained={name: getattr(self, name) for name in self._mean_alpha()} or None,
        )

    def _mean_alpha(self) -> dict[str, Any]:
        """Alphas whose scaling makes the stored update the mean update, if there are any."""
        settings = self.mask_settings
        if settings.rescale or self._put_masks_on.unmasked:
            return {}
        mean_factors = {key: settings.mean_factor(rate) for key, rate in self.rate_pattern.items()}
        default = settings.mean_factor(self.dropout_rate)
        if mean_factors and self.alpha_pattern:
            return {}  # which of their keys meet in a layer is not known here
        pattern = {key: alpha * default for key, alpha in self.alpha_pattern.items()}
        pattern |= {key: self.lora_alpha * factor for key, factor in mean_factors.items()}
        return {"lora_alpha": self.lora_alpha * default, "alpha_pattern": pattern}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> "LoraDropoutConfig":
        """Read a saved config and its side-car from a local folder.

        Raises:
            AdapterFileError: If the side-car cannot be trusted, or belongs to folded weights.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        sidecar = read_sidecar(folder)
        if sidecar.is_folded:
            raise AdapterFileError(
                f"the lora_B in {folder} has the mean factor of its masks folded in, which a "
                "config cannot undo: load it with `lodrop_nn.adapter.saving.load_adapter`."
            )
        plain = LoraConfig.from_pretrained(str(folder), **kwargs)
        shared = {f.name: getattr(plain, f.name) for f in fields(LoraConfig) if f.init}
        shared |= sidecar.alpha_as_trained or {}
        masks = sidecar.settings.as_json()
        return cls(**shared, mask_seed=masks.pop("seed"), **masks)


class _PutMasksOn:
    """Puts masks of one bank on layers as PEFT makes them; an object, so that configs copy."""

    def __init__(self, config: LoraDropoutConfig) -> None:
        self.config = config
        self.bank = MaskBank(config.mask_settings)
        self.unmasked: list[str] = []  # layers that stay plain LoRA

    def __call__(self, layer: LoraLayer, name: str, adapter_name: str) -> None:
        if kinds.why_unmasked(layer, self.bank.settings) is None:
            kinds.check_layer(layer, name, adapter_name, self.bank.settings)
            kinds.install(layer, name, adapter_name, self.bank)
            return
        self.unmasked.append(name)
        if not self.bank.layers and self._target_nothing_else():
            kinds.refuse_only_embeddings(adapter_name)

    def _target_nothing_else(self) -> bool:
        """Whether all names of target modules are those of unmasked layers; patterns are not."""
        targets = self.config.target_modules
        if isinstance(targets, str) or self.config.target_parameters:
            return False
        return all(
            any(f".{name}".endswith(f".{target}") for name in self.unmasked)
            for target in targets or ()
        )

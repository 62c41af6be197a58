"""What defines the masks of an adapter."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, cast, get_args

from lodrop_nn.config import MaskLaw, MaskScope
from lodrop_nn.masks.draw import mean_factor

Rate = float | tuple[float, float]  # p, or (p of the inputs, p of the outputs)


def check_count(name: str, value: object) -> None:
    """Refuse what is not a whole number >= 1.

    Raises:
        ValueError: Naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")


def check_seed(name: str, value: object) -> None:
    """Refuse what is not a whole number >= 0.

    Raises:
        ValueError: Naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{name}` must be a whole number >= 0, got {value!r}.")


def check_law(value: object) -> MaskLaw:
    """The value, refused if it is not the name of a mask law.

    Raises:
        ValueError: Listing the names.
    """
    if value not in get_args(MaskLaw):
        names = ", ".join(map(repr, get_args(MaskLaw)))
        raise ValueError(f"`mask_law` must be one of {names}, got {value!r}.")
    return cast(MaskLaw, value)


def _checked_rate(name: str, value: object) -> Rate:
    """A rate as floats: one for inputs and outputs alike, or one each.

    Raises:
        ValueError: Naming the argument.
    """
    parts = tuple(value) if isinstance(value, tuple | list) else (value, value)
    # The comparison is false for NaN.
    if len(parts) != 2 or not all(
        isinstance(part, Real) and not isinstance(part, bool) and 0.0 <= float(part) < 1.0
        for part in parts
    ):
        raise ValueError(
            f"`{name}` must be in [0, 1), or a pair of such rates (inputs, outputs), got {value!r}."
        )
    inputs, outputs = map(float, parts)
    return (inputs, outputs) if isinstance(value, tuple | list) else inputs


@dataclass(frozen=True)
class MaskSettings:
    r"""The law of the masks of one adapter.

    A mask m of an input or output coordinate is 1 with probability 1 - p. With ``rescale`` it is
    divided by 1 - p (inverted scaling), so that the mean of the masked update is the stored
    update; without (the paper's form) that mean is :math:`(1 - p_A)(1 - p_B)` times it.

    Attributes:
        dropout_rate: p in [0, 1), the probability that a coordinate is dropped; a pair
            (p_A, p_B) gives the inputs and the outputs of a layer rates of their own.
        rate_pattern: Rates of some layers, by a regular expression that matches the end of the
            layer's name, as in PEFT's ``rank_pattern``; the first that matches counts. The other
            layers have ``dropout_rate``.
        n_masks: N >= 1, masks per training pass.
        mask_scope: ``"batch"``, or ``"example"`` for a mask per example; N is then 1.
        mask_law: How the masks of one pass, or of one ensemble, depend on each other; each alone
            has the same law. ``"iid"``; ``"balanced"`` (:mod:`lodrop_nn.masks.balanced`);
            ``"orthogonal"`` (:mod:`lodrop_nn.masks.orthogonal`).
        rescale: Whether kept coordinates are divided by 1 - p.
        seed: Seed >= 0 of the training masks, or None.
        mask_embeddings: Whether embedding layers are masked, whose inputs are vocabulary entries;
            else they stay plain LoRA.

    Raises:
        ValueError: If a value is outside its range.

    Source:
        Lin et al. (2024), arXiv:2404.09610, Eqs. (2) and (7), which do not rescale.

    Example:
        >>> settings = MaskSettings(0.5, rate_pattern={"v_proj": (0.0, 0.25)})
        >>> settings.rates_of("model.layers.0.self_attn.v_proj")
        (0.0, 0.25)
        >>> settings.rates_of("model.layers.0.self_attn.q_proj")
        (0.5, 0.5)
    """

    dropout_rate: Rate
    rate_pattern: Mapping[str, Rate] = field(default_factory=dict, kw_only=True)
    n_masks: int = field(default=1, kw_only=True)
    mask_scope: MaskScope = field(default="batch", kw_only=True)
    mask_law: MaskLaw = field(default="iid", kw_only=True)
    rescale: bool = field(default=True, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    mask_embeddings: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dropout_rate", _checked_rate("dropout_rate", self.dropout_rate))
        object.__setattr__(self, "rate_pattern", _checked_pattern(self.rate_pattern))
        check_count("n_masks", self.n_masks)
        if self.mask_scope not in get_args(MaskScope):
            raise ValueError(f"`mask_scope` must be 'batch' or 'example', got {self.mask_scope!r}.")
        check_law(self.mask_law)
        if self.mask_scope == "example" and self.n_masks != 1:
            raise ValueError(
                "`n_masks` must be 1 when `mask_scope` is 'example' (each example already has a "
                f"mask of its own), got {self.n_masks!r}."
            )
        for name in ("rescale", "mask_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        if self.seed is not None:
            check_seed("seed", self.seed)

    def rates_of(self, name: str) -> tuple[float, float]:
        """Rates (inputs, outputs) of the layer of that name."""
        matching = (rate for key, rate in self.rate_pattern.items() if _matches(key, name))
        rate = next(matching, self.dropout_rate)
        return rate if isinstance(rate, tuple) else (rate, rate)

    def mean_factor(self, rate: Rate) -> float:
        """Mean of the masked update over the stored update, in (0, 1], for such a rate."""
        inputs, outputs = rate if isinstance(rate, tuple | list) else (rate, rate)
        return mean_factor(inputs, outputs, rescale=self.rescale)

    def check_patterns(self, names: Iterable[str]) -> None:
        """Refuse patterns that match none of these layers: a typo would go unnoticed.

        Raises:
            ValueError: Naming the patterns.
        """
        names = list(names)
        idle = [key for key in self.rate_pattern if not any(_matches(key, x) for x in names)]
        if idle:
            raise ValueError(
                "`rate_pattern` must have keys that match the end of the name of a masked layer, "
                f"got {idle}, which match none of {len(names)} layers such as {names[0]!r}."
            )

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON-able keyword arguments (pairs become lists)."""
        return {
            "dropout_rate": _as_json(self.dropout_rate),
            "rate_pattern": {key: _as_json(rate) for key, rate in self.rate_pattern.items()},
            "n_masks": self.n_masks,
            "mask_scope": self.mask_scope,
            "mask_law": self.mask_law,
            "rescale": self.rescale,
            "seed": self.seed,
            "mask_embeddings": self.mask_embeddings,
        }


def _matches(pattern: str, name: str) -> bool:
    """Whether a key of ``rate_pattern`` means the layer of that name."""
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None


def _checked_pattern(value: object) -> dict[str, Rate]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(
            f"`rate_pattern` must map patterns of layer names to rates, got {value!r}."
        )
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"`rate_pattern` must have regular expressions as keys, got {pattern!r}: {error}."
            ) from None
    return {key: _checked_rate(f"rate_pattern[{key!r}]", rate) for key, rate in value.items()}


def _as_json(rate: Rate) -> float | list[float]:
    return list(rate) if isinstance(rate, tuple) else rate

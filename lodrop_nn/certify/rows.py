"""A posterior draw of its own for every row of a batch.

One pass over n rows then holds n independent draws, where one draw per batch would hold one: the
Monte Carlo estimate of a risk costs less of the bound, and a training step has less noise in its
gradient. The price is a factor B (and A, if it is trained) per row instead of one for all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import linear

from lodrop_nn.adapter import kinds
from lodrop_nn.adapter.attach import adapter_layers
from lodrop_nn.adapter.variant import LinearKind
from lodrop_nn.certify.posterior import moved_parameters
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.contexts import forward_replaced
from lodrop_nn.masks.draw import Coordinates, Draw, LayerFactors
from lodrop_nn.masks.laws import iid_masks


class RowDraws:
    """Makes each row of a forward pass see its own masks and noise.

    Draws are of the law of :mod:`lodrop_nn.certify.posterior`; the results are differentiable in
    the trained values and in the scales.

    Args:
        model: Adapted model in evaluation mode. Its trained parameters are factors of plain linear
            layers, and weights and biases of linear layers outside of them (a head).
        bank: The masks of its adapter.
        noise_std: sigma of each trained parameter, by name: numbers, or tensors to train.
        generator: CPU generator of masks and noise.
        adapter_name: The adapter.

    Raises:
        ValueError: If a trained parameter lacks a scale, or belongs to a layer of another kind.
    """

    def __init__(
        self,
        model: PeftModel,
        bank: MaskBank,
        noise_std: Mapping[str, float | Tensor],
        generator: torch.Generator,
        *,
        adapter_name: str = "default",
    ) -> None:
        self._generator = generator
        self._adapter_name = adapter_name
        self._coordinates = Coordinates.of(bank.layers)
        self._masked = {layer.name: layer for layer in bank.layers}
        names = {id(parameter): name for name, parameter in moved_parameters(model).items()}
        if lacking := sorted(set(names.values()) - set(noise_std)):
            raise ValueError(
                f"`noise_std` must hold every trained parameter, lacks {lacking[0]!r}."
            )
        self._scales = {key: noise_std[name] for key, name in names.items()}
        self._forwards = self._replacements(model, names)
        self._n_rows = 0
        self._masks: Draw | None = None
        self._noise: dict[int, Tensor] = {}

    @contextmanager
    def pass_over(self, n_rows: int) -> Iterator[None]:
        """Draw once per row; the one pass inside the context reads that many rows.

        Args:
            n_rows: Rows of the batch, >= 1.

        Yields:
            Nothing.
        """
        self._n_rows, self._noise = n_rows, {}
        masks = iid_masks(n_rows, self._coordinates.rates, self._generator)
        self._masks = Draw(masks, self._coordinates.kept_factors)
        with ExitStack() as stack:
            for module, forward in self._forwards:
                stack.enter_context(forward_replaced(module, forward))
            yield

    def _replacements(
        self, model: PeftModel, names: Mapping[int, str]
    ) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
        found: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        left = dict(names)
        for name, layer in adapter_layers(model, self._adapter_name).items():
            kind = kinds.kind_of(layer, name)
            if type(kind) is not LinearKind:
                raise ValueError(
                    f"`model` must have adapted layers of plain linear kind to draw by row, got "
                    f"{type(layer).__name__} in {name!r}: use `posterior`, one draw per batch."
                )
            found.append((layer, _NoisyUpdate(self, name, layer)))
            for factor in kind.factors(layer, self._adapter_name)[:2]:
                left.pop(id(factor), None)
        for module in model.modules():
            mine = {id(p) for p in module.parameters(recurse=False)} & set(left)
            if mine and isinstance(module, nn.Linear):
                found.append((module, _NoisyLinear(self, module)))
                left = {key: name for key, name in left.items() if key not in mine}
        if left:
            raise ValueError(
                "`model` must train factors and linear layers only to draw by row, got "
                f"{next(iter(left.values()))!r}."
            )
        return found

    def masks_of(self, name: str, like: Tensor) -> LayerFactors | None:
        """Factors of a layer's columns and rows, one pair per row of the batch."""
        if self._masks is None or name not in self._masked:
            return None
        dtype = torch.promote_types(like.dtype, torch.float32)
        return self._masked[name].split(self._masks.to(like.device, dtype))

    def noisy(self, parameter: Tensor) -> Tensor:
        """A parameter with the noise of each row, (n_rows, ...); without rows if it is fixed."""
        scale = self._scales.get(id(parameter))
        if scale is None:
            return parameter
        if id(parameter) not in self._noise:  # a layer that is called twice is one and the same
            shape = (self._n_rows, *parameter.shape)
            noise = torch.randn(shape, generator=self._generator)
            self._noise[id(parameter)] = noise.to(parameter.device, parameter.dtype)
        return parameter + self._noise[id(parameter)] * scale


class _NoisyUpdate:
    """The pass of an adapted layer: the base output plus each row's own masked, noisy update."""

    def __init__(self, draws: RowDraws, name: str, layer: nn.Module) -> None:
        self.draws, self.name, self.layer = draws, name, layer

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter: Any = self.layer
        draws, key = self.draws, self.draws._adapter_name
        lora_A, lora_B = adapter.lora_A[key].weight, adapter.lora_B[key].weight
        masks, inner = draws.masks_of(self.name, lora_A), x
        if masks is not None:
            inner = x * _beside(masks[0], x).to(x.dtype)
        hidden = _rowwise(inner, draws.noisy(lora_A))
        update = _rowwise(hidden, draws.noisy(lora_B)) * adapter.scaling[key]
        if masks is not None:
            update = update * _beside(masks[1], update).to(x.dtype)
        return adapter.base_layer(x, *args, **kwargs) + update


class _NoisyLinear:
    """The pass of a trained linear layer whose weight, and bias, each row has for itself."""

    def __init__(self, draws: RowDraws, module: nn.Linear) -> None:
        self.draws, self.module = draws, module

    def __call__(self, x: Tensor) -> Tensor:
        result = _rowwise(x, self.draws.noisy(self.module.weight))
        if self.module.bias is None:
            return result
        bias = self.draws.noisy(self.module.bias)
        return result + (_beside(bias, result) if bias.dim() == 2 else bias)


def _beside(by_row: Tensor, x: Tensor) -> Tensor:
    """A vector per row, broadcast over the tokens of the row."""
    return by_row.reshape(len(by_row), *[1] * (x.dim() - 2), by_row.shape[-1])


def _rowwise(x: Tensor, weight: Tensor) -> Tensor:
    """The product x W^T with one weight for all rows, or one per row."""
    if weight.dim() == 2:
        return linear(x, weight)
    flat = x.reshape(len(x), -1, x.shape[-1])
    return torch.bmm(flat, weight.mT).reshape(*x.shape[:-1], weight.shape[1])


__all__ = ["RowDraws"]

"""Attributes that hold other values for the time of a `with` block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import nn


class Overridden:
    """A context in which attributes of objects have given values.

    Other than a context made by ``contextlib.contextmanager`` it may be entered again and again,
    which recomputation needs: autograd may run through the same graph twice.

    Args:
        changes: Objects, each with the attributes to set on it.
    """

    def __init__(self, *changes: tuple[object, Mapping[str, Any]]) -> None:
        self._changes = changes
        self._saved: list[list[dict[str, Any]]] = []

    def __enter__(self) -> None:
        self._saved.append(
            [{name: getattr(owner, name) for name in values} for owner, values in self._changes]
        )
        for owner, values in self._changes:
            vars(owner).update(values)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for (owner, _), values in zip(self._changes, self._saved.pop(), strict=True):
            vars(owner).update(values)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own mode comes back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else; its hooks stay.

    Args:
        module: The module.
        forward: Takes the arguments of the module's forward pass.

    Yields:
        Nothing.
    """
    # An instance attribute shadows the method of the class; one that was there comes back.
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own

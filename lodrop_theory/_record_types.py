"""Records by the types that their fields declare: what may be in them, and back from JSON.

Every field is written, also where it is None, so that one that is absent was lost. What an older
schema did not have yet is listed by name.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_hints = cache(get_type_hints)


def _optional(hint: Any) -> tuple[Any, bool]:
    """A type without its None, and whether it had one."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [each for each in get_args(hint) if each is not type(None)]
        return kinds[0], len(kinds) < len(get_args(hint))
    return hint, False


def _wrong(hint: Any, value: Any) -> str | None:
    """What a value should have been, or None if it is that."""
    hint, may_lack = _optional(hint)
    if value is None and (may_lack or hint is Any):
        return None
    kind, items = get_origin(hint), get_args(hint)
    if kind is Literal:
        return None if value in items else f"one of {items}"
    if kind is tuple:
        inside = isinstance(value, tuple) and not any(_wrong(items[0], each) for each in value)
        return None if inside else f"a tuple of {_name(items[0])}"
    if kind is Mapping:
        inside = isinstance(value, Mapping) and not any(
            _wrong(at, each) for pair in value.items() for at, each in zip(items, pair, strict=True)
        )
        return None if inside else f"a mapping to {_name(items[1])}"
    if hint is Any:
        return None
    if hint is float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return None if real and math.isfinite(value) else "a finite number"
    right = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    return None if right else f"{'' if not may_lack else 'None or '}{_name(hint)}"


def _name(hint: Any) -> str:
    plain = {int: "a whole number", float: "finite numbers", str: "text", Any: "anything"}
    return plain.get(hint) or f"{hint.__name__}"


def check_types(record: Any) -> None:
    """Refuse a record of which a field is not what it declares.

    Raises:
        TypeError: If a field is missing (None where there must be a value), of another type, or
            not finite.
    """
    kind: Any = type(record)
    hints = _hints(kind)
    for each in fields(record):
        value = getattr(record, each.name)
        if (expected := _wrong(hints[each.name], value)) is not None:
            raise TypeError(f"`{each.name}` must be {expected}, got {value!r}.")


def check_nonnegative(record: Any, *names: str) -> None:
    """Refuse a record in which one of these estimates or numbers, where it is there, is negative.

    Raises:
        ValueError: If one is.
    """
    for name in names:
        found = getattr(record, name)
        value = getattr(found, "value", found)
        if value is not None and value < 0:
            raise ValueError(f"`{name}` must be >= 0, got {value!r}.")


def restored(
    kind: Any, values: Mapping[str, Any], absent: Mapping[str, frozenset[str]] | None = None
) -> Any:
    """An object from its JSON.

    Args:
        kind: Its class.
        values: Its fields.
        absent: By the name of a class, the fields that an older schema did not have.

    Raises:
        KeyError: If a field is missing or unknown, in it or in what it holds.
        TypeError: If a field is of another type.
    """
    hints = _hints(kind)
    unlike = set(values) ^ (set(hints) - (absent or {}).get(kind.__name__, frozenset()))
    if unlike:
        raise KeyError(f"{sorted(unlike)} of {kind.__name__}")
    return kind(**{k: _restored(hints[k], v, absent) for k, v in values.items()})


def _restored(hint: Any, value: Any, absent: Mapping[str, frozenset[str]] | None) -> Any:
    hint, _ = _optional(hint)
    if value is None:
        return None
    if is_dataclass(hint):
        return restored(hint, value, absent)
    kind, items = get_origin(hint), get_args(hint)
    if kind is Mapping and is_dataclass(items[1]):
        return {k: _restored(items[1], each, absent) for k, each in value.items()}
    if kind is tuple:
        return tuple(_restored(items[0], each, absent) for each in value)
    return value

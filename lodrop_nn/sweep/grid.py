"""The declaration of a sweep and the runs that it stands for."""

import itertools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from lodrop_nn.config import RunConfig
from lodrop_theory.records import content_hash

Measure = Literal["scores", "full", "stability"]
Method = Literal["lora", "lora-dropout", "frozen-A", "frozen-A-dropout"]
METHODS: tuple[Method, ...] = get_args(Method)
SCORES_PROTOCOL = 1  # raise when the meaning of the scores changes
STABILITY_PROTOCOL = 1  # raise when the meaning of that measurement changes
# Their values are lists themselves: an axis is a list of lists.
_LIST_FIELDS = ("target_modules", "adapted_layers")
_HINTS = get_type_hints(RunConfig)
# What says nothing where there are no masks.
_WITHOUT_MASKS: Mapping[str, Any] = {
    name: getattr(RunConfig, name)
    for name in ("n_masks_train", "mask_scope", "mask_law", "rescale")
}


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        config: What is trained.
        measure: ``"scores"`` for the quality along training, ``"full"`` for the measurements of
            ``lodrop compare``, ``"stability"`` for those, the curvature under masks, and the
            stabilities of each training example by the Gauss-Newton method.
        evaluate_every: Epochs from one score to the next, >= 1; the last epoch is always scored.
        n_masks_along: Members of the ensembles before the last epoch, >= 1; at the end they are
            ``config.n_masks_test``.
    """

    config: RunConfig
    measure: Measure = "scores"
    evaluate_every: int = 3
    n_masks_along: int = 4

    @cached_property
    def run_id(self) -> str:
        """Twelve hexadecimal digits that name the run; of a full one, those of a comparison."""
        if self.measure == "full":
            return self.config.run_id
        if self.measure == "stability":
            content = {"stability": STABILITY_PROTOCOL, "run": self.config.run_id}
            return content_hash(content)[:12]
        content = {
            "scores": SCORES_PROTOCOL,
            "run": self.config.run_id,
            "evaluate_every": self.evaluate_every,
            "n_masks_along": self.n_masks_along,
        }
        return content_hash(content)[:12]


def method_of(config: RunConfig) -> Method:
    """What the way of training is called.

    Example:
        >>> method_of(RunConfig(dropout_rate=0.1, train_A=False))
        'frozen-A-dropout'
    """
    if config.dropout_rate > 0:
        return "lora-dropout" if config.train_A else "frozen-A-dropout"
    return "lora" if config.train_A else "frozen-A"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A declared grid of runs.

    Each table of ``grid`` stands for the product of its values with those of ``common``: a list is
    an axis, anything else one value. Keys are the fields of
    :class:`~lodrop_nn.config.RunConfig`, and ``method``, which sets ``train_A`` and, for methods
    without masks, p = 0. Tables are united; equal runs count once. Where p = 0, what describes
    masks is set to its default, so that plain LoRA is not run once for each law of masks.

    Attributes:
        grid: One or more tables.
        common: What all tables share; a table overrides it.
        measure: As in :class:`SweepRun`.
        evaluate_every: As in :class:`SweepRun`.
        n_masks_along: As in :class:`SweepRun`.

    Raises:
        ValueError: If a key or a value is outside what is accepted.

    Example:
        >>> tables = {"method": "lora"}, {"method": "lora-dropout", "dropout_rate": [0.1, 0.5]}
        >>> sweep = SweepConfig(common={"seed": [0, 1]}, grid=tables)
        >>> [(run.config.dropout_rate, run.config.seed) for run in sweep.runs()]
        [(0.0, 0), (0.0, 1), (0.1, 0), (0.5, 0), (0.1, 1), (0.5, 1)]
    """

    grid: tuple[Mapping[str, Any], ...]
    common: Mapping[str, Any] = field(default_factory=dict)
    measure: Measure = "scores"
    evaluate_every: int = 3
    n_masks_along: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "common", dict(self.common))
        object.__setattr__(self, "grid", tuple(dict(table) for table in self.grid))
        if not self.grid:
            raise ValueError("`grid` must have at least one table, got none.")
        if self.measure not in get_args(Measure):
            raise ValueError(f"`measure` must be one of {get_args(Measure)}, got {self.measure!r}.")
        for name in ("evaluate_every", "n_masks_along"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")
        for table in (self.common, *self.grid):
            _check_keys(table)
        self.runs()  # refuses values before anything runs

    @classmethod
    def from_file(cls, path: str | Path) -> "SweepConfig":
        """Read a declaration from TOML or JSON.

        Raises:
            ValueError: If the file is neither, or declares what is not accepted.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            content = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
        except ValueError as error:  # both decoders' errors are
            raise ValueError(
                f"{path} must be valid TOML (or JSON, by its name): {error}."
            ) from None
        known = {each.name for each in fields(cls)}
        if not isinstance(content, dict) or not set(content) <= known:
            got = sorted(set(content) - known) if isinstance(content, dict) else content
            raise ValueError(f"{path} must be a table with keys of {sorted(known)}, got {got!r}.")
        grid = content.pop("grid", [])
        if not isinstance(grid, list) or not all(isinstance(table, dict) for table in grid):
            raise ValueError(f"`grid` of {path} must be a list of tables ([[grid]]), got {grid!r}.")
        return cls(grid=tuple(grid), **content)

    def as_json(self) -> dict[str, Any]:
        """The declaration as JSON-able values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "grid": list(self.grid)}

    @property
    def sweep_id(self) -> str:
        """Twelve hexadecimal digits that name the declaration."""
        return content_hash(self.as_json())[:12]

    def runs(self) -> list[SweepRun]:
        """All runs, each once: tables as declared, and in a table the runs of a seed together.

        Raises:
            ValueError: If a value is outside what is accepted.
        """
        found: dict[str, SweepRun] = {}
        for table in self.grid:
            configs = _product({**self.common, **table})
            for config in sorted(configs, key=lambda each: each.seed):  # stable
                run = SweepRun(
                    config=config,
                    measure=self.measure,
                    evaluate_every=self.evaluate_every,
                    n_masks_along=self.n_masks_along,
                )
                found.setdefault(run.run_id, run)
        return list(found.values())


def _check_keys(table: Mapping[str, Any]) -> None:
    unknown = sorted(set(table) - set(_HINTS) - {"method"})
    if unknown:
        raise ValueError(
            f"keys of `grid` and `common` must be 'method' or one of {sorted(_HINTS)}, "
            f"got {unknown}."
        )
    if "method" in table and "train_A" in table:
        raise ValueError("`train_A` must be left to `method` where there is one, got both.")


def _product(table: Mapping[str, Any]) -> list[RunConfig]:
    axes = [_axis(name, value) for name, value in table.items()]
    return [_config(dict(zip(table, point, strict=True))) for point in itertools.product(*axes)]


def _axis(name: str, value: Any) -> list[Any]:
    if name in _LIST_FIELDS:
        is_axis = isinstance(value, list | tuple) and any(
            isinstance(each, list | tuple) or each == "all" for each in value
        )
    else:
        is_axis = isinstance(value, list | tuple)
    values = list(value) if is_axis else [value]
    if not values:
        raise ValueError(f"`{name}` must have at least one value, got {value!r}.")
    return values


def _config(point: dict[str, Any]) -> RunConfig:
    method = point.pop("method", None)
    if method is not None:
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {METHODS}, got {method!r}.")
        point["train_A"] = not method.startswith("frozen-A")
        if not method.endswith("dropout"):
            point["dropout_rate"] = 0.0
    if "dropout_rate" not in point:
        raise ValueError("`dropout_rate` must be given for methods with masks, got none.")
    config = RunConfig(**{name: _value(name, value) for name, value in point.items()})
    if method is not None and method != method_of(config):
        raise ValueError(f"`dropout_rate` must be > 0 for {method!r}, got {config.dropout_rate!r}.")
    return replace(config, **_WITHOUT_MASKS) if config.dropout_rate == 0 else config


def _value(name: str, value: Any) -> Any:
    """A value as the field has it: equal numbers must give equal hashes.

    Raises:
        ValueError: If it is of another type.
    """
    if name == "adapted_layers" and value == "all":
        return None
    if name in _LIST_FIELDS:
        if not isinstance(value, list | tuple):
            raise ValueError(f"`{name}` must be a list, got {value!r}.")
        return tuple(value)
    kind = _HINTS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)
    if kind in (bool, str) and not isinstance(value, kind):
        raise ValueError(f"`{name}` must be a {kind.__name__}, got {value!r}.")
    if kind in (int, float) and not is_number:
        raise ValueError(f"`{name}` must be a number, got {value!r}.")
    return value

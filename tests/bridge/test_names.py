"""One word on both sides: measurements, fields of the record, and what theorems read."""

import dataclasses
from collections.abc import Set
from typing import get_type_hints

import pytest

import lodrop_nn.measure
from lodrop_nn.config import RunConfig
from lodrop_theory import inputs
from lodrop_theory.records import (
    Estimate,
    PosteriorPoint,
    PredictorMeasurement,
    RunRecord,
    StabilityEstimates,
    StabilityMeasurement,
)

# Chosen by the reader of a bound, or known from the configuration: nothing to measure.
CHOSEN = {
    "delta",
    "delta_draws",
    "n_draws",
    "n_priors",
    "loss_min",
    "largest_step_size",
    "step_size_sum",
    "dimension",
    "n_modules",
}
# The held-out bound reads the risk on the held-out rows, which estimates the population's.
RENAMED = {"held_out_risk": "population_risk"}
# Read by theorems that no record is put to: why each of them cannot be measured.
NOT_MEASURED = {
    "uniform_stability": "a supremum over training sets; a sample of them shows only less",
    "smoothness": "a supremum over wherever the iterates go",
    "information_nats": "a property of the law of the training set, of which there is one draw",
    "norm_bound": "must be fixed before training; the norm that came out is no such bound",
    "code_length_bits": "the length of a code that nobody has written",
}
# The parts of a record that hold what theorems read.
RECORDS = (
    RunRecord,
    PredictorMeasurement,
    StabilityMeasurement,
    StabilityEstimates,
    PosteriorPoint,
)
ALL_INPUTS = [
    value
    for value in vars(inputs).values()
    if isinstance(value, type) and dataclasses.is_dataclass(value) and value is not inputs._Inputs
]


def names(kind: type) -> Set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def recorded() -> set[str]:
    """Names of all fields that a record has, in all of its parts."""
    return set().union(*(names(kind) for kind in RECORDS))


def measured_fields() -> list[str]:
    """Fields of the record that hold an estimate."""
    hints = get_type_hints(RunRecord)
    return [name for name, hint in hints.items() if hint in (Estimate, Estimate | None)]


@pytest.mark.parametrize("kind", ALL_INPUTS)
def test_what_a_theorem_reads_is_in_the_record(kind: type) -> None:
    for name in names(kind) - CHOSEN - set(NOT_MEASURED):
        assert RENAMED.get(name, name) in recorded(), f"{kind.__name__}.{name} has no measurement"


def test_nothing_is_excused_without_need() -> None:
    read = set().union(*(names(kind) for kind in ALL_INPUTS))
    assert len(ALL_INPUTS) >= 6
    assert read >= CHOSEN | set(NOT_MEASURED) | set(RENAMED)
    assert not set(NOT_MEASURED) & recorded(), "measured by now: take it off the list"
    assert all(NOT_MEASURED.values())


@pytest.mark.parametrize("name", measured_fields())
def test_a_function_of_the_same_name_measures_each_field(name: str) -> None:
    function = getattr(lodrop_nn.measure, name)
    assert callable(function)
    assert name in lodrop_nn.measure.__all__
    assert get_type_hints(function)["return"] in (Estimate, Estimate | None)


def test_the_record_repeats_the_configuration_in_its_words() -> None:
    shared = {"dropout_rate", "n_train", "n_test", "n_masks_train", "n_masks_test"}
    assert shared <= names(RunRecord) & names(RunConfig)

"""From a preset to its rows and its features."""

from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lodrop_nn.reproduce.benchmark_rows import BenchmarkRows
from lodrop_nn.reproduce.glue import prepare_glue
from lodrop_nn.reproduce.glue_rows import glue_rows_of_files, glue_rows_of_hub
from lodrop_nn.reproduce.mmlu import mmlu_rows_of_files, mmlu_rows_of_hub, prepare_mmlu
from lodrop_nn.reproduce.preset import Preset
from lodrop_nn.reproduce.squad import prepare_squad, squad_rows_of_files, squad_rows_of_hub
from lodrop_nn.reproduce.task import PreparedTask

_OF_FILES: Mapping[str, Callable[[Preset, Path], BenchmarkRows]] = {
    "glue": glue_rows_of_files,
    "squad": squad_rows_of_files,
    "mmlu": mmlu_rows_of_files,
}
_OF_HUB: Mapping[str, Callable[[Preset], BenchmarkRows]] = {
    "glue": glue_rows_of_hub,
    "squad": squad_rows_of_hub,
    "mmlu": mmlu_rows_of_hub,
}
_PREPARE: Mapping[str, Callable[[BenchmarkRows, PreTrainedTokenizerBase, Preset], PreparedTask]] = {
    "glue": prepare_glue,
    "squad": prepare_squad,
    "mmlu": prepare_mmlu,
}


def load_rows(preset: Preset, files: Path | None, n_rows: int | None = None) -> BenchmarkRows:
    """The rows of a preset.

    Args:
        preset: The task.
        files: Folder with the benchmark's own files; None asks the hub, or its cache.
        n_rows: Only so many of each split; None for all.

    Raises:
        BenchmarkDataError: If they are not there or not of the schema; the text names both ways.
    """
    family = preset.family
    rows = _OF_HUB[family](preset) if files is None else _OF_FILES[family](preset, files)
    return rows.first(n_rows)


def prepare(
    rows: BenchmarkRows, tokenizer: PreTrainedTokenizerBase, preset: Preset
) -> PreparedTask:
    """The rows, tokenized, with the scores of their family.

    Args:
        rows: Rows of the task.
        tokenizer: Tokenizer of the base model.
        preset: The task.
    """
    return _PREPARE[preset.family](rows, tokenizer, preset)

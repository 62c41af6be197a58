"""The files of a measured training: the adapter, the record, and a text with what it says."""

from io import StringIO
from pathlib import Path

from peft import PeftModel
from rich.console import Console

from lodrop_nn.adapter.saving import save_adapter, write_plain_adapter
from lodrop_nn.language_record import LanguageRecord, write_language_record
from lodrop_nn.report.language import show_language
from lodrop_nn.report.measurement import show_measurement
from lodrop_theory.records import RunRecord, write_bytes_atomically, write_record

DELTA = 0.05  # failure probability of each bound in the text
_WIDTH = 100


def save_trained(model: PeftModel, folder: Path, *, is_masked: bool) -> None:
    """Save the adapter as plain PEFT loads it, with its masks beside where it has some."""
    if is_masked:
        save_adapter(model, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_plain_adapter(model, "default", dict(model.state_dict()), folder)


def write_measured(record: RunRecord | LanguageRecord, folder: Path) -> tuple[Path, Path]:
    """Write a record and the text of it, each atomically.

    Args:
        record: What was measured.
        folder: Gets ``records`` and ``reports``.

    Returns:
        Their files.

    Raises:
        RecordError: If the record has no place in JSON: then there is no file.
    """
    path = folder / "records" / f"{record.run_id}.json"
    text = StringIO()
    console = Console(file=text, width=_WIDTH)
    if isinstance(record, RunRecord):
        write_record(record, path)
        show_measurement(record, DELTA, console)
    else:
        write_language_record(record, path)
        show_language(record, DELTA, console)
    report = folder / "reports" / f"{record.run_id}.txt"
    write_bytes_atomically(report, text.getvalue().encode("utf-8"))
    return path, report

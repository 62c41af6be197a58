"""Write a comparison's report beside its records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lodrop_nn.report import figure, html
from lodrop_nn.report.summary import RateSummary
from lodrop_theory import theorem44_floor
from lodrop_theory.records import write_bytes_atomically


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a report lies."""

    png: Path
    pdf: Path
    html: Path


def write_report(
    summaries: Sequence[RateSummary], folder: Path, *, delta: float, name: str = "comparison"
) -> ReportFiles:
    """Write figure (PNG, PDF) and page (HTML), each atomically.

    Args:
        summaries: What :func:`lodrop_nn.report.summary.summarize` returns.
        folder: Where to write; made if absent.
        delta: Failure probability of the bounds, in (0, 1).
        name: Stem of the files.
    """
    first = summaries[0].records[0]
    floor = theorem44_floor(first.loss_range.value, first.n_train, delta)
    drawn = figure.draw(
        figure.compute(summaries),
        loss_range=first.loss_range.value,
        floor=float(floor),
        delta=delta,
    )
    png, pdf = figure.save(drawn, folder / name)
    page = folder / f"{name}.html"
    text = html.render(summaries, png.read_bytes(), delta=delta)
    write_bytes_atomically(page, text.encode("utf-8"))
    return ReportFiles(png=png, pdf=pdf, html=page)

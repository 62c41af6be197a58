"""Figure 1: the measured generalization gap and the bounds on it, against the dropout rate.

Reads   paper_figures/records/movie-reviews/*.json
Writes  paper_figures/out/fig01_gap_and_bounds.{csv,pdf,png}
Run     python -m paper_figures.fig01_gap_and_bounds     (CPU, seconds)
"""

from dataclasses import astuple, fields
from pathlib import Path

from lodrop_nn.report.figure import Point, compute, draw, save
from lodrop_theory import theorem44_floor
from paper_figures._comparison import DELTA, OUT, RECORDS, summaries, write_csv

NAME = Path(__file__).stem


def rows(points: list[Point]) -> list[tuple[object, ...]]:
    """The plotted numbers with a head, as the CSV holds them."""
    return [tuple(f.name for f in fields(Point)), *(astuple(point) for point in points)]


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write the numbers and the picture."""
    runs = summaries(records)
    first = runs[0].records[0]
    points = compute(runs)
    write_csv(out / f"{NAME}.csv", rows(points))
    floor = theorem44_floor(first.loss_range.value, first.n_train, DELTA)
    figure = draw(points, loss_range=first.loss_range.value, floor=float(floor), delta=DELTA)
    save(figure, out / NAME)


if __name__ == "__main__":
    main()

"""The committed records of the bounds against the truth are what the code computes."""

import csv
import math

import numpy as np
import pytest

from paper_figures import fig02_bounds_against_truth as figure
from paper_figures.truth_records import (
    N_DRAWS,
    N_PROBLEMS,
    PRINTED,
    RECORDS,
    SLACK_HEAD,
    coverage_rows,
    slack_rows,
)


def records(name: str) -> list[dict[str, str]]:
    with (RECORDS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_no_committed_problem_violates_a_bound() -> None:
    rows = records("slack")
    assert {int(row["problem"]) for row in rows} == set(range(N_PROBLEMS))
    assert N_PROBLEMS >= 200
    assert all(row["holds"] == "1" for row in rows)
    assert len({row["contender"] for row in rows}) >= 15


@pytest.mark.parametrize("number", [0, 1, 3, 5, 7])
def test_a_committed_problem_is_recomputed(number: int) -> None:
    committed = [row for row in records("slack") if int(row["problem"]) == number]
    fresh = list(slack_rows(range(number, number + 1)))
    assert len(committed) == len(fresh) > 0
    for old, new in zip(committed, fresh, strict=True):
        for name, value in zip(SLACK_HEAD, new, strict=True):
            try:
                assert float(old[name]) == pytest.approx(float(str(value)), rel=1e-4, abs=1e-9)
            except ValueError:  # text, or no number
                assert old[name] == str(value)


def test_coverage_holds_and_the_printed_lemma_does_not() -> None:
    rows = records("coverage")
    for row in rows:
        delta, low = float(row["delta"]), float(row["low"])
        assert int(row["n_draws"]) == N_DRAWS
        if row["contender"] == PRINTED:
            assert low > 4 * delta
        else:
            assert low <= delta
    # an exact limit comes close to its delta: a test that could not fail would be no test
    clopper = [row for row in rows if row["contender"] == "clopper-pearson"]
    assert max(float(row["high"]) / float(row["delta"]) for row in clopper) > 0.8


def test_few_draws_agree_with_the_committed_ones() -> None:
    fresh = {(r[0], r[1], r[2], r[3]): (r[5], r[4]) for r in coverage_rows(200)}
    for row in records("coverage"):
        key = (row["population"], int(row["n_train"]), float(row["delta"]), row["contender"])
        count, draws = fresh[key]
        rate = int(row["violations"]) / N_DRAWS
        spread = math.sqrt(rate * (1 - rate) / draws) + 1 / draws
        assert abs(count / draws - rate) < 6 * spread


def test_the_figure_is_drawn_from_the_records() -> None:
    points = figure.compute()
    with (figure.OUT / f"{figure.NAME}.csv").open(newline="", encoding="utf-8") as file:
        committed = list(csv.DictReader(file))
    assert len(points) == len(committed)
    for point, row in zip(points, committed, strict=True):
        assert (point.panel, point.series) == (row["panel"], row["series"])
        assert point.value == pytest.approx(float(row["value"]), rel=1e-9)
    # the order of the paper's bound and of the mean-square one, at every rate
    panel = {(p.series, p.x): p.value for p in points if p.panel == "a"}
    for x in {p.x for p in points if p.panel == "a"}:
        assert panel["truth", x] < panel["l2-stability, exact", x] < panel["lin2024", x]
    assert len(figure.draw(points).axes) == 3
    assert all(np.isfinite(p.value) for p in points)

"""The report: what is summed over seeds, what is marked how, and what a reader's browser gets."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lodrop_nn.report import figure, html
from lodrop_nn.report.summary import paired_difference, seed_mean, summarize
from lodrop_nn.report.tables import all_tables
from lodrop_nn.report.terminal import show
from lodrop_nn.report.write import write_report
from lodrop_theory import Estimate
from tests.factories import run_record

RATES, SEEDS = (0.0, 0.3), (0, 1, 2)
finite = st.floats(-1e6, 1e6)


def comparison(**changes):
    return summarize([run_record(p, s, **changes) for p in RATES for s in SEEDS], delta=0.05)


@given(st.lists(finite, min_size=2, max_size=6), finite)
def test_seed_mean_moves_with_a_shift_and_covers_its_mean(values, shift):
    before, after = seed_mean(values), seed_mean([v + shift for v in values])
    assert before.low <= before.mean <= before.high
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-6)
    assert after.high - after.low == pytest.approx(before.high - before.low, abs=1e-6)


def test_seed_mean_interval_covers_at_its_level():
    rng = np.random.default_rng(0)
    means = [seed_mean(rng.normal(1.0, 2.0, size=4)) for _ in range(2000)]
    covered = np.mean([m.low <= 1.0 <= m.high for m in means])
    assert 0.93 < covered < 0.97


def test_one_seed_has_no_interval():
    assert math.isnan(seed_mean([1.0]).low)


def test_paired_difference_cancels_what_a_seed_adds_to_both():
    gap = lambda r: r.predictors["mean"].generalization_gap  # noqa: E731
    difference = paired_difference(comparison(), gap, rate=0.3)
    # The factory adds the same amount per seed at every rate: the differences do not vary.
    assert difference.n_seeds == 3
    assert difference.mean == pytest.approx(-0.2 * 0.3 - 0.2 * 0.3)
    assert difference.high - difference.low == pytest.approx(0.0, abs=1e-9)


def test_records_of_different_experiments_are_refused():
    other = run_record(0.3, 1)
    config = {**other.config, "rank": 4}
    with pytest.raises(ValueError, match="differ in dropout rate and seed only"):
        summarize([run_record(0.3, 0), run_record(0.3, 1, config=config)], delta=0.05)
    with pytest.raises(ValueError, match="at least one run"):
        summarize([], delta=0.05)


def test_a_bound_that_does_not_apply_is_marked_with_its_reason():
    tables = {t.title: t for t in all_tables(comparison())}
    bounds = tables["Bounds on the gap from stability (nats), at delta = 0.05"]
    assert all(cell == "n/a" for row in bounds.rows for cell in row[2:])
    assert any("strong convexity" in note and "p = 0, 0.3" in note for note in bounds.notes)


def test_a_bound_that_applies_to_some_runs_says_to_how_many():
    positive = Estimate(value=0.3, low=0.29, high=0.3, n_draws=12, method="made up")
    runs = [run_record(0.3, 0), run_record(0.3, 1, hessian_min_eig=positive)]
    tables = {t.title: t for t in all_tables(summarize(runs, delta=0.05))}
    cells = tables["Bounds on the gap from stability (nats), at delta = 0.05"].rows[0]
    assert cells[2].startswith("~")
    assert "(v)" in cells[2]
    assert "[1/2 runs]" in cells[2]


def test_certificates_are_unmarked_and_plug_ins_are_not():
    tables = {t.title: t for t in all_tables(comparison())}
    held_out = tables["Bounds on the gap from held-out rows (nats), at delta = 0.05"]
    assert all(re.fullmatch(r"\d\.\d{3}", cell) for row in held_out.rows for cell in row[2:])


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_narrow_terminal_loses_no_digit(width):
    text = StringIO()
    show(all_tables(comparison()), Console(file=text, width=width))
    assert "…" not in text.getvalue()


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_is_escaped_and_loads_nothing():
    text = html.render(comparison(), b"\x89PNG", delta=0.05)
    page = Page()
    page.feed(text)
    assert "&lt;b&gt;markup&lt;/b&gt;" in text
    assert "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_the_figure_is_byte_reproducible(tmp_path: Path):
    first = write_report(comparison(), tmp_path / "a", delta=0.05)
    second = write_report(comparison(), tmp_path / "b", delta=0.05)
    assert first.pdf.read_bytes() == second.pdf.read_bytes()
    assert first.png.read_bytes() == second.png.read_bytes()
    assert first.html.read_text() == second.html.read_text()


def test_the_figure_plots_every_run_and_every_bound():
    points = figure.compute(comparison())
    for predictor in ("gibbs", "ensemble", "mean"):
        assert sum(p.series == f"gap:{predictor}" for p in points) == len(RATES) * len(SEEDS)
    theorem = [p for p in points if p.series == "bound:lin2024:mean"]
    assert all(math.isinf(p.value) and p.kind == "not applicable" for p in theorem)


def test_the_report_needs_no_torch():
    code = (
        "import sys, lodrop_nn.report.write, lodrop_nn.report.terminal, lodrop_nn.cli, lodrop_nn;"
        "bad = {'torch', 'transformers', 'peft'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

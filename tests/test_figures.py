"""The committed numbers are those that the committed records give, and drawing is reproducible."""

from pathlib import Path

import pytest

from lodrop_theory import read_record
from paper_figures import _comparison, fig01_gap_and_bounds, tab01_comparison

SCRIPTS = (fig01_gap_and_bounds, tab01_comparison)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.NAME)
def test_redrawing_gives_the_committed_numbers(script, tmp_path: Path):
    script.main(out=tmp_path)
    written = sorted(tmp_path.glob("*.csv"))
    assert written
    for path in written:
        assert path.read_text() == (_comparison.OUT / path.name).read_text()


def test_the_figure_is_byte_reproducible(tmp_path: Path):
    fig01_gap_and_bounds.main(out=tmp_path / "a")
    fig01_gap_and_bounds.main(out=tmp_path / "b")
    for first in (tmp_path / "a").iterdir():
        assert first.read_bytes() == (tmp_path / "b" / first.name).read_bytes()


def test_every_committed_record_is_sound_and_named_after_its_run():
    paths = sorted(_comparison.RECORDS.glob("*.json"))
    assert len(paths) >= 12
    for path in paths:
        assert read_record(path).run_id == path.stem

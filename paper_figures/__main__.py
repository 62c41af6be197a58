"""Redraw every figure and table from the committed records."""

from paper_figures import (
    fig01_gap_and_bounds,
    fig02_bounds_against_truth,
    fig03_cost,
    fig04_quality,
    tab01_comparison,
    tab02_quality,
)

SCRIPTS = (
    fig01_gap_and_bounds,
    fig02_bounds_against_truth,
    fig03_cost,
    fig04_quality,
    tab01_comparison,
    tab02_quality,
)

if __name__ == "__main__":
    for script in SCRIPTS:
        script.main()

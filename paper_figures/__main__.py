"""Redraw every figure and table from the committed records."""

from paper_figures import (
    fig01_gap_and_bounds,
    fig02_bounds_against_truth,
    fig03_cost,
    fig04_quality,
    fig05_measurement_cost,
    fig06_measured_against_theory,
    tab01_comparison,
    tab02_quality,
    tab03_certificates,
    tab04_bound_table,
)

SCRIPTS = (
    fig01_gap_and_bounds,
    fig02_bounds_against_truth,
    fig03_cost,
    fig04_quality,
    fig05_measurement_cost,
    fig06_measured_against_theory,
    tab01_comparison,
    tab02_quality,
    tab03_certificates,
    tab04_bound_table,
)

if __name__ == "__main__":
    for script in SCRIPTS:
        script.main()

"""Redraw every figure and table from the committed records."""

from paper_figures import fig01_gap_and_bounds, fig02_bounds_against_truth, tab01_comparison

if __name__ == "__main__":
    for script in (fig01_gap_and_bounds, fig02_bounds_against_truth, tab01_comparison):
        script.main()

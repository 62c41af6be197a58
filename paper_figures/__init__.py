"""Every figure and table, redrawn from committed records: ``python -m paper_figures``."""

"""A grid of runs, from configurations to records."""

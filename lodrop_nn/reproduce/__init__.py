"""The experiments of Lin et al. (2024) as declared presets, from benchmark files to scores."""

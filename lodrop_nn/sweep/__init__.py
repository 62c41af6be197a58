"""A declared grid of runs: content-hashed, resumable, on one machine or on a Ray cluster.

Names are imported where they are: only :mod:`~lodrop_nn.sweep.training` and
:mod:`~lodrop_nn.sweep.batching` need torch.
"""

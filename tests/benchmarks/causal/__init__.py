"""LoRA Dropout on a causal language model: SmolLM2-135M, dequantized from 4-bit.

Two quantities of one adapter, each on training and on held-out rows: how well it predicts the
tokens of a review, and how well it tells which of two label words follows.

Run        OMP_NUM_THREADS=1 python -m tests.benchmarks.causal
Summarize  python -m tests.benchmarks.causal.summarize
Writes     runs/causal (records, log-probabilities, weights), tests/benchmarks/records/causal.json

It may be killed at any time: a run that has its record is not repeated.
"""

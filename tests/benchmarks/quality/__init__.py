"""LoRA Dropout against what a user would do instead, on three data sets and five seeds.

Run        OMP_NUM_THREADS=1 python -m tests.benchmarks.quality --shard 0/2    (and 1/2 beside it)
Summarize  python -m tests.benchmarks.quality.summarize
Writes     runs/quality (records, weights, logits), tests/benchmarks/records/quality.json

It may be killed at any time: a run that has its record is not repeated.
"""

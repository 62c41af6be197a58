"""LoRA Dropout against what a user would do instead, on three data sets and five seeds.

Run        OMP_NUM_THREADS=1 python -m tests.benchmarks.quality --shard 0/2    (and 1/2 beside it)
Summarize  python -m tests.benchmarks.quality.summarize
Writes     runs/quality (records, weights, logits), tests/benchmarks/records/quality.json

Two smaller questions have their own summaries, which say how they are asked: masks in training
against masks at test time (``masked``, then ``ablation``), and AdaLoRA instead of LoRA (the arms
``adalora`` and ``adalora-dropout`` on two data sets; ``adalora_cost``, then ``adalora_summary``).

It may be killed at any time: a run that has its record is not repeated.
"""

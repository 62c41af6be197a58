"""The hypotheses of every bound that a run has, and what the run shows of each."""

from lodrop_theory.assumptions.of_record import audit
from lodrop_theory.assumptions.table import AssumptionTable, Hypothesis

__all__ = ["AssumptionTable", "Hypothesis", "audit"]

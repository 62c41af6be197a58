"""Inverse problems: what reaches a gap, how much each input matters, which rate to use."""

from lodrop_theory.planner.elasticity import Elasticities, elasticities
from lodrop_theory.planner.selection import (
    RateSelection,
    leave_one_out_losses,
    select_dropout_rate,
)
from lodrop_theory.planner.solve import Plan, solve

__all__ = [
    "Elasticities",
    "Plan",
    "RateSelection",
    "elasticities",
    "leave_one_out_losses",
    "select_dropout_rate",
    "solve",
]

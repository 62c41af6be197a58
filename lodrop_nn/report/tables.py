"""The rows of the comparison, as plain text cells: one row per dropout rate.

The terminal and the page both show these tables, so they cannot disagree.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lodrop_nn.report.summary import Quantity, RateSummary, SeedMean, paired_difference
from lodrop_theory import BoundResult, update_sparsity
from lodrop_theory.records import PREDICTORS, Predictor

MARKS = {"certificate": "", "plug-in": "~"}
_LEGEND = (
    "unmarked: certificate; ~: plug-in; n/a: a hypothesis fails, so it says nothing; (v): vacuous"
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text cells.

    Attributes:
        title: What the table holds, with units.
        columns: Heads, the first is the dropout rate.
        rows: One tuple of cells per dropout rate.
        notes: Lines to print beneath.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return "–"
    if value != 0 and (abs(value) >= 1e4 or abs(value) < 0.5 * 10**-digits):
        return f"{value:.1e}"
    return f"{value:.{1 if abs(value) >= 100 else digits}f}"


def with_interval(summary: SeedMean, digits: int = 3) -> str:
    """Mean, and beneath it the half-width of its interval over seeds where there is one."""
    text = _number(summary.mean, digits)
    if math.isnan(summary.low):
        return text
    half = (summary.high - summary.low) / 2
    return f"{text}\n±{half:.1e}" if "e" in text else f"{text}\n±{half:.{digits}f}"


def _score(predictor: Predictor, name: str) -> Quantity:
    return lambda record: getattr(record.predictors[predictor], name)


def risk_table(summaries: Sequence[RateSummary]) -> Table:
    """Train and test risk and gap of the three predictors."""
    columns = ["p"]
    for predictor in PREDICTORS:
        columns += [f"{predictor}\ntrain", f"{predictor}\ntest", f"{predictor}\ngap"]
    rows = []
    for summary in summaries:
        cells = [f"{summary.dropout_rate:g}"]
        for predictor in PREDICTORS:
            for name in ("empirical_risk", "population_risk", "generalization_gap"):
                cells.append(with_interval(summary.over_seeds(_score(predictor, name))))
        rows.append(tuple(cells))
    masks = summaries[0].records[0].n_masks_test
    return Table(
        title="Risk: smoothed cross-entropy in nats",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(
            f"gibbs: one mask per prediction; ensemble: probabilities averaged over {masks} masks; "
            "mean: masks off. ±: half of Student's 95% interval over seeds, where several ran.",
        ),
    )


def score_table(summaries: Sequence[RateSummary]) -> Table:
    """Held-out accuracy, calibration error and negative log-likelihood."""
    names = (("test_accuracy", "acc"), ("calibration_error", "ECE"), ("test_nll", "NLL"))
    columns = ["p"]
    for predictor in PREDICTORS:
        columns += [f"{predictor}\n{short}" for _, short in names]
    rows = []
    for summary in summaries:
        cells = [f"{summary.dropout_rate:g}"]
        for predictor in PREDICTORS:
            for name, _ in names:
                cells.append(with_interval(summary.over_seeds(_score(predictor, name))))
        rows.append(tuple(cells))
    return Table(
        title="Held-out scores",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=("ECE: 15 equal-width bins, biased upward at this size. NLL: unsmoothed, in nats.",),
    )


def quantity_table(summaries: Sequence[RateSummary]) -> Table:
    """What the theorems read, as measured."""
    rows = []
    for summary in summaries:
        residuals = [r.hessian_min_eig.value - r.hessian_min_eig.lower for r in summary.records]
        rows.append(
            (
                f"{summary.dropout_rate:g}",
                with_interval(summary.over_seeds(lambda r: r.loss_range)),
                with_interval(summary.over_seeds(lambda r: r.lipschitz), 2),
                with_interval(summary.over_seeds(lambda r: r.hessian_min_eig), 2),
                _number(max(residuals), 2),
                with_interval(summary.over_seeds(lambda r: r.gradient_norm)),
                with_interval(summary.over_seeds(lambda r: r.delta_weight_norm), 2),
                with_interval(summary.over_seeds(lambda r: r.penalty), 4),
                with_interval(summary.over_seeds(lambda r: r.penalty_kkt), 4),
                with_interval(summary.over_seeds(lambda r: r.update_sparsity)),
                _number(float(update_sparsity(summary.dropout_rate))),
            )
        )
    return Table(
        title="Measured quantities (masks off, at the solution)",
        columns=(
            "p",
            "C",
            "ρ",
            "Λmin",
            "Λmin\nresidual",
            "‖∇R̂‖",
            "‖ΔW‖",
            "λ\nenergy",
            "λ\nKKT",
            "realized\nsparsity",
            "2p−p²",
        ),
        rows=tuple(rows),
        notes=(
            "Λmin is a Ritz value: an eigenvalue lies within the residual, and the true minimum is "
            "never above Λmin. ρ is the largest per-example gradient norm at the solution, a lower "
            "estimate of what the proofs need.",
        ),
    )


# Heads of the columns; a bound that is not listed goes by its identifier.
_STABILITY_HEADS = {
    "lin2024-stability": "Prop. 4.2\npointwise",
    "remove-one": "remove-one\nuniform",
    "remove-one-fixed-normalization": "remove-one\n1/n form",
    "replace-one": "replace-one\nuniform",
}
_BOUND_HEADS = {
    "lin2024": "Thm 4.4\npaper",
    "two-stability": "two stab.\nChebyshev",
    "uniform-tail": "uniform\nexp. tail",
    "expectation": "uniform\nexpected",
    "l2-stability": "L2\nstability",
    "hold-out": "hold-out\nHoeffding",
    "hold-out+jensen": "gibbs, by\nThm 4.5",
}


def stability_table(summaries: Sequence[RateSummary]) -> Table:
    """The paper's stability and its corrected forms, from the measured curvature."""
    rows = []
    for summary in summaries:
        cells = [f"{summary.dropout_rate:g}"]
        for results in zip(*summary.stabilities, strict=True):
            held = [float(s.value) for s in results if bool(s.applicable)]
            text = MARKS["plug-in"] + _number(float(np.mean(held))) if held else "n/a"
            if 0 < len(held) < len(results):
                text += f"\n[{len(held)}/{len(results)} runs]"
            cells.append(text)
        rows.append(tuple(cells))
    heads = (_STABILITY_HEADS.get(s.bound, s.bound) for s in summaries[0].stabilities[0])
    return Table(
        title="Stability from the measured curvature, in nats",
        columns=("p", *heads),
        rows=tuple(rows),
        notes=(_LEGEND,),
    )


def _bound_cell(results: Sequence[BoundResult]) -> str:
    """Mean gap over the runs where the bound applies, with its marks."""
    applicable = [r for r in results if r.kind != "not applicable"]
    if not applicable:
        return "n/a"
    mark = MARKS[str(applicable[0].kind)]
    text = mark + _number(float(np.mean([float(r.gap) for r in applicable])))
    if all(bool(r.vacuous) for r in applicable):
        text += " (v)"
    if len(applicable) < len(results):
        text += f"\n[{len(applicable)}/{len(results)} runs]"
    return text


def bound_table(
    summaries: Sequence[RateSummary], title: str, chosen: Callable[[BoundResult], bool]
) -> Table:
    """The chosen bounds beside the measured gap, marked with what they are worth."""
    rows = []
    for summary in summaries:
        gap = summary.over_seeds(_score("mean", "generalization_gap"))
        cells = [f"{summary.dropout_rate:g}", with_interval(gap)]
        for results in zip(*(filter(chosen, bounds) for bounds in summary.bounds), strict=True):
            cells.append(_bound_cell(results))
        rows.append(tuple(cells))
    heads = (
        f"{_BOUND_HEADS.get(b.bound, b.bound)}\n({b.predictor})"
        for b in filter(chosen, summaries[0].bounds[0])
    )
    return Table(
        title=f"{title}, at delta = {_delta(summaries):g}",
        columns=("p", "measured\ngap\n(mean)", *heads),
        rows=tuple(rows),
        notes=(_LEGEND, *_reasons(summaries, chosen)),
    )


def _reasons(summaries: Sequence[RateSummary], chosen: Callable[[BoundResult], bool]) -> list[str]:
    """Which hypothesis fails at which rates, and what would repair it in the worst run of each."""
    worst: dict[str, dict[float, tuple[float, str]]] = {}
    for summary in summaries:
        for record, bounds in zip(summary.records, summary.bounds, strict=True):
            for bound in filter(chosen, bounds):
                if bound.kind == "not applicable":
                    candidate = (record.hessian_min_eig.lower, bound.remedy or "")
                    at_rate = worst.setdefault(str(bound.failed_hypothesis), {})
                    at_rate[summary.dropout_rate] = min(
                        candidate, at_rate.get(summary.dropout_rate, candidate)
                    )
    lines = []
    for hypothesis, at_rate in worst.items():
        lines.append(f"n/a at p = {', '.join(f'{p:g}' for p in at_rate)}: needs {hypothesis}")
        lines += [f"  p = {p:g}: {remedy}" for p, (_, remedy) in at_rate.items() if remedy]
    return lines


_PAIRED: tuple[tuple[str, Quantity], ...] = (
    ("gap\nmean", _score("mean", "generalization_gap")),
    ("gap\nensemble", _score("ensemble", "generalization_gap")),
    ("test risk\nmean", _score("mean", "population_risk")),
    ("test risk\nensemble", _score("ensemble", "population_risk")),
    ("ECE\nmean", _score("mean", "calibration_error")),
    ("ECE\nensemble", _score("ensemble", "calibration_error")),
    ("accuracy\nensemble", _score("ensemble", "test_accuracy")),
)


def paired_table(summaries: Sequence[RateSummary]) -> Table | None:
    """Differences to p = 0 over shared seeds; None without p = 0 or with one seed only."""
    if summaries[0].dropout_rate != 0.0 or len(summaries[0].records) < 2 or len(summaries) < 2:
        return None
    rows = []
    for summary in summaries[1:]:
        cells = [f"{summary.dropout_rate:g}"]
        for _, quantity in _PAIRED:
            difference = paired_difference(summaries, quantity, rate=summary.dropout_rate)
            cells.append(
                f"{difference.mean:+.3f}\n[{difference.low:+.3f},\n {difference.high:+.3f}]"
            )
        rows.append(tuple(cells))
    seeds = len(summaries[0].records)
    return Table(
        title=f"Paired difference to p = 0 over {seeds} seeds, with its 95% interval",
        columns=("p", *(head for head, _ in _PAIRED)),
        rows=tuple(rows),
        notes=(
            "Student t over seeds; an interval that contains 0 shows no effect. Not adjusted for "
            "the number of cells.",
        ),
    )


def _delta(summaries: Sequence[RateSummary]) -> float:
    return next(float(b.delta) for b in summaries[0].bounds[0] if b.delta is not None)


def _from_curvature(bound: BoundResult) -> bool:
    return "n_train" in bound.inputs


def all_tables(summaries: Sequence[RateSummary]) -> list[Table]:
    """Every table of the comparison, in reading order."""
    tables = [
        risk_table(summaries),
        score_table(summaries),
        quantity_table(summaries),
        stability_table(summaries),
        bound_table(summaries, "Bounds on the gap from stability (nats)", _from_curvature),
        bound_table(
            summaries,
            "Bounds on the gap from held-out rows (nats)",
            lambda bound: not _from_curvature(bound),
        ),
    ]
    paired = paired_table(summaries)
    return tables if paired is None else [*tables, paired]

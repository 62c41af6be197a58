"""What one record says, as tables for a terminal of 80 columns; nothing here needs torch."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from lodrop_nn.report.tables import Table
from lodrop_nn.report.terminal import show
from lodrop_nn.report.verdicts import verdict_tables
from lodrop_theory.records import (
    PREDICTORS,
    STABILITY_METHODS,
    Estimate,
    RunRecord,
    StabilityMeasurement,
)

Named = Sequence[tuple[str, str]]  # (field, what a reader calls it)

_RISKS: Named = (
    ("empirical_risk", "training risk"),
    ("population_risk", "held-out risk"),
    ("generalization_gap", "gap"),
    ("train_accuracy", "training accuracy"),
    ("test_accuracy", "held-out accuracy"),
)
_SCORES: Named = (
    ("test_nll", "NLL"),
    ("brier_score", "Brier score"),
    ("calibration_error", "ECE, 15 bins"),
    ("debiased_calibration_error", "ECE, debiased"),
    ("smooth_calibration_error", "smooth ECE"),
    ("vote_distance", "distance to votes"),
)
_QUANTITIES: Named = (
    ("loss_range", "C, range of the loss"),
    ("lipschitz", "ρ at the solution"),
    ("dropout_lipschitz", "ρ under masks"),
    ("lipschitz_bound", "ρ, proved"),
    ("hessian_min_eig", "Λmin"),
    ("hessian_max_eig", "Λmax"),
    ("dropout_min_eig", "Λmin under masks"),
    ("transverse_min_eig", "Λmin across the gauge"),
    ("gauge_residual", "gauge residual"),
    ("gradient_norm", "‖∇R̂‖"),
    ("delta_weight_norm", "‖ΔW‖"),
    ("penalty", "λ, energy"),
    ("penalty_kkt", "λ, stationarity"),
    ("penalty_curvature", "λ, curvature"),
    ("update_sparsity", "zeros of the update"),
    ("output_covariance", "tr Cov of the logits"),
    ("jensen_gap", "Jensen gap"),
)
_OBJECTIVE: Named = (
    ("gradient_norm", "‖gradient‖"),
    ("objective_min_eig", "Λmin of the objective"),
    ("loss_variance", "variance of the loss"),
    ("lipschitz_segment", "ρ on segments"),
    ("trace_gap", "tr(H⁻¹G) / n"),
    ("newton_ratio", "Newton / refit"),
    ("influence_ratio", "influence / refit"),
)
_STABILITIES: Named = (
    ("pointwise_stability", "pointwise"),
    ("hypothesis_stability", "hypothesis"),
    ("remove_one_out", "remove one, fresh"),
    ("replace_one_out", "replace one, fresh"),
    ("replace_one_in", "replace one, itself"),
    ("leave_one_out_risk", "leave-one-out risk"),
    ("replace_one_gap", "replace-one gap"),
)


def show_measurement(record: RunRecord, delta: float, console: Console) -> None:
    """Print everything that a record holds and what the theorems make of it.

    Args:
        record: A run or a measured adapter.
        delta: Failure probability of each bound, in (0, 1).
        console: Where it is printed; 80 columns are enough.
    """
    for line in _heading(record):
        console.print(Text(line))
    console.print()
    show([*measured_tables(record), *verdict_tables(record, delta)], console)
    show([_seconds(record.seconds)], console)
    if record.notes:
        console.print(Text("Notes", style="bold"))
        for note in record.notes:
            console.print(Text(f"  - {note}"))
        console.print()


def measured_tables(record: RunRecord) -> list[Table]:
    """What a record holds, in reading order; what was not measured is left out."""
    tables = [
        _by_predictor(record, "Risks: smoothed cross-entropy in nats", _RISKS),
        _by_predictor(record, "Held-out scores and calibration", _SCORES),
        _estimates("What the theorems read", record, _QUANTITIES),
    ]
    if record.stability is not None:
        tables += _stability(record.stability)
    if record.posterior:
        tables.append(_posterior(record))
    return tables


def _heading(record: RunRecord) -> list[str]:
    config = record.config
    return [
        f"Record: {record.run_id}",
        f"Adapter: {config.get('adapter', '?')} on {config.get('model', '?')}, "
        f"{record.n_parameters:,} trained parameters, p = {record.dropout_rate:g}",
        f"Rows: {config.get('data', '?')}, {record.n_train} for training, {record.n_test} held out",
        f"Measured: {record.created}, {sum(record.seconds.values()):.0f} s on "
        f"{record.environment.get('device', '?')}",
    ]


def number(value: float) -> str:
    """A number in a cell: three decimals, or three digits where it is small or large."""
    if value != 0 and not 0.001 <= abs(value) < 1000:
        return f"{value:.2e}"
    return f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    """The interval of an estimate, or nothing; an exact number is said to be so."""
    if estimate.low is None or estimate.high is None:
        return ""
    if estimate.low == estimate.high:
        return "exact" if estimate.provenance == "certified" else ""
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def _cell(estimate: Estimate | None, between: str = ", ") -> str:
    if estimate is None:
        return ""
    span = interval(estimate).replace(", ", between)
    return f"{number(estimate.value)}\n{span}" if span.startswith("[") else number(estimate.value)


def _levels(estimates: Sequence[Estimate | None]) -> str:
    levels = sorted({e.level for e in estimates if e is not None and e.level is not None})
    if not levels:
        return "No interval has a level."
    return f"In brackets: intervals at {' or '.join(f'{level:.0%}' for level in levels)}."


def _by_predictor(record: RunRecord, title: str, names: Named) -> Table:
    rows, all_estimates = [], []
    for name, head in names:
        estimates = [getattr(record.predictors[predictor], name) for predictor in PREDICTORS]
        if any(estimate is not None for estimate in estimates):
            rows.append((head, *map(_cell, estimates)))
            all_estimates += estimates
    return Table(
        title=title,
        columns=("", *PREDICTORS),
        rows=tuple(rows),
        notes=(
            f"gibbs: one mask per prediction; ensemble: probabilities averaged over "
            f"{record.n_masks_test} masks; mean: masks off. {_levels(all_estimates)}",
        ),
    )


def _estimates(title: str, holder: object, names: Named, *more: str) -> Table:
    """Value, interval, standing and draws of each estimate; how it was measured beneath."""
    present = [
        (head, estimate) for name, head in names if (estimate := getattr(holder, name)) is not None
    ]
    rows = tuple(
        (head, number(each.value), interval(each), str(each.provenance), str(each.n_draws))
        for head, each in present
    )
    return Table(
        title=title,
        columns=("", "value", "interval", "standing", "draws"),
        rows=rows,
        notes=(
            *more,
            "certified: exact, or surely within the interval; plug-in: neither that nor a "
            f"confidence interval of the whole error. {_levels([each for _, each in present])}",
            *(f"{head}: {each.method}" for head, each in present),
        ),
    )


def _stability(measured: StabilityMeasurement) -> list[Table]:
    methods = [method for method in STABILITY_METHODS if method in measured.estimates]
    columns = [measured.estimates[method] for method in methods]
    rows = tuple(
        (head, *(_cell(getattr(column, name), ",\n ") for column in columns))
        for name, head in _STABILITIES
    )
    every = [getattr(column, name) for column in columns for name, _ in _STABILITIES]
    return [
        Table(
            title="Stabilities by method, in nats",
            columns=("", *methods),
            rows=rows,
            notes=(
                "Mean or root mean square change of the loss when one training example is left "
                f"out or replaced, at that example or at fresh rows. {_levels(every)}",
                *(
                    f"{method}: {column.pointwise_stability.method}"
                    for method, column in zip(methods, columns, strict=True)
                ),
            ),
        ),
        _estimates(
            "The objective that stabilities are those of",
            measured,
            _OBJECTIVE,
            f"{measured.objective}; ridge τ = {number(measured.ridge)} around the "
            f"{measured.center}, {measured.n_parameters} coordinates.",
        ),
    ]


def _posterior(record: RunRecord) -> Table:
    rows = tuple(
        (
            number(point.noise_std),
            _cell(point.kl_nats),
            _cell(point.empirical_risk),
            _cell(point.error_rate),
        )
        for point in record.posterior
    )
    every = [e for p in record.posterior for e in (p.kl_nats, p.empirical_risk, p.error_rate)]
    return Table(
        title="The randomized adapter of the PAC-Bayes bounds",
        columns=("σ", "KL, nats", "training risk", "training error"),
        rows=rows,
        notes=(f"σ: noise on each factor entry that the masks keep. {_levels(every)}",),
    )


def _seconds(seconds: Mapping[str, float]) -> Table:
    whole = sum(seconds.values())
    rows = [
        (stage, f"{spent:.1f}", f"{spent / whole:.0%}" if whole > 0 else "")
        for stage, spent in seconds.items()
    ]
    return Table(
        title="Time",
        columns=("stage", "seconds", "share"),
        rows=(*rows, ("in all", f"{whole:.1f}", "")),
    )

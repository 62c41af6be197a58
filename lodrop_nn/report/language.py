"""What the record of a language model says, as tables for a terminal of 80 columns."""

from rich.console import Console
from rich.text import Text

from lodrop_nn.language_record import LanguageRecord, language_bounds
from lodrop_nn.report.measurement import interval, number
from lodrop_nn.report.tables import Table
from lodrop_nn.report.terminal import show
from lodrop_theory.records import PREDICTORS, Estimate

_RISKS = (
    ("empirical_risk", "training risk"),
    ("population_risk", "held-out risk"),
    ("generalization_gap", "gap"),
    ("train_nll", "training NLL"),
    ("test_nll", "held-out NLL"),
    ("train_perplexity", "training perplexity"),
    ("test_perplexity", "held-out perplexity"),
)


def show_language(record: LanguageRecord, delta: float, console: Console) -> None:
    """Print what a record of a language model holds, and its hold-out bounds.

    Args:
        record: A measured language model.
        delta: Failure probability of each bound, in (0, 1).
        console: Where it is printed; 80 columns are enough.
    """
    config = record.config
    for line in (
        f"Record: {record.run_id}",
        f"Adapter: {config.get('adapter', '?')} on {config.get('model', '?')}, "
        f"{record.n_parameters:,} trained parameters, p = {record.dropout_rate:g}",
        f"Rows: {record.n_train_measured} of {record.n_train} for training "
        f"({record.n_train_tokens:,} tokens), {record.n_test} held out "
        f"({record.n_test_tokens:,} tokens)",
        f"Measured: {record.created}, {sum(record.seconds.values()):.0f} s on "
        f"{record.environment.get('device', '?')}",
    ):
        console.print(Text(line))
    console.print()
    show([_risks(record), _bounds(record, delta)], console)
    console.print(Text("Notes", style="bold"))
    for note in record.notes:
        console.print(Text(f"  - {note}"))


def _cell(estimate: Estimate) -> str:
    span = interval(estimate)
    return f"{number(estimate.value)}\n{span}" if span.startswith("[") else number(estimate.value)


def _risks(record: LanguageRecord) -> Table:
    gain = record.jensen_gap
    level = record.predictors["mean"].population_risk.level
    return Table(
        title="Risks: smoothed token loss, mean over rows, nats per token",
        columns=("", *PREDICTORS),
        rows=tuple(
            (head, *(_cell(getattr(record.predictors[each], name)) for each in PREDICTORS))
            for name, head in _RISKS
        ),
        notes=(
            f"gibbs: one mask per row; ensemble: probabilities of each token averaged over "
            f"{record.n_masks_test} masks; mean: masks off. "
            + ("" if level is None else f"In brackets: intervals at {level:.0%}."),
            f"Jensen gap: {number(gain.value)} {interval(gain)}",
        ),
    )


def _bounds(record: LanguageRecord, delta: float) -> Table:
    return Table(
        title=f"Hold-out bounds, each at delta = {delta:g}",
        columns=("", "predictor", "gap at most", "risk at most"),
        rows=tuple(
            (
                each.bound,
                each.predictor,
                f"{float(each.gap):.3f}{' (v)' if bool(each.vacuous) else ''}",
                "–" if each.risk is None else f"{float(each.risk):.3f}",
            )
            for each in language_bounds(record, delta=delta)
        ),
        notes=(
            f"Range C of the loss: {number(record.loss_range.value)} nats. (v): vacuous. Each line "
            "holds alone with probability 1 - delta, if the held-out rows are independent and no "
            "choice has seen them.",
        ),
    )

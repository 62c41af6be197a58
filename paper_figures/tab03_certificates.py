"""Table 3: the PAC-Bayes certificates beside hold-out bounds and measured errors.

Reads   paper_figures/records/certificate/*.json
Writes  paper_figures/out/tab03_certificates.{csv,md}
Run     python -m paper_figures.tab03_certificates     (CPU, seconds)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodrop_nn.certify.record import CertificateRecord, read_certificate
from lodrop_theory.records import Estimate, write_bytes_atomically
from paper_figures._comparison import HERE, OUT, write_points

NAME = Path(__file__).stem
RECORDS = HERE / "records" / "certificate"

ERROR, LOSS = "0-1", "smoothed cross-entropy"
VOTE = "0-1, majority vote"
VACUOUS, GUESS = "‡", "†"
LEGEND = f"""\
Bounds hold with probability 1 - δ each, not all of them together, and are rounded up; measured
values are on held-out rows, with 95% intervals. Gibbs: masks and noise drawn anew for each
prediction. Vote: the majority vote of several such draws, bounded by twice the bound of Gibbs.
Ensemble: probabilities averaged over such draws, bounded by Jensen's inequality. Mean: neither
masks nor noise; no PAC-Bayes bound is about it. Unseen: Gibbs on the rows of the pool outside the
sample, which is what the hold-out bounds are about; the other PAC-Bayes bounds are about the pool
with the sample in it. {GUESS} not below what answering uniformly at random gives; {VACUOUS}
vacuous, not below the range of the loss.
"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in one loss; the bounds are about the risk, each with probability 1 - delta.

    Attributes:
        run: Name of the record.
        loss: ``0-1`` or ``smoothed cross-entropy`` (nats).
        n_train: Rows that the posterior was trained on.
        n_test: Held-out rows of the hold-out bounds.
        prior: Where the prior is centered.
        kl_weight: Weight of the divergence in training.
        log_n_priors: ln G of the G priors on the grid, all of them paid for. Nats.
        kl_head: Divergence of the head's law from its prior. Nats.
        kl_factors: That of the factors. Nats.
        delta: Failure probability of each bound.
        training: Mean loss of the posterior over the training rows.
        gibbs: PAC-Bayes bound.
        ensemble: The same for the vote (0-1) or the averaged probabilities (cross-entropy).
        unseen: PAC-Bayes bound for Gibbs on the rows of the pool outside the sample.
        hold_out_gibbs: Hold-out bound, kl inverse.
        hold_out_ensemble: The same for the vote or the averaged probabilities.
        hold_out_mean: The same with neither masks nor noise.
        held_out_gibbs: Measured on the held-out rows.
        held_out_gibbs_low: Lower end of its 95% interval.
        held_out_gibbs_high: Upper end.
        held_out_ensemble: Measured, of the vote or the averaged probabilities.
        held_out_ensemble_low: Lower end.
        held_out_ensemble_high: Upper end.
        held_out_mean: Measured, with neither masks nor noise.
        held_out_mean_low: Lower end.
        held_out_mean_high: Upper end.
        guess: What answering uniformly at random gives, in expectation: 1 - 1/K or ln K.
        loss_range: Length of the interval of the loss; a bound that is not below it is vacuous.
    """

    run: str
    loss: str
    n_train: int
    n_test: int
    prior: str
    kl_weight: float
    log_n_priors: float
    kl_head: float
    kl_factors: float
    delta: float
    training: float
    gibbs: float
    ensemble: float
    unseen: float
    hold_out_gibbs: float
    hold_out_ensemble: float
    hold_out_mean: float
    held_out_gibbs: float
    held_out_gibbs_low: float
    held_out_gibbs_high: float
    held_out_ensemble: float
    held_out_ensemble_low: float
    held_out_ensemble_high: float
    held_out_mean: float
    held_out_mean_low: float
    held_out_mean_high: float
    guess: float
    loss_range: float


def compute(records: Path = RECORDS) -> list[Line]:
    """Pick the numbers out of the records."""
    runs = [(path.stem, read_certificate(path)) for path in sorted(records.glob("*.json"))]
    return [_line(run, record, loss) for loss in (ERROR, LOSS) for run, record in runs]


def _line(run: str, record: CertificateRecord, loss: str) -> Line:
    config, wrong = record.config, loss == ERROR
    together = VOTE if wrong else loss
    pac_bayes = record.bound("pac-bayes-kl", loss, "gibbs")
    carried = record.bound(f"pac-bayes-kl+{'vote' if wrong else 'jensen'}", together, "ensemble")
    measured = {
        "gibbs": record.held_out["gibbs"]["error_rate" if wrong else "population_risk"],
        "ensemble": record.held_out["ensemble"]["vote_error_rate" if wrong else "population_risk"],
        "mean": record.held_out["mean"]["error_rate" if wrong else "population_risk"],
    }
    n_classes = _n_classes(record)
    return Line(
        run=run,
        loss=loss,
        n_train=config["n_train"],
        n_test=config["n_test"],
        prior=_prior(config),
        kl_weight=config["kl_weight"],
        log_n_priors=math.log(record.n_priors),
        kl_head=math.fsum(v for k, v in record.kl_by_parameter.items() if "lora_" not in k),
        kl_factors=math.fsum(v for k, v in record.kl_by_parameter.items() if "lora_" in k),
        delta=pac_bayes["delta"],
        training=record.training["error_rate" if wrong else "empirical_risk"].value,
        gibbs=pac_bayes["risk"],
        ensemble=carried["risk"],
        unseen=record.bound("pac-bayes-kl+unseen", loss, "gibbs")["risk"],
        hold_out_gibbs=record.bound("hold-out-kl", loss, "gibbs")["risk"],
        hold_out_ensemble=record.bound("hold-out-kl", together, "ensemble")["risk"],
        hold_out_mean=record.bound("hold-out-kl", loss, "mean")["risk"],
        guess=1 - 1 / n_classes if wrong else math.log(n_classes),
        loss_range=pac_bayes["loss_range"],
        **{f"held_out_{k}{end}": v for k, each in measured.items() for end, v in _ends(each)},
    )


def _ends(measured: Estimate) -> tuple[tuple[str, float], ...]:
    return ("", measured.value), ("_low", measured.lower), ("_high", measured.upper)


def _prior(config: Mapping[str, Any]) -> str:
    if config["prior_epochs"]:
        return f"trained on {config['n_reference']} other rows"
    return "initial values"


def _n_classes(record: CertificateRecord) -> int:
    """K, from the range ln(1 + (1 - a) K / a) of the smoothed loss."""
    a = float(record.config["smoothing"])
    length: float = record.bound("pac-bayes-kl", LOSS, "gibbs")["loss_range"]
    return round(math.expm1(length) * a / (1 - a))


def as_markdown(lines: Sequence[Line]) -> str:
    """What was trained, then one table per loss, then what the columns mean."""
    delta = ", ".join(sorted({f"{line.delta:g}" for line in lines}))
    parts = [_table([line for line in lines if line.loss == ERROR], _SETTING)]
    for loss, columns in ((ERROR, _columns("vote")), (LOSS, _columns("ensemble"))):
        chosen = [line for line in lines if line.loss == loss]
        words = f"{loss}, δ = {delta}; at random: {chosen[0].guess:.3f}"
        parts.append(f"{words}\n\n{_table(chosen, columns)}")
    return "\n".join([*parts, LEGEND])


_SETTING: dict[str, Callable[[Line], str]] = {
    "run": lambda line: line.run,
    "n": lambda line: str(line.n_train),
    "weight of KL": lambda line: f"{line.kl_weight:g}",
    "prior centered at": lambda line: line.prior,
    "ln G": lambda line: f"{line.log_n_priors:.2f}",
    "KL, head": lambda line: f"{line.kl_head:.2f}",
    "KL, factors": lambda line: f"{line.kl_factors:.2f}",
}


def _columns(together: str) -> dict[str, Callable[[Line], str]]:
    bounds = {
        "PAC-Bayes, Gibbs": "gibbs",
        f"PAC-Bayes, {together}": "ensemble",
        "PAC-Bayes, unseen": "unseen",
        "hold-out, Gibbs": "hold_out_gibbs",
        f"hold-out, {together}": "hold_out_ensemble",
        "hold-out, mean": "hold_out_mean",
    }
    measured = {"Gibbs": "gibbs", together: "ensemble", "mean": "mean"}
    return {
        "run": lambda line: line.run,
        "training, Gibbs": lambda line: f"{line.training:.3f}",
        **{head: _bound_cell(name) for head, name in bounds.items()},
        **{f"measured, {head}": _measured_cell(name) for head, name in measured.items()},
    }


def _bound_cell(name: str) -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        value = getattr(line, name)
        mark = VACUOUS if value >= line.loss_range else GUESS if value >= line.guess else ""
        return f"{math.ceil(value * 1000) / 1000:.3f}{mark}"

    return cell


def _measured_cell(name: str) -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        low, value, high = (getattr(line, f"held_out_{name}{end}") for end in ("_low", "", "_high"))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    return cell


def _table(lines: Sequence[Line], columns: Mapping[str, Callable[[Line], str]]) -> str:
    rows = [[cell(line) for cell in columns.values()] for line in lines]
    heads = [list(columns), ["---"] * len(columns)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (*heads, *rows))


def main(records: Path = RECORDS, out: Path = OUT) -> None:
    """Write both forms."""
    lines = compute(records)
    write_points(out / f"{NAME}.csv", lines)
    write_bytes_atomically(out / f"{NAME}.md", as_markdown(lines).encode("utf-8"))


if __name__ == "__main__":
    main()

"""What a record shows of rows, losses, evaluation, ensembles, held-out rows and priors."""

from collections.abc import Iterator

from lodrop_theory.assumptions.stability import from_curvature
from lodrop_theory.assumptions.table import Finding, number
from lodrop_theory.bounds.hold_out import HOLD_OUT_HYPOTHESES
from lodrop_theory.bounds.lin2024 import SAMPLE_HYPOTHESES
from lodrop_theory.bounds.maurer2004 import PAC_BAYES_HYPOTHESES
from lodrop_theory.randomized_adapter import smoothing_of
from lodrop_theory.records import RunRecord

MASKS_OFF = "(1 - p)^2 of the update"


def sample_findings(record: RunRecord) -> Iterator[Finding]:
    yield Finding(
        name="independent training rows",
        status="unchecked",
        evidence=f"{record.n_train} rows; no record shows how they were drawn",
        remedy="draw them at random from the population that is meant; count near-duplicates and "
        "rows of one source as one",
        statements=(SAMPLE_HYPOTHESES[0],),
    )
    exact = record.loss_range.provenance == "certified"
    yield Finding(
        name="bounded loss",
        status="holds" if exact else "plug-in",
        evidence=f"an interval of length C = {number(record.loss_range)}"
        + (", exact for a smoothed prediction" if exact else ", not exact"),
        estimate=record.loss_range,
        remedy=None if exact else "measure in a loss of known range: smooth the prediction",
        statements=(SAMPLE_HYPOTHESES[1], PAC_BAYES_HYPOTHESES[1]),
    )
    yield Finding(
        name="symmetric algorithm",
        status="unchecked",
        evidence="a minimizer is symmetric in its examples; a training run is so in law only, over "
        "the order of its batches, and this is one order",
        remedy="draw the order at random, apart from the data, and read the bounds as over both",
        statements=(SAMPLE_HYPOTHESES[2],),
    )


def evaluation_findings(record: RunRecord) -> Iterator[Finding]:
    def off(bound: str) -> bool:
        return "/dropout" not in bound and "pac-bayes" not in bound and "jensen" not in bound

    rescale = record.config.get("rescale")
    noted = any(MASKS_OFF in note for note in record.notes)
    scaled = record.dropout_rate == 0 or rescale is True or (rescale is False and noted)
    yield Finding(
        name="scaling of the masks at evaluation",
        status="holds" if scaled else "unchecked",
        evidence="p = 0: no masks"
        if record.dropout_rate == 0
        else "kept coordinates are divided by 1 - p: the update with masks off is the mean of "
        "those in training"
        if rescale is True
        else f"masks are not rescaled; `mean` applies {MASKS_OFF}"
        if scaled
        else "`rescale` is not in the configuration"
        if rescale is None
        else "masks are not rescaled, and no note says what `mean` applies",
        remedy=None if scaled else f"apply {MASKS_OFF}: without it, masks off is another model",
        about=off,
    )
    smoothed = smoothing_of(record.config) is not None
    yield Finding(
        name="constants of the training loss serve the loss of record",
        status="holds" if smoothed else "unchecked",
        evidence="smoothing shortens every gradient: the constant of the cross-entropy bounds that "
        "of the smoothed loss"
        if smoothed
        else "`smoothing` is not in the configuration",
        remedy=None if smoothed else "name the loss of record in the configuration",
        about=lambda bound: from_curvature(bound) or bound.endswith(("/transverse", "/dropout")),
    )


def ensemble_findings(record: RunRecord) -> Iterator[Finding]:
    smoothed, gain = smoothing_of(record.config) is not None, record.jensen_gap
    yield Finding(
        name="loss convex in the averaged output",
        status="holds" if smoothed else "unchecked",
        evidence=(
            "-ln((1 - a) pi + a / K) is convex in the averaged probabilities"
            if smoothed
            else "`smoothing` is not in the configuration"
        )
        + ("" if gain is None else f"; measured gain {number(gain)}"),
        estimate=gain,
        remedy=None if smoothed else "name the loss of record in the configuration",
        statements=("the loss is convex in the averaged output",),
    )
    yield Finding(
        name="majority vote",
        status="unchecked",
        evidence="the bound is about a vote over draws of masks and noise; the ensemble of the "
        "record averages probabilities over masks, and no vote was taken",
        remedy="deploy the vote, or read the bound that Jensen's inequality carries over",
        statements=(
            "the loss is 0-1 and the ensemble answers by majority vote over the law of the draws",
        ),
    )


def held_out_findings() -> Iterator[Finding]:
    yield Finding(
        name="independent held-out rows",
        status="unchecked",
        evidence="no record shows how they were drawn",
        remedy="draw them with the training rows from one population, rows of one source on one "
        "side",
        statements=HOLD_OUT_HYPOTHESES[:1],
    )
    yield Finding(
        name="held-out rows untouched",
        status="unchecked",
        evidence="training and measurement choose nothing by them; no record shows what its "
        "authors looked at before",
        remedy="keep a set that nobody has looked at, or pay for every look",
        statements=HOLD_OUT_HYPOTHESES[1:2],
    )


def posterior_findings(record: RunRecord) -> Iterator[Finding]:
    if not record.posterior:
        return
    point = record.posterior[0]
    yield Finding(
        name="prior independent of the sample",
        status="unchecked",
        evidence="it is centered at the initial factors, with the masks of the run; that scales "
        f"({len(record.posterior)}, paid for) and rate were fixed before, no record shows",
        remedy="fix scales and rate in advance, or pay for every one that was tried",
        statements=PAC_BAYES_HYPOTHESES[2:],
    )
    risks = [e for each in record.posterior for e in (each.empirical_risk, each.error_rate)]
    drawn = all(risk.provenance != "plug-in" for risk in risks)
    yield Finding(
        name="independent draws of the posterior",
        status="holds" if drawn else "plug-in",
        evidence=f"{point.empirical_risk.n_draws} independent draws per scale after training, paid "
        "for by the kl inverse of their mean"
        if drawn
        else "a risk of the record is a plug-in value",
        estimate=point.empirical_risk,
        remedy=None if drawn else "draw for all training rows, and give the interval over draws",
        statements=(
            "the draws behind `empirical_risk` are independent and were made after the posterior "
            "was chosen",
        ),
    )
    exact = all(each.kl_nats.provenance == "certified" for each in record.posterior)
    yield Finding(
        name="exact divergence",
        status="holds" if exact else "plug-in",
        evidence=f"{point.kl_nats.method}: {number(point.kl_nats)} nats at noise "
        f"{point.noise_std:g}" + ("" if exact else f", {point.kl_nats.provenance}"),
        estimate=point.kl_nats,
        remedy=None if exact else "compute it in closed form, over every trained parameter",
        about=lambda bound: bound.startswith("pac-bayes"),
    )


__all__ = [
    "ensemble_findings",
    "evaluation_findings",
    "held_out_findings",
    "posterior_findings",
    "sample_findings",
]

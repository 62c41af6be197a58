"""One self-contained page: figure, tables, configuration, versions and caveats."""

import base64
from collections.abc import Sequence

from lodrop_nn.report.summary import RateSummary
from lodrop_nn.report.tables import all_tables


def _caveats(summaries: Sequence[RateSummary]) -> list[str]:
    """Every caveat of a bound and every note of a run, each once, in order."""
    texts = [c for s in summaries for bounds in s.bounds for b in bounds for c in b.caveats]
    texts += [note for s in summaries for record in s.records for note in record.notes]
    return list(dict.fromkeys(texts))


def render(summaries: Sequence[RateSummary], figure_png: bytes, *, delta: float) -> str:
    """The page as HTML; every text is escaped, nothing is loaded from elsewhere.

    Args:
        summaries: What :func:`lodrop_nn.report.summary.summarize` returns.
        figure_png: The figure as PNG bytes.
        delta: Failure probability of the bounds, in (0, 1).
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lodrop_nn", "report"), autoescape=True, undefined=StrictUndefined
    )
    records = [record for summary in summaries for record in summary.records]
    varied = {"dropout_rate", "seed"}
    first = records[0]
    rates = ", ".join(f"{s.dropout_rate:g}" for s in summaries)
    return environment.get_template("page.html.j2").render(
        title="LoRA Dropout: measured gap and bounds",
        lead=(
            f"{first.config['model']} on {first.config['data']}, {first.n_train} training and "
            f"{first.n_test} held-out examples, dropout rates {rates}, "
            f"{len(summaries[0].records)} seed(s). Bounds at delta = {delta:g}."
        ),
        figure_alt="Measured generalization gap and bounds against the dropout rate",
        figure_png=base64.b64encode(figure_png).decode("ascii"),
        tables=all_tables(summaries),
        caveats=_caveats(summaries),
        configuration=[(k, v) for k, v in first.config.items() if k not in varied],
        environment=list(first.environment.items()),
        runs=[
            (
                r.run_id,
                f"{r.dropout_rate:g}",
                r.config["seed"],
                r.created,
                f"{sum(r.seconds.values()):.0f}",
            )
            for r in records
        ],
    )

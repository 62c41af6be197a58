"""Plain text and pandas forms of the small tables of this package."""

import importlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], *, last: int | None = None) -> str:
    """Columns two spaces apart; the text of the last one is folded at ``last`` characters."""
    lines = [tuple(head)]
    for row in rows:
        folded = textwrap.wrap(row[-1], last) if last else [row[-1]]
        lines.append((*row[:-1], *folded[:1]))
        lines += [(*[""] * (len(head) - 1), more) for more in folded[1:]]
    lines = [(*line, *[""] * (len(head) - len(line))) for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows as a ``pandas.DataFrame``.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise ImportError("`to_pandas` needs pandas: pip install pandas") from None
    return pandas.DataFrame(list(rows))


def number(value: float | None) -> str:
    """Four digits; a dash where there is none."""
    return "-" if value is None else f"{value:.4g}"


def finite(value: float | None) -> float | None:
    """A JSON-able number: infinity has none and becomes None."""
    return None if value is None or not math.isfinite(value) else float(value)

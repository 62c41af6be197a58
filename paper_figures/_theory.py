"""What the theory figures share: sizes of GLUE, the constants of the reference table, rates."""

from typing import Any

import numpy as np

from lodrop_nn.reproduce.presets import PRESETS
from paper_figures._comparison import DELTA

# Training rows of the GLUE tasks, from few to many.
SIZES: dict[str, int] = {
    label: PRESETS[task].n_train
    for label, task in {
        "RTE": "rte",
        "MRPC": "mrpc",
        "STS-B": "stsb",
        "CoLA": "cola",
        "SST-2": "sst2",
        "QNLI": "qnli",
        "QQP": "qqp",
        "MNLI": "mnli",
    }.items()
}
# Nothing of these was measured: they are the ones at which the theorem is usually shown.
TEXTBOOK: dict[str, float] = {
    "lipschitz": 1.0,
    "hessian_min_eig": 0.0,
    "penalty": 1.0,
    "loss_range": 1.0,
    "delta": DELTA,
}
# Dense near 0, where a bound falls like 1 / sqrt(p).
RATES: tuple[float, ...] = (
    *(0.0, 0.001, 0.002, 0.004, 0.006, 0.008),
    *(round(0.01 * k, 2) for k in range(1, 10)),
    *(round(0.02 * k, 2) for k in range(5, 50)),
    0.99,
)


def shades(count: int) -> list[Any]:
    """Colors of an ordered parameter, dark to light, that color-blind readers can order too."""
    import matplotlib as mpl

    return list(mpl.colormaps["viridis"](np.linspace(0.0, 0.88, count)))

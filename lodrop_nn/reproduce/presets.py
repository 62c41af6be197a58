"""The paper's experiments, and where each of their settings comes from.

The text of Lin et al. (2024) that could be read names models, data and methods, and says that the
baselines' settings follow their own papers. Ranks, rates, epochs, seeds, p and N are not in it
("not stated"); they come from AdaLoRA's paper, from its authors' scripts, or from here.

AdaLoRA's scripts disagree with its paper: the learning rates of CoLA (8e-4), QNLI (5e-4) and QQP
(8e-4), the orthogonality weight of STS-B (0.3), and the ranks, which are those of the smallest
budget. Where the paper has a value, it is taken.
"""

from collections.abc import Mapping
from math import ceil

from lodrop_nn.reproduce.preset import Preset

PAPER = "Lin et al. (2024), arXiv:2404.09610"
ADALORA = "Zhang et al. (2023), arXiv:2303.10512"
SCRIPTS = "scripts of AdaLoRA's authors, github.com/QingruZhang/AdaLoRA at f6968aa and 7819ff4"
ALPACA_LORA = "not stated: default of github.com/tloen/alpaca-lora, finetune.py at 0003a00"
REPLICATION = "not stated: from the replication of Zhu et al. (2026), 'Loop Dropout'"
OURS = "not stated: ours"

_OF_ADALORA = (
    "seeds", "rank", "initial_rank", "batch_size", "epochs", "orthogonality", "target_modules",
)  # fmt: skip
_OF_SCRIPTS = (
    "lora_alpha", "warmup_steps", "weight_decay", "max_length", "warm_steps", "final_steps",
    "allocation_interval",
)  # fmt: skip
_COMMON: Mapping[str, str] = {
    **dict.fromkeys(_OF_ADALORA, ADALORA),
    **dict.fromkeys(_OF_SCRIPTS, SCRIPTS),
    "learning_rate": f"{ADALORA}, of AdaLoRA; of LoRA not stated",
    **dict.fromkeys(("full_learning_rate", "bitfit_learning_rate", "select", "precision"), OURS),
    **dict.fromkeys(("dropout_rate", "n_masks_train"), REPLICATION),
    "n_masks_test": f"{PAPER}, Eqs. (7) and (8): one N for training and test",
    "rescale": f"{PAPER}, Eqs. (2) and (3): no factor; what its code does is not known",
}

# fmt: off
_GLUE_COLUMNS = (
    "task", "n_train", "n_eval", "max_length", "epochs", "learning_rate", "warmup_steps",
    "weight_decay", "head_dropout", "lora_alpha", "orthogonality",
    "warm_steps", "allocation_interval", "final_steps",
)
_GLUE_ROWS = (
    ("mnli", 392_702, 19_647, 256,  7, 5.0e-4, 1000, 0.00, 0.15, 16.0, 0.1, 8000, 100, 50_000),
    ("sst2",  67_349,    872, 128, 24, 8.0e-4, 1000, 0.01, 0.00, 16.0, 0.1, 6000, 100, 22_000),
    ("cola",   8_551,  1_043,  64, 25, 5.0e-4,  100, 0.00, 0.10, 32.0, 0.5,  800,  10,  3_500),
    ("qqp",  363_846, 40_430, 320,  5, 5.0e-4, 2000, 0.01, 0.15, 16.0, 0.1, 8000, 100, 25_000),
    ("qnli", 104_743,  5_463, 512,  5, 1.2e-3,  500, 0.01, 0.10, 32.0, 0.1, 2000, 100,  8_000),
    ("rte",    2_490,    277, 320, 50, 1.2e-3,  200, 0.01, 0.20, 32.0, 0.3,  600,   1,  1_800),
    ("mrpc",   3_668,    408, 320, 30, 1.0e-3,  345, 0.01, 0.00, 32.0, 0.1,  600,   1,  1_800),
    ("stsb",   5_749,  1_500, 128, 25, 2.2e-3,  100, 0.10, 0.20, 32.0, 0.1,  800,  10,  2_000),
)
# fmt: on
_GLUE_METRICS = {
    "mnli": ("accuracy_matched", "accuracy_mismatched"),
    "cola": ("matthews",),
    "qqp": ("accuracy", "f1"),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("correlation", "pearson", "spearman"),
}


def _glue(row: tuple[str | float, ...]) -> Preset:
    values = dict(zip(_GLUE_COLUMNS, row, strict=True))
    task = str(values["task"])
    return Preset(
        **values,  # type: ignore[arg-type]  # the columns are fields of these types
        table="table1",
        family="glue",
        data=f"nyu-mll/glue:{task}",
        metrics=_GLUE_METRICS.get(task, ("accuracy",)),
        batch_size=32,
        published_steps=int(values["epochs"]) * ceil(int(values["n_train"]) / 32),
        sources={**_COMMON, "head_dropout": SCRIPTS},
    )


def _squad(
    version: str, data: str, n_train: int, n_eval: int, epochs: int, final_steps: int
) -> Preset:
    """The scripts have v2.0 only."""
    of_version = {"doc_stride": SCRIPTS}
    if version == "1.1":
        as_in_2 = ("warmup_steps", "warm_steps", "allocation_interval", "doc_stride")
        of_version |= dict.fromkeys(as_in_2, f"{OURS}, as for v2.0") | {"final_steps": OURS}
    return Preset(
        task=f"squad-v{version}",
        table="table2",
        family="squad",
        data=data,
        n_train=n_train,
        n_eval=n_eval,
        metrics=("f1", "exact_match"),
        max_length=384,
        epochs=epochs,
        published_steps=epochs * ceil(n_train / 16),
        batch_size=16,
        learning_rate=1e-3,
        warmup_steps=1000,
        warm_steps=5000,
        allocation_interval=100,
        final_steps=final_steps,
        sources={**_COMMON, **of_version},
    )


_OF_ALPACA_LORA = (
    "max_length", "epochs", "batch_size", "learning_rate", "warmup_steps", "rank", "lora_alpha",
    "target_modules", "weight_decay",
)  # fmt: skip
_OF_MMLU_OURS = (
    "seeds", "initial_rank", "orthogonality", "warm_steps", "final_steps", "allocation_interval",
)  # fmt: skip
_MMLU = Preset(
    task="mmlu",
    table="table3",
    family="mmlu",
    model="meta-llama/Llama-2-7b-hf",
    data="yahma/alpaca-cleaned, cais/mmlu:all",
    n_train=51_760,
    n_eval=14_042,
    metrics=("accuracy", "accuracy_over_subjects"),
    n_matrix_weights=6_607_077_376,  # 32 x (4 x 4096^2 + 3 x 4096 x 11008) + 4096 x 32000
    max_length=256,
    epochs=3,
    published_steps=3 * ceil(51_760 / 128),
    batch_size=128,
    learning_rate=3e-4,
    warmup_steps=100,
    target_modules=("q_proj", "v_proj"),
    warm_steps=100,
    allocation_interval=10,
    final_steps=400,
    seeds=3,
    precision="bf16",
    sources={
        **_COMMON,
        **dict.fromkeys(_OF_ALPACA_LORA, ALPACA_LORA),
        **dict.fromkeys(_OF_MMLU_OURS, OURS),
        "shots": f"{PAPER}: 0-shot",
    },
)

_ALL = (
    *map(_glue, _GLUE_ROWS),
    _squad("1.1", "rajpurkar/squad", 87_599, 10_570, 10, 25_000),
    _squad("2.0", "rajpurkar/squad_v2", 130_319, 11_873, 12, 50_000),
    _MMLU,
)
PRESETS: Mapping[str, Preset] = {each.task: each for each in _ALL}
TABLES: Mapping[str, tuple[str, ...]] = {
    table: tuple(task for task, preset in PRESETS.items() if preset.table == table)
    for table in ("table1", "table2", "table3")
}


def preset(task: str) -> Preset:
    """The preset of a task.

    Raises:
        ValueError: If there is none; the text lists those there are.

    Example:
        >>> mrpc = preset("mrpc")
        >>> mrpc.epochs, mrpc.learning_rate, mrpc.sources["epochs"]
        (30, 0.001, 'Zhang et al. (2023), arXiv:2303.10512')
    """
    if task not in PRESETS:
        raise ValueError(f"`task` must be one of {', '.join(PRESETS)}, got {task!r}.")
    return PRESETS[task]

"""Which rows an adapter is measured on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from lodrop_nn.config import RunConfig
from lodrop_nn.data import DATA_SETS, TextClassificationData, load_rows, load_split, split

N_TRAIN, N_TEST = 256, 512  # of rows that have to be split, where nothing says how


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows an adapter was trained on, and which it has not seen.

    Attributes:
        data: Name of a data set in :mod:`lodrop_nn.data`, a folder of ``train`` and ``test`` for
            :func:`~lodrop_nn.data.load_split`, or one file for
            :func:`~lodrop_nn.data.load_rows`. None takes that of the run that trained the adapter,
            where it was saved by a comparison.
        n_train: Training rows of a data set or a file; None takes that of the run, or 256.
        n_test: Held-out rows of a data set or a file; None takes that of the run, or 512.
        seed: Seed >= 0 of the split; None takes that of the run, or 0.
        class_names: Names of the classes in the order of the model's outputs; None takes those
            of its config, where it has any, or the alphabetical order.
    """

    data: str | None = None
    n_train: int | None = None
    n_test: int | None = None
    seed: int | None = None
    class_names: tuple[str, ...] | None = None


def of_run(rows: Rows, run: RunConfig | None, folder: Path) -> Rows:
    """The rows of the run that trained an adapter, where it is known.

    Args:
        rows: What was asked for.
        run: The run, or None.
        folder: The adapter's, for the text of an error.

    Raises:
        ValueError: If nothing says which rows, or what was asked for contradicts the run.
    """
    if run is None:
        if rows.data is None:
            raise ValueError(
                f"`data` must name the rows that {folder} was trained on: one of "
                f"{sorted(DATA_SETS)}, a folder with train and test, or a file."
            )
        return rows
    for name in ("data", "n_train", "n_test", "seed"):
        given, own = getattr(rows, name), getattr(run, name)
        if given is not None and given != own:
            raise ValueError(
                f"`{name}` must be {own!r}, as in the run that trained {folder} (else training "
                f"rows are taken for held-out ones), got {given!r}."
            )
    return replace(rows, data=run.data, n_train=run.n_train, n_test=run.n_test, seed=run.seed)


def divided(
    rows: Rows, named: TextClassificationData | None, model: PeftModel
) -> tuple[TextClassificationData, TextClassificationData]:
    """Training and held-out rows.

    Args:
        rows: Which they are.
        named: The data set, where ``rows`` names one that is known.
        model: The adapted classifier, for its classes.

    Raises:
        ValueError: If there are no such rows.
    """
    path = Path(str(rows.data)).expanduser()
    if named is None:
        config = model.config
        names = rows.class_names or _names_of(config)
        if path.is_dir():
            if (rows.n_train, rows.n_test) != (None, None):
                raise ValueError(
                    f"`n_train` and `n_test` must be left out: {path} says which rows are which."
                )
            return load_split(path, n_classes=config.num_labels, class_names=names)
        if not path.is_file():
            raise ValueError(
                f"`data` must be one of {sorted(DATA_SETS)}, a folder with train and test, or a "
                f".jsonl or .csv file, got {rows.data!r}."
            )
        named = load_rows(path, n_classes=config.num_labels, class_names=names)
    return split(named, rows.n_train or N_TRAIN, rows.n_test or N_TEST, rows.seed or 0)


def _names_of(config: Any) -> tuple[str, ...] | None:
    """The names of the outputs, unless they are those that transformers makes up."""
    names = tuple(str(config.id2label[k]) for k in range(config.num_labels))
    made_up = tuple(f"LABEL_{k}" for k in range(config.num_labels))
    return None if names == made_up else names

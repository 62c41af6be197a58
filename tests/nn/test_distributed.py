"""Two processes on the CPU (gloo): masks of the ranks, and gradients against one process."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments, default_data_collator

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank
from lodrop_nn.train.callbacks import LoraDropoutCallback
from lodrop_nn.train.micro_steps import backward_over_masks
from lodrop_nn.train.tiling import tile_batch
from lodrop_nn.train.trainer import LoraDropoutTrainerMixin
from tests.nn.tiny import adapted, batch, gradients

N_RANKS = 2


def llama(**options: Any) -> tuple[PeftModel, MaskBank]:
    model = adapted("llama").train()
    return model, attach_lora_dropout(model, 0.4, **{"seed": 3, **options})


def share(rank: int) -> dict[str, Tensor]:
    """The rows of one rank."""
    return {name: value[2 * rank : 2 * rank + 2] for name, value in batch("llama").items()}


def whole(parameter: Tensor) -> Tensor:
    """A tensor, or all shards of one."""
    gathered: Tensor = getattr(parameter, "full_tensor", lambda: parameter)()
    return gathered.detach().clone()


# -- what each rank does; the results are compared below ------------------------------


def masks_of(rank: int, *, data_rank: int = 0, **options: Any) -> Tensor:
    model, bank = llama(**options)
    bank.passes.data_rank = data_rank
    model(**share(rank))
    assert bank.passes.draw is not None
    return bank.passes.draw.masks


def ddp(rank: int, mask_passes: str) -> dict[str, Tensor]:
    model, bank = llama(n_masks=2)
    parallel = DistributedDataParallel(model)
    backward_over_masks(
        bank, lambda rows: parallel(**rows).loss, share(rank), mask_passes=mask_passes
    )
    return gradients(model)


def fsdp2(rank: int, *, leaves: bool = False) -> dict[str, Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (N_RANKS,))
    model, _ = llama(n_masks=2)
    for layer in model.get_base_model().model.layers:
        factors = [m for name, m in layer.named_modules() if ".lora_" in name and "default" in name]
        for module in factors if leaves else [layer]:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(**tile_batch(share(rank), 2)).loss.backward()
    return {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def fsdp2_of_the_factors_alone(rank: int) -> str:
    try:
        fsdp2(rank, leaves=True)
    except RuntimeError as error:
        return str(error)
    return "no error"


class Stream(IterableDataset):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


class Tiled(LoraDropoutTrainerMixin, Trainer):
    mask_passes = "tiled"


class Micro(LoraDropoutTrainerMixin, Trainer):
    mask_passes = "micro"


def trained(
    folder: Path, trainer: type[Trainer], *, n_rows: int, stream: bool = False, **options: Any
) -> dict[str, Tensor]:
    """Weights after two steps of two accumulated batches of four rows in all."""
    model, bank = llama(**{"n_masks": 2, **options})
    tokens = batch("llama", rows=16)
    for i in range(16):  # a different number of tokens to predict in each example
        tokens["labels"][i, : i % 5] = -100
    rows = [{name: value[i] for name, value in tokens.items()} for i in range(16)]
    running = trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=n_rows,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            optim="sgd",
            train_sampling_strategy="sequential",
            accelerator_config={"dispatch_batches": stream},
            use_cpu=True,
            ddp_backend="gloo" if dist.is_initialized() else None,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Stream(rows) if stream else rows,
        data_collator=default_data_collator,
        callbacks=[LoraDropoutCallback()],
    )
    running.train()
    assert bank.passes.n_drawn == 4
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return {**weights, "data_rank": torch.tensor(bank.passes.data_rank)}


def resumed_by_accelerate(rank: int, folder: Path) -> tuple[int, int]:
    """Passes drawn after loading a state, without and with the masks registered."""
    counts = []
    for register in (False, True):
        accelerator = Accelerator(cpu=True)
        _, bank = llama()
        if register:
            accelerator.register_for_checkpointing(bank.passes)
        bank.passes.n_drawn = 5
        accelerator.save_state(str(folder / f"state-{register}"))
        bank.passes.n_drawn = 0
        accelerator.wait_for_everyone()
        accelerator.load_state(str(folder / f"state-{register}"))
        counts.append(bank.passes.n_drawn)
    return counts[0], counts[1]


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # Ranks meet at a file, so there is no port to collide with; accelerate asks for one though.
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(N_RANKS)}
    os.environ.update({**address, **ranks})
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=N_RANKS,
        timeout=timedelta(minutes=3),
    )
    jobs: dict[str, Callable[[], object]] = {
        "seeded": lambda: masks_of(rank, n_masks=2),
        "example, one stream": lambda: masks_of(rank, mask_scope="example"),
        "example": lambda: masks_of(rank, mask_scope="example", data_rank=rank),
        "batch, with a rank": lambda: masks_of(rank, n_masks=2, data_rank=rank),
        "ddp tiled": lambda: ddp(rank, "tiled"),
        "ddp micro": lambda: ddp(rank, "micro"),
        "fsdp2": lambda: fsdp2(rank),
        "fsdp2 leaves": lambda: fsdp2_of_the_factors_alone(rank),
        "trainer tiled": lambda: trained(folder, Tiled, n_rows=2),
        "trainer micro": lambda: trained(folder, Micro, n_rows=2),
        "trainer dispatch": lambda: trained(folder, Tiled, n_rows=2, stream=True),
        "accelerate": lambda: resumed_by_accelerate(rank, folder),
    }
    results: dict[str, object] = {}
    for name, seed in (("unseeded, one state", 0), ("unseeded, own states", rank)):
        torch.manual_seed(seed)
        results[name] = masks_of(rank, seed=None)
    for name, job in jobs.items():
        results[name] = job()
        dist.barrier()
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of both ranks, of one start of two processes for all tests of this file."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, (folder,), nprocs=N_RANKS, start_method="spawn")
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(N_RANKS)]


# -- masks ------------------------------


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("seeded", True),
        ("batch, with a rank", True),
        ("example, one stream", True),
        ("example", False),
        ("unseeded, one state", True),
        ("unseeded, own states", False),
    ],
)
def test_which_masks_ranks_share(ranks: list[dict[str, Any]], name: str, shared: bool) -> None:
    one, other = (rank[name] for rank in ranks)
    assert torch.equal(one, other) == shared


def test_a_rank_of_its_own_changes_no_mask_of_one_process(ranks: list[dict[str, Any]]) -> None:
    assert torch.equal(ranks[0]["example"], masks_of(0, mask_scope="example"))
    assert torch.equal(ranks[0]["seeded"], masks_of(0, n_masks=2))


# -- gradients ------------------------------


def joined() -> dict[str, Tensor]:
    """One process on the rows of both ranks."""
    model, _ = llama(n_masks=2)
    model(**tile_batch(batch("llama"), 2)).loss.backward()
    return gradients(model)


@pytest.mark.parametrize("name", ["ddp tiled", "ddp micro", "fsdp2"])
def test_gradients_equal_those_of_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    expected = joined()
    for rank in ranks:
        assert rank[name].keys() == expected.keys()
        for key, value in rank[name].items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-7)


def test_sharding_the_factors_alone_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "apply `fully_shard` (FSDP2) to whole transformer layers" in rank["fsdp2 leaves"]


@pytest.mark.parametrize("name", ["trainer tiled", "trainer micro", "trainer dispatch"])
def test_trainers_equal_one_process(ranks: list[dict[str, Any]], name: str, tmp_path: Path) -> None:
    """Also where one process reads all rows and deals them out (`dispatch_batches`)."""
    with torch.random.fork_rng():
        expected = trained(tmp_path, Tiled, n_rows=4)
    before, _ = llama()
    start = dict(before.named_parameters())
    for index, rank in enumerate(ranks):
        assert rank[name]["data_rank"] == index
        for key in expected.keys() - {"data_rank"}:
            value = rank[name][key]
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)
            assert not torch.equal(value, start[key])


def test_accelerate_saves_the_state_of_registered_masks(ranks: list[dict[str, Any]]) -> None:
    assert [rank["accelerate"] for rank in ranks] == [(0, 5)] * N_RANKS


# -- shards ------------------------------


@pytest.mark.parametrize("shape", [(0,), (24,)])
def test_shards_of_factors_are_refused(shape: tuple[int, ...]) -> None:
    """What ZeRO-3 and FSDP1 leave of a weight outside of its module."""
    model, bank = llama()
    layer = model.get_submodule(bank.layers[0].name)
    layer.lora_A["default"].weight = nn.Parameter(torch.zeros(shape))
    with pytest.raises(RuntimeError, match=r"only a shard of them is at hand \(shapes"):
        model(**batch("llama"))

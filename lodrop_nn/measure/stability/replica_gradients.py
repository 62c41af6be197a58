"""Risks and gradients at several points of the trained parameters, on several training sets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lodrop_nn.measure.evaluation import flatten, model_inputs, trained_parameters
from lodrop_nn.measure.stability.jacobian import point_of
from lodrop_nn.measure.stability.neighbors import Neighbor
from lodrop_nn.measure.stability.rows import Rows
from lodrop_nn.train.replica_adapters import add_replicas
from lodrop_nn.train.replica_settings import ReplicaSettings
from lodrop_nn.train.replicas import Replicas
from lodrop_nn.train.tiling import tile_batch

Vector = Float64[Tensor, " n_parameters"]
# Points are moves away from the solution; one risk and one gradient come back for each.
Gradients = Callable[[Sequence[Vector], Sequence[Neighbor]], list[tuple[float, Vector]]]
_ROWS_PER_PASS = 128  # rows of all replicas together: more fall out of the cache


@contextmanager
def coupled_gradients(
    model: PeftModel, rows: Rows, n_replicas: int
) -> Iterator[tuple[Gradients, str]]:
    """Gradients of K replicas in one pass; one by one where the adapter cannot have replicas.

    The replicas are adapters that are added to the model and taken off again. Parameters, their
    gradients, what requires one and the active adapter come back as they were.

    Args:
        model: Adapted classifier in evaluation mode, masks off.
        rows: Its rows.
        n_replicas: K.

    Yields:
        The gradients, and how they are computed.
    """
    active, flags = model.active_adapter, {n: p.requires_grad for n, p in model.named_parameters()}
    names = [f"lodrop_neighbor{k}" for k in range(n_replicas)]
    trained = trained_parameters(model)
    added: list[str] = []
    replicas: _Copies | None
    try:
        try:
            replicas = _added(model, trained, active, names, added)
            _check_equal(model, replicas, rows)
        except (ValueError, TypeError, RuntimeError) as error:
            replicas, reason = None, str(error).split(";")[0].split(". ")[0]
        # Outside the `except`, whose traceback holds on to the tensors of a failed pass.
        if replicas is None:
            _restore(model, active, flags, added)
            yield _one_by_one(model, rows), f"one by one ({reason})"
        else:
            yield _together(model, rows, replicas), "coupled replicas"
    finally:
        _restore(model, active, flags, added)


class _Copies:
    """The trained parameters of each replica, in the order of the model's own."""

    def __init__(self, names: Sequence[str], parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        self.names, self.parameters = list(names), [list(each) for each in parameters]
        self.start = [p.detach().to(torch.float64).clone() for p in self.parameters[0]]

    def move(self, number: int, vector: Vector) -> None:
        pieces = vector.split([p.numel() for p in self.start])
        with torch.no_grad():
            for p, start, piece in zip(self.parameters[number], self.start, pieces, strict=True):
                p.copy_(start + piece.reshape(p.shape).to(p.device))


def _added(
    model: PeftModel,
    trained: dict[str, nn.Parameter],
    active: object,
    names: Sequence[str],
    added: list[str],
) -> _Copies:
    if not isinstance(active, str):
        raise ValueError(f"`model` must have one active adapter, got {active!r}")
    foreign = [name for name in trained if f".{active}." not in name]
    if foreign:
        raise ValueError(f"`model` trains {foreign[0]!r}, which is no part of the adapter")
    taken = [name for name in names if name in model.peft_config]
    if taken:
        raise ValueError(f"`model` has an adapter named {taken[0]!r}")
    added += names
    with torch.random.fork_rng(devices=[]):  # PEFT draws factors, which are overwritten
        add_replicas(model, dict.fromkeys(names), start=active)
    model.eval()  # the new modules too
    everything = dict(model.named_parameters())
    return _Copies(
        names,
        [
            [everything[key.replace(f".{active}.", f".{name}.")] for key in trained]
            for name in names
        ],
    )


def _restore(model: PeftModel, active: object, flags: dict[str, bool], added: list[str]) -> None:
    if not added:
        return
    assert isinstance(active, str)
    model.set_adapter(active)
    while added:
        name = added.pop()
        if name in model.peft_config:
            model.delete_adapter(name)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(flags[key])


def _check_equal(model: PeftModel, copies: _Copies, rows: Rows) -> None:
    """Refuse replicas that are not the model: masks that scale the update, say.

    Raises:
        ValueError: If logits differ.
    """
    batch = rows.batch([0, 1])
    inputs = model_inputs(model, batch)
    with torch.no_grad():
        expected = model(**inputs).logits
        with _running(model, copies.names):
            found = model(**tile_batch(inputs, len(copies.names))).logits
    expected = expected.repeat(len(copies.names), 1)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise ValueError("replicas of the adapter have other logits than it")


@contextmanager
def _running(model: PeftModel, names: Sequence[str]) -> Iterator[None]:
    """Passes run the replicas of these names on the slices of their batch."""
    replicas = Replicas(model, {name: ReplicaSettings() for name in names})
    with replicas.active():
        yield


def _together(model: PeftModel, rows: Rows, copies: _Copies) -> Gradients:
    def gradients(
        points: Sequence[Vector], neighbors: Sequence[Neighbor]
    ) -> list[tuple[float, Vector]]:
        count = len(points)
        for number, point in enumerate(points):
            copies.move(number, point)
        wanted = [p for parameters in copies.parameters[:count] for p in parameters]
        risks = torch.zeros(count, dtype=torch.float64)
        totals = torch.zeros(count, sum(p.numel() for p in copies.start), dtype=torch.float64)
        numbers, weights = _weights(neighbors)
        column = {number: place for place, number in enumerate(numbers)}
        with _running(model, copies.names[:count]):
            for p in wanted:
                p.requires_grad_(True)
            for group in rows.by_length(numbers, max(1, _ROWS_PER_PASS // count)):
                batch = tile_batch(rows.batch(group), count)
                with rows.replayed(batch):
                    logits = model(**model_inputs(model, batch)).logits
                losses = cross_entropy(
                    logits, batch["labels"].to(logits.device), reduction="none"
                ).unflatten(0, (count, -1))
                own = weights[:, [column[number] for number in group]].to(losses.device)
                parts = (own * losses.to(torch.float64)).sum(-1)
                found = torch.autograd.grad(parts.sum(), wanted, materialize_grads=True)
                risks += parts.detach().cpu()
                totals += flatten(found).unflatten(0, (count, -1))
        return list(zip(risks.tolist(), totals, strict=True))

    return gradients


def _one_by_one(model: PeftModel, rows: Rows) -> Gradients:
    def gradients(
        points: Sequence[Vector], neighbors: Sequence[Neighbor]
    ) -> list[tuple[float, Vector]]:
        found = []
        for point, neighbor in zip(points, neighbors, strict=True):
            leaves = {n: p.requires_grad_() for n, p in point_of(model, point).items()}
            numbers, weights = _weights([neighbor])
            column = {number: place for place, number in enumerate(numbers)}
            risk, total = 0.0, torch.zeros_like(point)
            for group in rows.by_length(numbers):
                batch = rows.batch(group)
                with rows.replayed(batch):
                    logits = functional_call(model, leaves, (), model_inputs(model, batch)).logits
                losses = cross_entropy(
                    logits, batch["labels"].to(logits.device), reduction="none"
                ).to(torch.float64)
                own = weights[0, [column[number] for number in group]].to(losses.device)
                part = (own * losses).sum()
                risk += float(part.detach())
                total += flatten(
                    torch.autograd.grad(part, list(leaves.values()), materialize_grads=True)
                )
            found.append((risk, total))
        return found

    return gradients


def _weights(neighbors: Sequence[Neighbor]) -> tuple[list[int], Float64[Tensor, "K rows"]]:
    """The rows that any of some neighbors weighs, and what it weighs them."""
    n = neighbors[0].n_train
    fresh = sorted({row for each in neighbors for row in each.changes if row >= n})
    numbers = [*range(n), *fresh]
    weights = torch.zeros(len(neighbors), len(numbers), dtype=torch.float64)
    for k, neighbor in enumerate(neighbors):
        weights[k, :n] = neighbor.weight
        for row, gain in neighbor.changes.items():
            weights[k, row if row < n else n + fresh.index(row)] += gain
    return numbers, weights

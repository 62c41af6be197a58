"""K ordinary adapters of one frozen backbone, trained in one pass."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW

from lodrop_nn.adapter.kinds import lora_layers
from lodrop_nn.adapter.replica_variant import (
    check_replicas,
    masks_of,
    run_together,
    stacked_factors,
)
from lodrop_nn.masks import MaskBank
from lodrop_nn.train.replica_heads import replica_heads, run_heads_together
from lodrop_nn.train.replica_passes import draw_for_slices
from lodrop_nn.train.replica_settings import ReplicaSettings, weight_matrix


class Replicas:
    """K adapters of a model that run on the K slices of a batch.

    A grid of dropout rates, penalties, seeds or leave-one-out sets is K trainings of the same
    frozen backbone. In one pass its weights are read once instead of K times, and what lies below
    the adapters can be shared (:class:`~lodrop_nn.train.prefix_cache.PrefixCache`). No replica
    sees another: each ends where a training of its own would have, provided that the base maps
    each row by itself (not so: BatchNorm in training mode) and has no dropout of its own.

    The replicas are adapters that PEFT made. Outside :meth:`active` they are used one at a time,
    saved (``model.save_pretrained(folder, selected_adapters=[...])``) and loaded as such. Their
    masks are those that :func:`~lodrop_nn.adapter.attach.attach_lora_dropout` put on them, with
    rate, law and seed of their own; an adapter without is plain LoRA. Replicas whose i.i.d. masks
    have the same seed share the random numbers behind them: at equal rates they see the same
    masks, at different rates nested ones, which couples their runs.

    Constructing makes the first replica the model's active adapter, and all of them trainable.

    Args:
        model: Model with the K adapters, of the same target modules and ``modules_to_save``; ranks
            may differ.
        settings: How each is trained, by the name of its adapter.

    Attributes:
        model: The model.
        settings: How each replica is trained.

    Raises:
        TypeError: If ``model`` is not a PeftModel.
        ValueError: If there is no replica, or adapters cannot run side by side.
        NotImplementedError: If an adapter has parts that are not supported.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config, adapter_name="weak")
        >>> model.add_adapter("strong", config)
        >>> settings = {"weak": ReplicaSettings(), "strong": ReplicaSettings(penalty=0.1)}
        >>> replicas = Replicas(model, settings)
        >>> optimizer, x = replicas.optimizer(), torch.ones(5, 4)
        >>> with replicas.active():
        ...     output = model(x.repeat(2, 1)).unflatten(0, (2, 5))
        >>> objective = replicas.objective(output.square().mean(-1))
        >>> objective.sum().backward()
        >>> optimizer.step()
        >>> objective.shape
        torch.Size([2])
    """

    def __init__(self, model: PeftModel, settings: Mapping[str, ReplicaSettings]) -> None:
        if not isinstance(model, PeftModel):
            raise TypeError(f"`model` must be a peft.PeftModel, got {type(model).__name__}.")
        if not settings:
            raise ValueError("`settings` must name at least one adapter, got none.")
        unknown = [name for name in settings if name not in model.peft_config]
        if unknown:
            raise ValueError(
                f"`settings` must name adapters of the model, {sorted(model.peft_config)}, "
                f"got {unknown}."
            )
        self.model = model
        self.settings = dict(settings)
        self._weights = weight_matrix(list(settings.values()))
        self._layers = {
            path: layer for name in settings for path, layer in lora_layers(model, name).items()
        }
        if not self._layers:
            raise ValueError(f"adapters {list(settings)} have no LoRA layer.")
        for path, layer in self._layers.items():
            check_replicas(layer, path, self.names)
        self._heads = replica_heads(model, self.names)
        self._make_trainable()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order of their slices."""
        return tuple(self.settings)

    @property
    def n_masks(self) -> int:
        """Masks per replica and pass: instances of its batch that a slice must hold."""
        return max((bank.n_masks for bank in self._banks()), default=1)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The trained parameters of one replica.

        Args:
            name: Name of its adapter.

        Raises:
            ValueError: If there is no such replica.
        """
        if name not in self.settings:
            raise ValueError(f"`name` must be one of {list(self.settings)}, got {name!r}.")
        found = [layer.lora_B[name].weight for layer in self._layers.values()]
        if self.settings[name].train_A:
            found += [layer.lora_A[name].weight for layer in self._layers.values()]
        for head in self._heads:
            found += head.modules_to_save[name].parameters()
        return found

    @contextmanager
    def active(self) -> Iterator["Replicas"]:
        """Let passes of the model run replica k on the k-th of K equal slices of their batch.

        All replicas may have the same batch (:func:`~lodrop_nn.train.tiling.tile_batch`) or each
        its own (:func:`~lodrop_nn.train.replica_batches.stack_batches`). The backward pass may
        come after the context, except under gradient checkpointing, which runs layers again.

        Yields:
            The replicas.

        Raises:
            ValueError: In a pass, if its batch is not a multiple of K rows.
        """
        if self.model.active_adapters != [self.names[0]]:
            self._make_trainable()
        banks = self._banks()  # while they are at their places
        with ExitStack() as stack:
            stack.enter_context(run_together(self._layers, self.names))
            stack.enter_context(run_heads_together(self._heads, self.names))
            stack.enter_context(draw_for_slices(self.model, banks, len(self.names)))
            yield self

    def optimizer(self) -> AdamW:
        """AdamW over all replicas, one parameter group each, with its rate and decay.

        AdamW treats every number by itself, so a replica's steps depend on its gradient alone.
        Groups have the adapter's name as ``"name"``.
        """
        return AdamW(
            [
                {
                    "params": self.parameters(name),
                    "lr": each.learning_rate,
                    "weight_decay": each.weight_decay,
                    "name": name,
                }
                for name, each in self.settings.items()
            ]
        )

    def objective(
        self,
        example_losses: Float[Tensor, "K b"],
        index: Int[Tensor, "K b"] | None = None,
        is_padding: Bool[Tensor, "K b"] | None = None,
    ) -> Float[Tensor, "K"]:
        r"""What each replica minimizes on its slice.

        .. math:: \frac1b \sum_i w_{ki}\, \ell_{ki} + \lambda_k P_k

        The gradient of the sum over k gives each replica its own.

        Args:
            example_losses: Loss of each row of each slice.
            index: The training example that each row is; needed if any replica has
                ``example_weights``.
            is_padding: Rows that only fill up a slice: they are left out, and not counted in b.

        Returns:
            One number for each replica, differentiable.

        Raises:
            ValueError: If the weights are asked for and ``index`` is missing.
        """
        weights = self.row_weights(index, is_padding).to(example_losses)
        weights = weights.expand_as(example_losses)
        if is_padding is not None:  # a padded row may be anything, also not finite
            example_losses = example_losses.masked_fill(is_padding.to(weights.device), 0.0)
            n_rows = (~is_padding).sum(-1).to(example_losses)
        else:
            n_rows = example_losses.new_tensor(float(example_losses.shape[-1]))
        risks = (weights * example_losses).sum(-1) / n_rows
        if all(each.penalty == 0.0 for each in self.settings.values()):
            return risks
        return risks + self.penalties().to(risks)

    def row_weights(
        self,
        index: Int[Tensor, "K b"] | None = None,
        is_padding: Bool[Tensor, "K b"] | None = None,
    ) -> Float[Tensor, "K b"]:
        """The weights w of the rows of a batch, 0 where padded; (1, 1) where all are 1.

        Args:
            index: The training example that each row is.
            is_padding: Rows that only fill up a slice.

        Raises:
            ValueError: If there are example weights and ``index`` is missing or outside them.
        """
        weights = torch.ones(1, 1, dtype=torch.float64)
        if self._weights is not None:
            if index is None:
                raise ValueError(
                    "`index` must say which example each row is, since replicas have "
                    "`example_weights`; got None."
                )
            rows, n_train = index.cpu(), self._weights.shape[1]
            if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < n_train:
                raise ValueError(
                    f"`index` must be examples in [0, {n_train}), the length of "
                    f"`example_weights`, got {rows.tolist()}."
                )
            weights = self._weights.gather(1, rows)
        return weights if is_padding is None else weights * (~is_padding.cpu())

    def penalties(self) -> Float[Tensor, "K"]:
        r"""The penalties :math:`\lambda_k P_k`, differentiable.

        The norm of an update is had from r x r matrices:
        :math:`\|s B A\|_F^2 = \langle s^2 B^\top B,\, A A^\top \rangle`.
        """
        settings = self.settings.values()
        of_update = torch.tensor([each.penalized == "update" for each in settings])
        total: Tensor | float = 0.0
        for layer in self._layers.values():
            lora_A, scaled_B = stacked_factors(layer, self.names)
            update = ((scaled_B.mT @ scaled_B) * (lora_A @ lora_A.mT)).sum((-1, -2))
            scaling = [float(layer.scaling[name]) for name in self.names]
            lora_B = scaled_B / scaled_B.new_tensor(scaling)[:, None, None]
            factors = lora_A.square().sum((-1, -2)) + lora_B.square().sum((-1, -2))
            total = total + torch.where(of_update.to(update.device), update, factors)
        assert isinstance(total, Tensor)
        return total * total.new_tensor([each.penalty for each in settings])

    def clip_gradients(self) -> Float[Tensor, "K"]:
        """Clip the gradient of each replica to its ``max_grad_norm``.

        Returns:
            The norm of each before clipping.
        """
        norms = []
        for name, each in self.settings.items():
            trained = self.parameters(name)
            gradients = [weight.grad for weight in trained if weight.grad is not None]
            norms.append(nn.utils.get_total_norm(gradients))
            if each.max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(trained, each.max_grad_norm, norms[-1])
        return torch.stack([torch.as_tensor(norm) for norm in norms])

    def _banks(self) -> list[MaskBank]:
        """The masks of the replicas, those of each once."""
        found = (masks_of(layer, name) for layer in self._layers.values() for name in self.names)
        return list({id(masks.bank): masks.bank for masks in found if masks is not None}.values())

    def _make_trainable(self) -> None:
        self.model.set_adapter(self.names[0])
        for name, each in self.settings.items():
            for layer in self._layers.values():
                layer.lora_A[name].weight.requires_grad_(each.train_A)
            for parameter in self.parameters(name):
                parameter.requires_grad_(True)

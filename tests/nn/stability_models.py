"""Solutions whose neighbors are known: a linear head by SciPy, a tiny transformer by L-BFGS."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from scipy.optimize import minimize
from torch import Tensor, nn

from lodrop_nn.adapter import attach_lora_dropout
from lodrop_nn.masks import MaskBank
from lodrop_nn.measure.evaluation import mean_losses, mean_predictor, trained_parameters
from tests.nn import tiny

N_FEATURES, WIDTH, N_CLASSES, RANK = 5, 6, 3, 2


class Head(nn.Module):
    """A frozen nonlinear body and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(N_FEATURES, WIDTH)
        self.classifier = nn.Linear(WIDTH, N_CLASSES)

    @property
    def device(self) -> torch.device:
        return self.classifier.weight.device

    def forward(self, features: Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(torch.tanh(self.body(features))))


def linear_head(*, train_A: bool = False) -> tuple[PeftModel, MaskBank]:
    """LoRA on the head alone, with A frozen unless asked otherwise; float64."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        config = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=["classifier"], init_lora_weights=False
        )
        model = get_peft_model(Head(), config).to(torch.float64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name or (train_A and "lora_A" in name))
    return model.eval(), attach_lora_dropout(model, 0.3)


def feature_batches(n_rows: int, seed: int, size: int = 5) -> list[dict[str, Tensor]]:
    stream = torch.Generator().manual_seed(seed)
    features = torch.randn(n_rows, N_FEATURES, dtype=torch.float64, generator=stream)
    labels = torch.randint(0, N_CLASSES, (n_rows,), generator=stream)
    return [
        {"features": x, "labels": y}
        for x, y in zip(features.split(size), labels.split(size), strict=True)
    ]


class Oracle:
    """Ridge softmax regression in B, written with NumPy and minimized by SciPy."""

    def __init__(self, model: PeftModel, batches: Sequence[dict[str, Tensor]]) -> None:
        weights = {name: p.detach().numpy() for name, p in model.named_parameters()}

        def of(part: str) -> NDArray[np.float64]:
            (found,) = [value for name, value in weights.items() if part in name]
            return found

        x = np.concatenate([batch["features"].numpy() for batch in batches])
        self.labels = np.concatenate([batch["labels"].numpy() for batch in batches])
        hidden = np.tanh(x @ of("body.weight").T + of("body.bias"))
        self._offset = hidden @ of("classifier.base_layer.weight").T + of(
            "classifier.base_layer.bias"
        )
        self._inputs = 2.0 * hidden @ of("lora_A").T  # scaling lora_alpha / r = 2
        self._shape = (N_CLASSES, RANK)

    def log_probabilities(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = self._offset + self._inputs @ point.reshape(self._shape).T
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def minimizer(self, weights: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
        one_hot = np.eye(N_CLASSES)[self.labels]

        def objective(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logs = self.log_probabilities(point)
            risk = -float((weights * logs[np.arange(len(logs)), self.labels]).sum())
            slope = ((np.exp(logs) - one_hot) * weights[:, None]).T @ self._inputs
            return risk + tau * float(point @ point), slope.ravel() + 2 * tau * point

        start = np.zeros(N_CLASSES * RANK)
        found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-11})
        assert np.linalg.norm(objective(found.x)[1]) < 1e-7
        return np.asarray(found.x)

    def smoothed(self, point: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
        chosen = np.exp(self.log_probabilities(point))[np.arange(len(self.labels)), self.labels]
        return np.asarray(-np.log((1 - smoothing) * chosen + smoothing / N_CLASSES))


def set_point(model: PeftModel, point: NDArray[np.float64]) -> None:
    with torch.no_grad():
        parameters = list(trained_parameters(model).values())
        pieces = torch.as_tensor(point).split([p.numel() for p in parameters])
        for p, piece in zip(parameters, pieces, strict=True):
            p.copy_(piece.reshape(p.shape))


def trained_transformer(
    batches: Sequence[dict[str, Tensor]], tau: float
) -> tuple[PeftModel, MaskBank]:
    """A tiny BERT whose factors B alone were trained with a ridge, to a stationary point."""
    model = tiny.adapted("bert", target_modules=["query", "value"], layers_to_transform=[1])
    model = model.to(torch.float64).eval()
    bank = attach_lora_dropout(model, 0.3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_B" in name)
            if "classifier" in name:
                parameter.mul_(300.0)  # of its random start: labels matter then
    parameters = list(trained_parameters(model).values())
    with mean_predictor(model, bank, batches):
        losses = mean_losses(model, batches)

        def value_and_slope(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            set_point(model, point)
            total = torch.stack([loss() for loss in losses]).sum()
            slope = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])
            here = torch.as_tensor(point)
            return total.item() + tau * float(here @ here), (slope + 2 * tau * here).numpy()

        start = np.zeros(sum(p.numel() for p in parameters))
        found = minimize(value_and_slope, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        set_point(model, found.x)
    return model, bank

r"""AdaLoRA as an arm: its configuration, and what its training adds to the loop.

PEFT adds the orthogonality loss only where the model computes its loss itself, and leaves the call
that allocates ranks to the loop; the loop of :mod:`tests.benchmarks.quality.train` does both. The
initial rank is 12, the final one that of the other arms. One sixth of the steps comes before the
first rank is pruned and one half after the last, and ranks may go at every step: the proportions
of RTE and MRPC in the scripts of Zhang et al. (2023, arXiv:2303.10512). All else is PEFT's default,
the weight of the orthogonality loss included.
"""

from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor

from lodrop_nn.adapter import delta_weights

INITIAL_RANK = 12


def settings(target_rank: int, n_steps: int) -> dict[str, Any]:
    """Arguments of PEFT's AdaLoraConfig for a training of so many steps."""
    return {
        "init_r": INITIAL_RANK,
        "target_r": target_rank,
        "tinit": n_steps // 6,
        "tfinal": n_steps // 2,
        "deltaT": 1,
        "total_step": n_steps,
    }


def orthogonality(model: PeftModel) -> Tensor:
    r"""What PEFT adds to the loss: gamma times the mean of ||Q Q^T - I||_F and ||P^T P - I||_F.

    The factors are the stored ones: masks do not enter.
    """
    config: AdaLoraConfig = model.peft_config["default"]
    norms = []
    for name, factor in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = factor @ factor.T if ".lora_A." in name else factor.T @ factor
            norms.append(torch.linalg.norm(gram - torch.eye(len(gram))))
    return config.orth_reg_weight * torch.stack(norms).mean()


def update_square(model: PeftModel) -> Tensor:
    r"""||s P Lambda Q||_F^2 over all layers."""
    return torch.stack([w.square().sum() for w in delta_weights(model).values()]).sum()

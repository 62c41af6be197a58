"""Hypothesis profiles, the seal on global state, and no network to a model hub."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The first call into torch compiles kernels, so a per-example deadline only measures that.
slow_start = [HealthCheck.too_slow]
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=slow_start)
settings.register_profile("nightly", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def _sealed_global_state() -> Iterator[None]:
    """A test that leaves torch's global generator or thread count changed fails."""
    import torch

    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    yield
    after = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    assert before == after, f"global torch state changed from {before} to {after}"

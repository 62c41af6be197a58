"""A pytest plugin for PEFT's own tests: the LoRA adapters that they make get LoRA Dropout.

``tests/nn/test_peft_suite.py`` passes it to pytest. The environment says what to do:
``LODROP_RATE`` is the dropout rate, empty for PEFT as it is; ``LODROP_REPORT`` is the file that
gets the outcomes as JSON.
"""

import functools
import importlib
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peft import AdaLoraConfig, LoraConfig, PeftModel

from lodrop_nn.adapter import attach_lora_dropout

METHODS = (LoraConfig, AdaLoraConfig)
# The test files import these at their top; only tests that need the Hub use them.
UNUSED_IMPORTS = {"datasets": "load_dataset", "diffusers": "StableDiffusionPipeline"}

# What the libraries say when a model of the Hub is asked for, and there is no network.
NOT_ON_DISK = ("couldn't connect to 'https://huggingface.co'", "LocalEntryNotFoundError")


class Suite:
    """Runs PEFT's tests of LoRA and counts what happens.

    Attributes:
        rate: Dropout rate, or None for PEFT as it is.
        outcomes: passed, failed, skipped, or hub for a test that failed for want of a model of
            the Hub, by test.
        reasons: The error of each test that failed.
        attached: Number of adapters that got LoRA Dropout, by test.
        refused: Number of adapters that LoRA Dropout refused, by the first words of the reason.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.attached: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.test = ""

    def attach(self, model: PeftModel, adapter_name: str) -> None:
        """LoRA Dropout for a new adapter, where it supports it."""
        if self.rate is None or type(model.peft_config[adapter_name]) not in METHODS:
            return
        try:
            attach_lora_dropout(model, self.rate, adapter_name=adapter_name, seed=0)
        except (NotImplementedError, ValueError) as error:
            self.refused[" ".join(str(error).split()[:8])] += 1
        else:
            self.attached[self.test] += 1

    def after(self, method: Callable[..., Any], default_name: str) -> Callable[..., Any]:
        """A method of PeftModel that makes an adapter, followed by the attachment."""

        @functools.wraps(method)
        def wrapper(model: PeftModel, *args: Any, **kwargs: Any) -> Any:
            result = method(model, *args, **kwargs)
            names = [x for x in (*args, kwargs.get("adapter_name")) if isinstance(x, str)]
            self.attach(model, names[0] if names else default_name)
            return result

        return wrapper

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the tests that are not parametrized with the config of another method."""
        items[:] = [item for item in items if self._config_class(item) in (None, *METHODS)]

    @staticmethod
    def _config_class(item: pytest.Item) -> object:
        callspec = getattr(item, "callspec", None)
        return None if callspec is None else callspec.params.get("config_cls")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Note which test the next adapters belong to."""
        self.test = item.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test passes if its call does and neither setup nor teardown fails."""
        counts = report.when == "call" or report.outcome != "passed"
        if counts and self.outcomes.get(report.nodeid) != "failed":
            self.outcomes[report.nodeid] = report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.reasons[report.nodeid] = reason = str(crash and crash.message)[:300]
            if any(name in reason for name in NOT_ON_DISK):
                self.outcomes[report.nodeid] = "hub"

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        names = ("outcomes", "reasons", "attached", "refused")
        content = {name: getattr(self, name) for name in names}
        Path(os.environ["LODROP_REPORT"]).write_text(json.dumps(content, indent=1))


def pytest_configure(config: pytest.Config) -> None:
    """Wrap the two methods through which all PEFT models get their adapters."""
    for name, attribute in UNUSED_IMPORTS.items():
        if importlib.util.find_spec(name) is None:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, loader=None)
            setattr(module, attribute, type(attribute, (), {}))
            sys.modules[name] = module
    rate = os.environ["LODROP_RATE"]
    suite = Suite(float(rate) if rate else None)
    config.pluginmanager.register(suite, "lodrop-suite")
    PeftModel.__init__ = suite.after(PeftModel.__init__, "default")  # type: ignore[method-assign]
    PeftModel.add_adapter = suite.after(PeftModel.add_adapter, "")  # type: ignore[method-assign]
    # It goes online where a test asks for a model of the Hub; offline such a test fails at once.
    importlib.import_module("tests.testing_utils").hub_online_once = nullcontext

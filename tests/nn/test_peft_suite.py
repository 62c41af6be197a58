"""PEFT's own tests of LoRA, on models with LoRA Dropout attached.

With p = 0, and with masks that keep everything, an adapter must behave as PEFT says that adapters
do. The tests come from PEFT's release on the package index; nothing of them is kept here.
"""

import copy
import gc
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version

from lodrop_nn.adapter import attach_lora_dropout, mask_bank
from tests.nn.tiny import adapted, inputs, lora_config

VERSION = "0.21.2"
SHA256 = "b803ccfb3f3f316004d850284306687833a2235ea278fb56abc856203456142e"
# The files whose tests of LoRA need no model of the Hub.
FILES = ["test_custom_models", "test_initialization", "test_lora_variants", "test_mapping"]
PLUGIN = Path(__file__).parent.parent / "peft_suite"

# Fewer would mean that the plugin no longer finds the adapters that the tests make.
N_ATTACHED = 1300

# Tests that pass with plain PEFT only, by a pattern of their names, and why that is right.
EXPLAINED: dict[str, str] = {}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEFT's source distribution, downloaded by pip and checked by its hash."""
    folder = tmp_path_factory.mktemp("peft")
    (folder / "requirements.txt").write_text(f"peft=={VERSION} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
    options = ["--require-hashes", "-r", "requirements.txt", "--dest", "."]
    done = subprocess.run([*pip, *options], cwd=folder, capture_output=True, text=True)
    if done.returncode and "hash" not in done.stderr.lower():
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert not done.returncode, done.stderr
    with tarfile.open(folder / f"peft-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    root = folder / f"peft-{VERSION}"
    (root / "tests" / "__init__.py").touch()  # missing in the distribution; tests import it
    (root / "pytest.ini").write_text("[pytest]\n")  # instead of options of plugins not needed
    return root


def run(suite: Path, rate: str, tests: list[str]) -> dict[str, Any]:
    """Outcomes of tests, with LoRA Dropout of a rate attached, or without for an empty rate."""
    report = suite / "report.json"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(PLUGIN), str(suite))),
        "LODROP_RATE": rate,
        "LODROP_REPORT": str(report),
        "HF_HUB_OFFLINE": "1",
    }
    options = ["-q", "-c", "pytest.ini", "-p", "attached_everywhere", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "--tb=line", *tests]
    done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True)
    assert report.is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    outcomes: dict[str, Any] = json.loads(report.read_text())
    return outcomes


@pytest.mark.slow
@pytest.mark.skipif(peft.__version__ != VERSION, reason=f"these are the tests of {VERSION}")
# A rate that is not 0 makes masks come into play; this one never drops a coordinate in practice.
@pytest.mark.parametrize("rate", ["0.0", "1e-12"])
def test_peft_s_tests_pass_with_lora_dropout_attached(rate: str, suite: Path) -> None:
    attached = run(suite, rate, [f"tests/{name}.py" for name in FILES])
    passed = [test for test, outcome in attached["outcomes"].items() if outcome == "passed"]
    failed = [test for test, outcome in attached["outcomes"].items() if outcome == "failed"]
    assert sum(test in attached["attached"] for test in passed) >= N_ATTACHED
    plain = run(suite, "", failed)["outcomes"] if failed else {}
    lost = {test for test in failed if plain[test] == "passed"}
    unexplained = {x for x in lost if not any(re.search(pattern, x) for pattern in EXPLAINED)}
    assert not unexplained, {test: attached["reasons"][test] for test in unexplained}
    # An explanation that explains nothing any more must go.
    assert all(any(re.search(pattern, x) for x in lost) for pattern in EXPLAINED)


def test_an_unloaded_model_can_be_copied() -> None:
    """What these tests found: hooks stay on the base model when PEFT's wrappers are gone."""
    model = adapted("bert").eval()
    attach_lora_dropout(model, 0.5)
    merged = model.merge_and_unload()
    del model
    gc.collect()
    expected = merged(**inputs("bert")).logits
    for other in (copy.deepcopy(merged), pickle.loads(pickle.dumps(merged))):
        assert torch.equal(other(**inputs("bert")).logits, expected)


@pytest.mark.parametrize("leave", ["merge_and_unload", "unload", "delete_adapter"])
def test_no_masks_are_drawn_for_an_adapter_that_is_gone(leave: str) -> None:
    if leave == "delete_adapter" and Version(peft.__version__) < Version("0.20"):
        pytest.skip("peft 0.19 forgets to delete the variant together with its adapter")
    model = adapted("bert")
    bank = attach_lora_dropout(model, 0.5)
    before = copy.deepcopy(model)
    model.train()(**inputs("bert"))
    if leave == "delete_adapter":
        model.add_adapter("other", lora_config("bert"))
        model.set_adapter("other")
        model.delete_adapter("default")
    else:
        model = getattr(model, leave)()
    gc.collect()
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.train()(**inputs("bert"))
        hooks = [(*x._forward_pre_hooks, *x._forward_hooks) for x in other.modules()]
        assert not any(hooks)
    assert bank.passes.n_drawn == 1
    assert not bank.is_watching
    # The copy has masks of its own, which it keeps.
    before.train()(**inputs("bert"))
    assert mask_bank(before).passes.n_drawn == 1

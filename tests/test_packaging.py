"""What a plain install can do, and what no install may pull in."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent

# Stands in for an environment without the extra: the import system finds none of these.
_WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

absent = {"torch", "transformers", "peft", "matplotlib", "jinja2"}
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)
"""


def without_torch(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH + code], capture_output=True, text=True
    )


def test_the_calculator_answers_without_torch():
    done = without_torch(
        "sys.argv = ['lodrop', 'bound', '--n-train', '2490', '--dropout-rate', '0,.1,.3', "
        "'--lipschitz', '1', '--hessian-min-eig', '0', '--penalty', '1', '--loss-range', '1', "
        "'--delta', '.05', '--json']\n"
        "from lodrop_theory.cli import main; main()"
    )
    assert done.returncode == 0, done.stderr
    rows = [r for r in json.loads(done.stdout) if r["bound"] == "lin2024"]
    assert [r["dropout_rate"] for r in rows] == [0.0, 0.1, 0.3]
    assert rows[0]["kind"] == "not applicable"
    assert rows[0]["gap"] is None
    assert [round(r["gap"], 3) for r in rows[1:]] == [0.508, 0.314]
    for key in ("risk", "predictor", "vacuous", "source", "n_train"):
        assert all(key in row for row in rows)


@pytest.mark.parametrize(
    "code",
    [
        "import lodrop_nn; lodrop_nn.attach_lora_dropout",
        "from lodrop_nn._extras import require; require('nn')",
    ],
)
def test_a_missing_extra_names_the_line_that_installs_it(code):
    done = without_torch(code)
    assert done.returncode != 0
    assert "pip install 'lodrop[nn]'" in done.stderr


def test_a_command_of_a_missing_extra_is_one_line():
    done = without_torch(
        "sys.argv = ['lodrop', 'compare']\nfrom lodrop_theory.cli import main; main()"
    )
    assert done.returncode == 2
    assert "pip install 'lodrop[nn]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_pulls_torchvision():
    """It breaks `import transformers` beside a CPU build of torch."""
    pins = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"^torchvision\b", pins, re.MULTILINE)
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("torchvision")


def test_every_requirement_is_pinned():
    """An open range with no pin would take the newest CUDA build of torch, several gigabytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for e in extras.values() for r in e)]
    names = {re.match(r"[A-Za-z0-9_.-]+", r).group().lower().replace("_", "-") for r in wanted}
    assert names - {"lodrop"} - {"ray"} <= pinned


def test_the_readme_tells_the_verdicts_of_the_contracts():
    from lodrop_theory import CLAIMS

    readme = (ROOT / "README.md").read_text()
    for claim in CLAIMS:
        assert f"| {claim.name}: {claim.claim} | {claim.verdict} |" in readme


@pytest.mark.parametrize("package", ["lodrop_theory", "lodrop_nn", "lodrop_nn.measure"])
def test_no_module_stands_in_the_way_of_a_public_name(package: str) -> None:
    """A module of the name of a lazily imported function would be found in its place."""
    home = importlib.import_module(package)
    for found in pkgutil.iter_modules(home.__path__):
        if found.name in home.__all__:
            importlib.import_module(f"{package}.{found.name}")
            assert not isinstance(getattr(home, found.name), ModuleType), found.name

"""A missing extra is one clear line, and the table of extras is that of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest

from lodrop_nn import _extras

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_extras_list_what_the_distribution_declares() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for extra, modules in _extras.MODULES_OF_EXTRA.items():
        names = {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in declared[extra]} - {"lodrop"}
        assert set(modules) == names


def test_a_missing_module_is_answered_with_the_line_that_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(_extras.MODULES_OF_EXTRA, "nn", ("torch", "no_such_module_xyz"))
    with pytest.raises(ImportError, match=r"needs no_such_module_xyz: pip install 'lodrop\[nn\]'"):
        _extras.require("nn")


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(ValueError, match="`extra` must be one of"):
        _extras.require("everything")

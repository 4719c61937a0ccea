"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch
from test_house import FILES


@pytest.mark.parametrize("module", [name for name, file in FILES.items() if ">>> " in file.read_text(encoding="utf-8")])
def test_examples_of_a_module(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tests = [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]
    assert tests
    for test in tests:
        torch.manual_seed(0)
        output: list[str] = []
        doctest.DocTestRunner().run(test, out=output.append)
        assert not output, f"{test.name}\n" + "".join(output)

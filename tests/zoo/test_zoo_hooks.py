"""Hooks on every submodule of Hugging Face models run as on the user's class; the calls compute what the graph did."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

hf = pytest.importorskip("hf", reason="needs transformers")
zoo_hooks = pytest.importorskip("zoo_hooks")

TABLE = Path(__file__).parent / "hooks.jsonl"
ROWS = {(row["name"], row["apply"]): row for row in map(json.loads, TABLE.read_text().splitlines()) if not row["error"]}
PART, PARTS = map(int, os.environ.get("ABCFX_ZOO_PART", "0/1").split("/"))


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "apply"), list(ROWS)[PART::PARTS])
def test_type(name: str, apply: str) -> None:
    known = ROWS[name, apply]
    (each,) = [each for each in hf.types() if each.name == name]
    row = zoo_hooks.compare_type(each, apply)
    assert not row.error and row.kind == known["kind"] and row.modules == known["modules"]
    for field in ("refused", "differing"):
        assert getattr(row, field).keys() <= known[field].keys(), field
    for field in ("equal", "hooked"):
        assert not getattr(row, field) or known[field], field

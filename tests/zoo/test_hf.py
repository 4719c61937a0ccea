"""Hugging Face types are captured as the committed table says: a few by default, all with `-m zoo`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from check import check

hf = pytest.importorskip("hf", reason="needs transformers")

SAMPLE = ["gpt2 (clm)", "llama (clm)", "mixtral (clm)", "vit (image)"]
TABLE = Path(__file__).parent / "coverage.jsonl"
ROWS = {row["name"]: row for row in map(json.loads, TABLE.read_text().splitlines()) if row["group"] == "hf"}
PART, PARTS = map(int, os.environ.get("ABCFX_ZOO_PART", "0/1").split("/"))  # "3/10": every tenth, from the third on


def expect_as_in_the_table(name: str) -> None:
    (each,) = [each for each in hf.types() if each.name == name]
    model, inputs = hf.build(each)
    row, known = check(name, model, (), inputs), ROWS[name]
    if known["error"]:
        assert row.error.split(":")[0] == known["error"].split(":")[0]
        return
    assert not row.error
    for field in ("exact", "gradients", "names", "solved"):
        assert getattr(row, field) or not known[field], field


@pytest.mark.filterwarnings("ignore")  # of transformers' own
@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    expect_as_in_the_table(name)


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(ROWS)[PART::PARTS])
def test_type(name: str) -> None:
    expect_as_in_the_table(name)

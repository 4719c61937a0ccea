"""Init and rates of every parameter equal those of microsoft/mup (tests/data/mup_reference.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models_mup import ARCHITECTURES
from typed import given

import abcfx
from abcfx.plan.spec import SpecRow

HERE = Path(__file__).parents[1]
REFERENCE = json.loads((HERE / "data" / "mup_reference.json").read_text())["architectures"]


COVERED = [name for name in ARCHITECTURES if name in REFERENCE]


def _transform(name: str, optimizer: str, **options: Any) -> abcfx.Transformed:
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, inputs, base = architecture.build(256), architecture.inputs(), architecture.build(64)
    unverified = abcfx.Capture(verify=False)
    return abcfx.transform(
        model, inputs, base=base, optimizer=optimizer, lr=1.0, weight_decay=1.0, capture=unverified, **options
    )


def _forward(row: SpecRow, uses: list[dict[str, Any]]) -> list[float]:
    multiplier = row["multiplier"]
    return list(multiplier.values()) if isinstance(multiplier, dict) else [multiplier] * len(uses)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scales"),
    # absorbed, the factor of a tied head is in the norm before it: tests/plan/test_absorb_tied.py
    [(n, s) for n in COVERED for s in ("insert", "absorb") if (n, s) != ("transformer_tied_headcount", "absorb")],
)
def test_invariants_equal_those_of_mup(name: str, scales: str) -> None:
    """Compare what no change of formulation alters: effective init, Adam and SGD rates, lr times weight decay."""
    adam, sgd = _transform(name, "adamw", apply=scales).spec, _transform(name, "sgd", apply=scales).spec
    wrong = []
    for parameter, expected in REFERENCE[name]["params"].items():
        row, theirs = adam[parameter], expected["uses"][0]["forward_mult"]
        lead = _forward(row, expected["uses"])[0]
        got = {
            "adam_lr_eff_mult": lead * row["lr"],
            "adamw_lr_times_wd": row["lr"] * row["weight_decay"],
            "sgd_lr_eff_mult": lead**2 * sgd[parameter]["lr"],
            "sgd_lr_times_wd": sgd[parameter]["lr"] * sgd[parameter]["weight_decay"],
            "init_eff_mult": lead * 4.0 ** -given(row["own_init"])["exponent"] * row["init_factor"],
            "uses": [f / lead for f in _forward(row, expected["uses"])],
        }
        reference = {
            "adam_lr_eff_mult": theirs * expected["lr_mult_adam"],
            "adamw_lr_times_wd": expected["lr_mult_adamw"] * expected["wd_mult_adamw"],
            "sgd_lr_eff_mult": theirs**2 * expected["lr_mult_sgd"],
            "sgd_lr_times_wd": expected["lr_mult_sgd"] * expected["wd_mult_sgd"],
            "init_eff_mult": expected["intended_init_std_mult"],
            "uses": [use["forward_mult"] / theirs for use in expected["uses"]],
        }
        if isinstance(expected["invariants"], dict):
            reference |= {key: expected["invariants"].get(key) for key in reference if key in expected["invariants"]}
        for key, value in reference.items():
            if value is not None and got[key] != pytest.approx(value, rel=1e-9):
                wrong.append((parameter, key, got[key], value))
    assert not wrong

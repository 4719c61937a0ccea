"""The coordinate check decides: right models of many kinds pass, and with one layer off it names that layer."""

from __future__ import annotations

import pytest
import torch
from models_many import cases

import abcfx
from abcfx.plan.spec import Spec

CASES = cases()
BASE = 64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["graph", "towers", "seq2seq", "wavenet", "vae", "perceiver", "ssm"])
def test_a_right_model_passes(name: str) -> None:
    case = CASES[name]
    check = abcfx.coord_check(case.make, case.batch, widths=(64, 128, 256), loss=case.loss, control=False, budget=120)
    assert check, str(check)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"), [("graph", "own.1.weight"), ("towers", "score.weight"), ("ssm", "enter.weight")]
)
def test_a_rate_that_is_off_fails_by_name(name: str, layer: str) -> None:
    def prepare(result: abcfx.Transformed, width: int) -> torch.optim.Optimizer:
        spec = {n: row | {"lr": row["lr"] * (width / BASE) ** (0.5 * (n == layer))} for n, row in result.spec.items()}
        return torch.optim.AdamW(abcfx.param_groups(result.module, Spec(spec)))

    case = CASES[name]
    check = abcfx.coord_check(
        case.make, case.batch, widths=(64, 128, 256), loss=case.loss, control=False, prepare=prepare
    )
    assert layer in [row.name for row in check.failed], str(check)


def test_a_small_right_model_passes_at_small_widths() -> None:
    case = CASES["towers"]
    check = abcfx.coord_check(case.make, case.batch, widths=(32, 64, 128), loss=case.loss, control=False, budget=120)
    assert check, str(check)

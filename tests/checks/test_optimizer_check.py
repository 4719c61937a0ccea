"""The optimizer check names the groups whose numbers are not those of the plan times a common factor."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from models import Block

import abcfx
from abcfx.errors import CheckFailedError

IDS = torch.zeros(3, 4, dtype=torch.long)


@pytest.fixture
def result() -> abcfx.Transformed:
    return abcfx.transform(Block(64), IDS, base=Block(16), optimizer="adamw", weight_decay=0.1)


def test_a_common_factor_is_right_and_anything_else_is_named(result: abcfx.Transformed) -> None:
    optimizer = torch.optim.AdamW(result.param_groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step == 0 else 0.5)
    for _ in range(3):  # a warm-up from 0 is a common factor too
        abcfx.check_optimizer(optimizer, result).raise_if_failed()
        optimizer.step()
        scheduler.step()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    with pytest.raises(CheckFailedError, match=r"(?s)group \d .*has lr = 0.001; expected 0.00"):
        abcfx.check_optimizer(optimizer, result).raise_if_failed()


@pytest.mark.parametrize("key", ["eps", "weight_decay"])
def test_other_hyperparameters_are_checked(result: abcfx.Transformed, key: str) -> None:
    optimizer = torch.optim.AdamW(result.param_groups)
    optimizer.param_groups[0][key] *= 2
    with pytest.raises(CheckFailedError, match=f"{key} ="):
        abcfx.check_optimizer(optimizer, result).raise_if_failed()


def test_a_checkpoint_with_flat_groups_is_noticed(result: abcfx.Transformed) -> None:
    flat = torch.optim.AdamW([{"params": group["params"]} for group in copy.deepcopy(result.param_groups)])
    optimizer = torch.optim.AdamW(result.param_groups)
    optimizer.load_state_dict(flat.state_dict())
    with pytest.raises(CheckFailedError, match="loaded checkpoint"):
        abcfx.check_optimizer(optimizer, result).raise_if_failed()


def test_parameters_left_out_or_of_another_model(result: abcfx.Transformed) -> None:
    with pytest.raises(CheckFailedError, match="is in no group"):
        abcfx.check_optimizer(torch.optim.AdamW(result.param_groups[1:]), result).raise_if_failed()
    with pytest.raises(CheckFailedError, match="not one of the transformed"):
        abcfx.check_optimizer(torch.optim.AdamW(Block(64).parameters()), result).raise_if_failed()


def test_one_of_several_optimizers_is_checked_alone() -> None:
    both = {"hidden": "muon", "default": "adamw"}
    result = abcfx.transform(Block(64), IDS, base=Block(16), optimizer=both)
    abcfx.check_optimizer(torch.optim.Muon(result.groups_for("muon"), weight_decay=0.0), result).raise_if_failed()
    adamw = torch.optim.AdamW(result.groups_for("adamw"))
    abcfx.check_optimizer(adamw, result).raise_if_failed()
    adamw.param_groups[0]["lr"] *= 2
    with pytest.raises(CheckFailedError, match="lr ="):
        abcfx.check_optimizer(adamw, result).raise_if_failed()


def test_schedulers_do_not_reach_the_plan(result: abcfx.Transformed) -> None:
    optimizer = torch.optim.AdamW(result.param_groups)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert all(group["lr"] > 0 for group in result.param_groups)
    for group, own in zip(optimizer.param_groups, result.param_groups, strict=True):  # what the message says
        group["lr"] = own["lr"]
    abcfx.check_optimizer(optimizer, result).raise_if_failed()


@pytest.mark.parametrize("other", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adafactor])
def test_another_optimizer_than_planned_is_named(
    result: abcfx.Transformed, other: Callable[..., torch.optim.Optimizer]
) -> None:
    with pytest.raises(CheckFailedError, match="planned for adamw"):
        abcfx.check_optimizer(
            other([{k: v for k, v in g.items() if k != "eps"} for g in result.param_groups]), result
        ).raise_if_failed()


def test_rows_are_groups_and_say_what_to_write(result: abcfx.Transformed) -> None:
    optimizer = torch.optim.AdamW(result.param_groups)
    check = abcfx.check_optimizer(optimizer, result)
    assert check
    assert [row.name for row in check.rows][-1] == "every parameter"
    assert len(check.rows) == len(optimizer.param_groups) + 1
    optimizer.param_groups[1]["lr"] *= 2
    check = abcfx.check_optimizer(optimizer, result)
    assert [row.name.partition(" (")[0] for row in check.failed] == ["Optimizer group 1"]
    assert check.failed[0].fix.startswith("restore the groups")
    assert check.to_dict()["verdict"] == "FAIL"

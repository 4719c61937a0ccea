"""Numbers of an optimizer instance: every group's own, mapped to parameters by identity or by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from models import Block
from torch import nn

import abcfx
from abcfx.errors import InvalidInputError
from abcfx.theory.optimizers import Optimizer

IDS = torch.zeros(3, 4, dtype=torch.long)
NO_DEPTH = abcfx.Parametrization(depth="none")
MATRICES = ("emb.weight", "fc.weight", "head.weight")


def split(named: Iterable[tuple[str, nn.Parameter]], *, names: bool = False, **options: Any) -> torch.optim.AdamW:
    """Make an optimizer with two groups, the matrices and the rest."""
    held = list(named)
    groups: list[dict[str, Any]] = []
    for is_matrix, lr, decay, eps, betas in (
        (True, 0.02, 0.1, 1e-6, (0.9, 0.95)),
        (False, 0.05, 0.0, 1e-7, (0.8, 0.9)),
    ):
        inside = [(name, p) for name, p in held if (p.ndim > 1) == is_matrix]
        chosen: list[Any] = list(inside) if names else [p for _, p in inside]
        groups.append({"params": chosen, "lr": lr, "weight_decay": decay, "eps": eps, "betas": betas})
    return torch.optim.AdamW(groups, **options)


def plan(optimizer: Any, model: nn.Module, base: nn.Module, **options: Any) -> dict[str, dict[str, Any]]:
    result = abcfx.transform(model, IDS, base=base, optimizer=optimizer, apply="absorb", **options)
    again = abcfx.param_groups(result.module, json.loads(result.spec.to_json()))
    assert [{**group, "params": 0} for group in again] == [{**group, "params": 0} for group in result.param_groups]
    return {name: group for group in result.param_groups for name in group["param_names"]}


OWNERS: dict[str, Callable[[nn.Module, nn.Module], torch.optim.Optimizer]] = {
    "model": lambda model, base: split(model.named_parameters()),
    "base": lambda model, base: split(base.named_parameters()),
    "names": lambda model, base: split(Block(16).named_parameters(), names=True),
    "names in wrappers": lambda model, base: split(
        nn.ModuleDict({"module": Block(16)}).named_parameters(), names=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("owner", OWNERS)
def test_every_parameter_has_the_numbers_of_its_group(owner: str) -> None:
    model, base = Block(64), Block(16)
    found = plan(OWNERS[owner](model, base), model, base)
    for name, group in found.items():
        assert group["betas"] == ((0.9, 0.95) if name in MATRICES else (0.8, 0.9))
    assert (found["emb.weight"]["lr"], found["emb.weight"]["weight_decay"]) == (0.02, 0.1)
    assert found["fc.weight"]["lr"] == pytest.approx(0.02 / 4)
    assert found["fc.weight"]["weight_decay"] == pytest.approx(0.4)  # lr x weight decay stays
    assert found["head.weight"]["lr"] == pytest.approx(0.02 / 4)
    assert found["head.weight"]["eps"] == pytest.approx(1e-6)
    assert (found["norm.bias"]["lr"], found["norm.bias"]["weight_decay"]) == (0.05, 0.0)
    assert found["norm.bias"]["eps"] == pytest.approx(1e-7 / 4)


@pytest.mark.parametrize("owner", OWNERS)
def test_at_the_width_of_the_base_they_are_the_ones_given(owner: str) -> None:
    model, base = Block(16), Block(16)
    for name, group in plan(OWNERS[owner](model, base), model, base).items():
        expected = (0.02, 0.1, 1e-6) if name in MATRICES else (0.05, 0.0, 1e-7)
        assert (group["lr"], group["weight_decay"], group["eps"]) == expected


def test_groups_that_differ_and_belong_to_nobody_are_refused() -> None:
    with pytest.raises(
        InvalidInputError, match=r"differ in weight_decay, and 'emb\.weight'.*\n.*\n  To fix: make the AdamW"
    ):
        groups = split(Block(16).named_parameters()).param_groups
        same = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
        plan(torch.optim.AdamW(same), Block(64), Block(16))
    base = Block(16)
    with pytest.raises(InvalidInputError, match=r"'fc\.bias' is in none of them"):
        plan(split((name, p) for name, p in base.named_parameters() if name != "fc.bias"), Block(64), base)


def test_what_was_given_apart_need_not_agree() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr, "weight_decay": lr} for lr in (0.25, 0.5)]
    found = plan(torch.optim.AdamW(groups), Block(16), Block(16), lr=0.125, weight_decay=0.0)
    assert {(group["lr"], group["weight_decay"]) for group in found.values()} == {(0.125, 0.0)}
    with pytest.raises(InvalidInputError, match="differ in weight_decay, and"):
        plan(torch.optim.AdamW(groups), Block(16), Block(16), lr=0.125)


class Deep(nn.Module):
    """Residual blocks and a head."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Embedding(11, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.stem(ids)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)


def test_blocks_of_a_deeper_model_take_the_numbers_of_their_twins() -> None:
    base = Deep(16, 2)
    split_at = {"blocks.1.weight", "blocks.1.bias"}
    named = list(base.named_parameters())
    groups = [
        {"params": [p for name, p in named if (name in split_at) == is_last], "lr": lr}
        for is_last, lr in ((True, 0.5), (False, 0.25))
    ]
    result = abcfx.transform(Deep(16, 4), IDS, base=base, optimizer=torch.optim.SGD(groups), parametrization=NO_DEPTH)
    rates = {name: row["lr"] for name, row in result.spec.items() if name.startswith("blocks")}
    assert rates["blocks.0.weight"] == 0.25
    assert rates["blocks.3.weight"] == rates["blocks.3.bias"] == 0.5


def test_groups_that_agree_may_belong_to_anybody() -> None:
    halves = [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.25} for _ in range(2)]
    found = plan(torch.optim.AdamW(halves, weight_decay=0.5), Block(16), Block(16))
    assert {(group["lr"], group["weight_decay"]) for group in found.values()} == {(0.25, 0.5)}


@pytest.mark.parametrize("lr", [torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25), np.array(0.25)])
def test_numbers_may_be_tensors_or_numpys(lr: Any) -> None:
    base = Block(16)
    optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
    for key in ("lr", "weight_decay"):
        optimizer.param_groups[0][key] = lr
    found = plan(optimizer, Block(16), base)
    assert {(group["lr"], group["weight_decay"]) for group in found.values()} == {(0.25, 0.25)}


def test_what_is_given_to_transform_is_stronger() -> None:
    base = Block(16)
    found = plan(split(base.named_parameters()), Block(16), base, lr={"vector": 0.5}, weight_decay=0.25, eps=1e-3)
    assert {group["weight_decay"] for group in found.values()} == {0.25}
    assert {group["eps"] for group in found.values()} == {1e-3}
    assert (found["fc.bias"]["lr"], found["fc.weight"]["lr"]) == (0.5, 0.02)


def test_a_scheduler_that_warms_up_does_not_hide_the_rate() -> None:
    base = Block(16)
    optimizer = split(base.named_parameters())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert plan(optimizer, Block(16), base)["fc.weight"]["lr"] == 0.02


def test_several_instances_keep_their_own_numbers() -> None:
    base = Block(16)
    muon = torch.optim.Muon([base.fc.weight], lr=0.5, weight_decay=0.25, momentum=0.8, adjust_lr_fn="match_rms_adamw")
    both: dict[str, Optimizer] = {"hidden": muon, "default": torch.optim.AdamW(base.parameters(), lr=0.125)}
    result = abcfx.transform(Block(16), IDS, base=base, optimizer=both)
    (group,) = result.groups_for(muon)
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0.25, 0.8)
    assert torch.optim.Muon([group]).param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    assert {group["lr"] for group in result.groups_for("adamw")} == {0.125}


class Rectangles(nn.Module):
    """Matrices in all the ways in which they are stored; those of `r` grow on one side only."""

    def __init__(self, width: int, r: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(r, width)
        self.into, self.back, self.mid = nn.Linear(width, r), nn.Linear(r, width), nn.Linear(width, width)
        self.down = nn.Parameter(torch.randn(width, r) / width**0.5)
        self.up = nn.Parameter(torch.randn(r, width) / r**0.5)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.emb(ids)
        x = x + self.back(torch.tanh(self.into(x))) + torch.tanh(x @ self.down) @ self.up
        return self.head(self.norm(self.mid(x)))


TRANSPOSED = ("emb.weight", "down", "up")
MUON = (*TRANSPOSED, "into.weight", "back.weight", "mid.weight")


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize(
    ("small", "large", "r"), [(16, 64, 8), (16, 64, 40), (16, 64, 100), (64, 16, 40), (64, 96, 80)]
)
def test_a_step_of_muon_has_one_size_at_every_width(adjust: str | None, small: int, large: int, r: int) -> None:
    """torch's own step, on the gradient of one sample, changes what the layer computes as much as at the base."""

    def change(weight: nn.Parameter, name: str, lr: float) -> float:
        torch.manual_seed(0)
        columns = weight.shape[0] if name in TRANSPOSED else weight.shape[1]
        x, delta = torch.randn(columns), torch.randn(weight.numel() // columns)
        held = nn.Parameter(torch.zeros_like(weight))
        held.grad = torch.outer(x, delta) if name in TRANSPOSED else torch.outer(delta, x)
        torch.optim.Muon([held], lr=lr, weight_decay=0.0, adjust_lr_fn=adjust).step()
        matrix = held.detach().T if name in TRANSPOSED else held.detach()
        return float((matrix @ x).square().mean().sqrt() / x.square().mean().sqrt())

    base, model = Rectangles(small, r), Rectangles(large, r)
    muon = torch.optim.Muon([base.get_parameter(name) for name in MUON], lr=0.5, adjust_lr_fn=adjust)
    optimizers: dict[str, Optimizer] = {**dict.fromkeys(MUON, muon), "default": "adamw"}
    asked = abcfx.Parametrization(wider_base=True)
    result = abcfx.transform(model, IDS, base=base, optimizer=optimizers, apply="absorb", parametrization=asked)
    for name in MUON:
        planned = change(model.get_parameter(name), name, result.spec[name]["lr"])
        assert planned == pytest.approx(change(base.get_parameter(name), name, 0.5), rel=0.05), name
        shrinks = result.spec[name]["lr"] * result.spec[name]["weight_decay"]
        assert shrinks == pytest.approx(0.5 * 0.1), name


def test_the_report_says_why_the_rate_is_no_power_of_width() -> None:
    both: dict[str, Optimizer] = {"into.weight": "muon", "default": "adamw"}
    result = abcfx.transform(Rectangles(64, 40), IDS, base=Rectangles(16, 40), optimizer=both, lr=0.5, apply="absorb")
    told = " ".join(str(result.explain("into.weight")).split())
    assert "= 0.5 x 4^-0.5 x 1.581, since muon's own factor on a matrix follows its real shape" in told


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], object]] = {
    "none": lambda optimizer: None,
    "from 0": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100)),
    "linear": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.1),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], 100
    ),
    "one cycle of lr": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], 100, cycle_momentum=False
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_rates_of_an_optimizer_are_those_that_its_scheduler_reaches(scheduler: str) -> None:
    base = Block(16)
    optimizer = split(base.named_parameters())
    SCHEDULERS[scheduler](optimizer)
    result = abcfx.transform(Block(64), IDS, base=base, optimizer=optimizer, apply="absorb")
    assert result.spec["fc.bias"]["lr"] == pytest.approx(0.05)
    assert result.spec["fc.weight"]["lr"] == pytest.approx(0.02 / 4)
    live = torch.optim.AdamW(result.param_groups)
    SCHEDULERS[scheduler](live)
    assert abcfx.check_optimizer(live, result)

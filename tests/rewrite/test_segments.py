"""The multiplier on some columns of a weight: scale nodes before a concatenation, hooks in place, and folding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models_concatenated import CONCATENATED
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.errors import InvalidInputError
from abcfx.plan.options import ApplyMode

RATIO = 4


def prepared(name: str, **options: Any) -> tuple[nn.Module, abcfx.Transformed, tuple[torch.Tensor, ...]]:
    """Return a model, its transform and its inputs."""
    case = CONCATENATED[name]
    torch.manual_seed(0)
    model, base = case.make(RATIO * case.base).double(), case.make(case.base).double()
    args = tuple(x.double() if x.is_floating_point() else x for x in case.args)
    given: dict[str, Any] = {"optimizer": "adam", "lr": 0.01} | options
    return model, abcfx.transform(model, args, base=base, **given), args


def trained(name: str, result: abcfx.Transformed, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return what the module computes after three steps of Adam."""
    optimizer, targets = torch.optim.Adam(result.param_groups), CONCATENATED[name].targets
    for _ in range(3):
        optimizer.zero_grad()
        (result.module(*args) - targets).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return result.module(*args)


@pytest.mark.parametrize("capture", ["symbolic", "export"])
@pytest.mark.parametrize("name", CONCATENATED)
def test_insert_absorb_and_in_place_train_alike_and_fold_exactly(name: str, capture: CaptureMethod) -> None:
    outputs = []
    for apply in ("insert", "absorb", "inplace"):
        _, result, args = prepared(name, apply=apply, capture=capture, eps=1e-30)
        assert all(len({each.multiplier for each in result.plan[w].segments}) == 2 for w in CONCATENATED[name].segments)
        outputs.append(trained(name, result, args))
        folded = result.fold()
        torch.testing.assert_close(folded(*args), outputs[-1], atol=1e-9, rtol=0)
        assert type(folded) is CONCATENATED[name].make
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(outputs[2], outputs[0], atol=1e-9, rtol=0)


def test_model_in_place_is_not_saved_before_it_is_folded() -> None:
    model, result, args = prepared("nerf", apply="inplace")
    with pytest.raises(InvalidInputError, match="fold"):
        model.state_dict()
    before = model(*args)
    assert result.fold() is model and model.state_dict()
    torch.testing.assert_close(model(*args), before)


def test_drawing_anew_follows_the_columns() -> None:
    _, result, _ = prepared("nerf")
    weight = dict(result.module.named_parameters())["skip.weight"]
    first = [weight[:, :60].std().item(), weight[:, 60:].std().item()]
    result.init_weights()
    assert [weight[:, :60].std().item(), weight[:, 60:].std().item()] == pytest.approx(first, rel=0.05)
    assert first[1] / first[0] == pytest.approx(RATIO**0.5, rel=0.05)


class Cell(nn.Module):
    """A gated cell: two layers and an output read one concatenation, which changes what it is made of later."""

    def __init__(self, width: int, kept: int = 6) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(kept, width), nn.Linear(kept + width, 3)
        self.gate, self.new = nn.Linear(kept + width, width), nn.Linear(kept + width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.into(x))
        joined = torch.cat([x, h], 1)
        x = x.clone().mul_(2.0)
        z = torch.sigmoid(self.gate(joined)) * torch.tanh(self.new(joined))
        return self.head(torch.cat([x, z], 1)) + joined.square().mean()


@pytest.mark.parametrize("capture", ["symbolic", "export", "record"])
def test_other_readers_of_a_concatenation_see_no_factor(capture: CaptureMethod) -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(0)
    model, base = Cell(32).double(), Cell(8).double()
    result = abcfx.transform(model, x, base=base, optimizer="adam", init="keep", capture=capture)
    torch.testing.assert_close(result.module(x), model(x))
    result = abcfx.transform(copy.deepcopy(model), x, base=base, optimizer="adam", capture=capture)
    assert [len(result.plan[f"{each}.weight"].segments) for each in ("gate", "new", "head")] == [2, 2, 2]
    torch.testing.assert_close(result.fold()(x), result.module(x))


class Residual(nn.Module):
    """Every block reads the input beside the stream."""

    def __init__(self, width: int, blocks: int, kept: int = 6) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(kept, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(nn.Linear(kept + width, width) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.into(x)
        for block in self.blocks:
            h = h + block(torch.cat([x, torch.tanh(h)], 1))
        return self.head(h)


def test_factor_of_a_residual_branch_goes_into_all_segments_of_its_layer() -> None:
    x, outputs = torch.randn(4, 6, dtype=torch.float64), []
    depth = abcfx.Parametrization(depth="completep")
    modes: tuple[ApplyMode, ...] = ("insert", "absorb", "inplace")
    for apply in modes:
        torch.manual_seed(0)
        model, base = Residual(32, 4).double(), Residual(8, 2).double()
        result = abcfx.transform(model, x, base=base, optimizer="adam", apply=apply, parametrization=depth)
        outputs.append(result.module(x))
        torch.testing.assert_close(result.fold()(x), outputs[-1])
        assert len(result.plan["blocks.3.weight"].segments) == 2
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


def test_layer_that_is_called_twice_has_the_same_factors_in_both_calls() -> None:
    class Twice(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.into(x)
            for block in (self.blocks[0], self.blocks[0]):
                h = torch.tanh(block(torch.cat([x, h], 1)))
            return self.head(h)

    x = torch.randn(4, 6, dtype=torch.float64)
    result = abcfx.transform(Twice(32, 1).double(), x, base=Twice(8, 1).double(), optimizer="adam")
    assert sorted(result.plan["blocks.0.weight"].a.values()) == [-1.0, -1.0, 0.0, 0.0]
    assert result.plan["blocks.0.weight"].c == 1.0
    assert "used more than once: blocks.0.weight: 2 (blocks.0 a = 0" in str(result)
    torch.testing.assert_close(result.fold()(x), result.module(x))


def test_recurrent_cell_starts_from_a_state_of_zeros() -> None:
    class Cell(nn.Module):
        """Written out: the first call concatenates two constants, an input and the state before it."""

        def __init__(self, width: int, kept: int = 5) -> None:
            super().__init__()
            self.width, self.gates, self.head = width, nn.Linear(kept + width, 3 * width), nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x.new_zeros(x.shape[0], self.width)
            for step in range(3):
                keep, write, new = self.gates(torch.cat([x[:, step], h], 1)).chunk(3, 1)
                h = torch.sigmoid(keep) * h + torch.sigmoid(write) * torch.tanh(new)
            return self.head(h)

    x = torch.randn(4, 3, 5, dtype=torch.float64)
    modes: tuple[CaptureMethod, ...] = ("symbolic", "export")
    for capture in modes:
        result = abcfx.transform(Cell(32).double(), x, base=Cell(8).double(), optimizer="adam", capture=capture)
        plan = result.plan["gates.weight"]
        assert [(each.role, each.a) for each in plan.segments] == [("embedding", -1.0), ("hidden", 0.0)]
        assert plan.c == 1.0
        torch.testing.assert_close(result.fold()(x), result.module(x))


def test_weight_without_a_module_to_hook_is_refused_in_place_before_anything_changed() -> None:
    class Raw(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.into, self.head = nn.Linear(6, width), nn.Linear(width, 3)
            self.middle = nn.Parameter(torch.randn(6 + width, width) * width**-0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(torch.cat([x, torch.tanh(self.into(x))], 1) @ self.middle))

    model, x = Raw(32), torch.randn(4, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidInputError, match="some columns of middle meet an input that does not grow"):
        abcfx.transform(model, x, base=Raw(8), apply="inplace")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result = abcfx.transform(model, x, base=Raw(8))
    assert [each.role for each in result.plan["middle"].segments] == ["embedding", "hidden"]
    torch.testing.assert_close(result.fold()(x), result.module(x))

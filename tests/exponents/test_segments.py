"""A weight whose input is a concatenation of tensors, of which some grow, has exponents for the columns of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_concatenated import CONCATENATED, NeRF
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.plan.options import ApplyMode

# By optimizer: a of the columns whose input stays, and c of the weight, in muP with a = 0 and b = 1/2 where it grows.
SHIFTS = {"adam": (-1.0, 1.0), "sgd": (-0.5, 0.0), "adafactor": (-1.0, 0.5), "muon": (-0.5, 0.0)}
ROLES = {
    "nerf": {"first": "embedding", "second": "hidden", "last": "hidden", "head": "readout"},
    "dlrm": {"tables.0": "scalar", "bottom": "embedding", "dense": "hidden", "last": "hidden", "head": "readout"},
    "unet": {"label": "scalar", "into": "embedding", "down": "hidden", "up": "hidden", "head": "readout"},
}


def transformed(name: str, ratio: int = 4, **options: Any) -> abcfx.Transformed:
    case = CONCATENATED[name]
    torch.manual_seed(0)
    model, base = case.make(ratio * case.base).double(), case.make(case.base).double()
    args = tuple(x.double() if x.is_floating_point() else x for x in case.args)
    given: dict[str, Any] = {"optimizer": "adam", "lr": 0.01} | options
    return abcfx.transform(model, args, base=base, **given)


@pytest.mark.parametrize("name", CONCATENATED)
def test_each_segment_has_the_role_rate_and_init_of_a_weight_of_its_own(name: str) -> None:
    result, unchanged = transformed(name), transformed(name, init="keep")
    weights, kept = ({n: p.detach() for n, p in each.module.named_parameters()} for each in (result, unchanged))
    for layer, role in ROLES[name].items():
        assert result.plan[f"{layer}.weight"].role == role
        assert not result.plan[f"{layer}.weight"].segments
    for weight, expected in CONCATENATED[name].segments.items():
        plan, row = result.plan[weight], result.spec[weight]
        assert (plan.role, plan.b, plan.c) == ("hidden", 0.5, 1.0)
        assert [(each["start"], each["stop"], each["role"]) for each in row["segments"]] == expected
        base_std = plan.own_init.base_spread if plan.own_init else 0.0
        for each in plan.segments:
            is_hidden = each.role == "hidden"
            assert (each.a, each.b, each.multiplier) == ((0.0, 0.5, 1.0) if is_hidden else (-1.0, 1.0, 4.0))
            columns = weights[weight].narrow(1, each.part.start, each.part.size)
            factor = columns / kept[weight].narrow(1, each.part.start, each.part.size)
            assert each.std == pytest.approx(base_std * 4**-each.b, rel=0.02)  # what the base has, times m^-b
            torch.testing.assert_close(factor, torch.full_like(factor, float(factor.mean())))
            assert columns.std().item() == pytest.approx(each.std, rel=0.1)


@pytest.mark.parametrize("optimizer", SHIFTS)
def test_multiplier_of_a_segment_makes_the_rate_of_the_others_right_for_it(optimizer: str) -> None:
    chosen = {"hidden": "muon", "default": "adamw"} if optimizer == "muon" else optimizer
    plan = transformed("nerf", optimizer=chosen).plan["skip.weight"]
    fixed, growing = plan.segments
    a, c = SHIFTS[optimizer]
    assert (fixed.a, fixed.b, plan.c) == (a, -a, c) and (growing.a, growing.b) == (0.0, 0.5)


def test_what_is_small_at_init_and_learns_does_not_slow_the_others() -> None:
    class Means(nn.Module):
        """Products of features are divided by their number: ~ m^-1/2 at init, of order 1 once they have learnt."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, width), nn.Linear(5, width)
            self.top, self.head = nn.Linear(width + 1, width), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            u, v = self.one(x), self.two(x)
            product = torch.matmul(u[:, None], v[:, :, None])[:, 0] / u.shape[-1]
            return self.head(torch.tanh(self.top(torch.cat([torch.tanh(u), product], -1))))

    plan = abcfx.transform(Means(64), torch.randn(3, 5), base=Means(16), optimizer="adam").plan["top.weight"]
    assert plan.c == 1.0 and [each.a for each in plan.segments] == [0.0, -1.0]


def test_at_the_base_width_nothing_changes() -> None:
    case = CONCATENATED["nerf"]
    torch.manual_seed(0)
    model = case.make(64)
    result = abcfx.transform(model, case.args, base=case.make(64))
    assert torch.equal(result.module(*case.args), model(*case.args))
    assert "segments" not in result.spec["skip.weight"]


@pytest.mark.parametrize("role", ["plain", "readout"])
def test_given_role_is_that_of_the_columns_that_grow(role: str) -> None:
    plan = transformed("nerf", overrides=abcfx.Overrides(roles={"skip.weight": role})).plan["skip.weight"]
    assert plan.role == role
    assert [each.role for each in plan.segments] == ["plain" if role == "plain" else "embedding", role]


def test_given_exponents_hold_for_all_columns() -> None:
    plan = transformed("nerf", overrides=abcfx.Overrides(exponents={"skip.weight": (0, 0.5)})).plan["skip.weight"]
    assert not plan.segments and set(plan.a.values()) == {0.0} and plan.b == 0.5


def test_report_names_the_columns() -> None:
    result = transformed("nerf")
    text = str(result.explain("skip.weight"))
    assert "columns 0:60 stay, the others grow" in text and "multiplier, by columns: 4 for 0:60, 1 for 60:316" in text
    assert "columns 0:60 meet an input that stays, and count as embedding" in " ".join(str(result).split())


@pytest.mark.parametrize("apply", ["insert", "inplace"])
@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_relu_and_dropout_may_stand_between(capture: CaptureMethod, apply: ApplyMode) -> None:
    class Between(NeRF):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.second(self.first(x))
            return self.head(self.skip(self.dropout(torch.relu(torch.cat([x, h], -1)))))

    x = torch.randn(3, 60)
    result = abcfx.transform(Between(256), x, base=Between(64), optimizer="adam", capture=capture, apply=apply)
    assert [each.role for each in result.plan["skip.weight"].segments] == ["embedding", "hidden"]
    for train in (True, False):
        torch.manual_seed(0)
        given = result.module.train(train)(x)
        if apply == "insert":
            torch.manual_seed(0)
            torch.testing.assert_close(result.fold()(x), given)


def test_concatenations_that_are_no_plain_input_of_a_layer_count_as_before() -> None:
    class Between(NeRF):
        """A norm stands between the concatenation and the layer."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.second(self.first(x))
            return self.head(self.skip(torch.nn.functional.layer_norm(torch.cat([x, h], -1), (60 + h.shape[-1],))))

    class Twice(NeRF):
        """The layer is called once more, with features that are made in one piece."""

        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.whole = nn.Linear(60, 60 + width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.second(self.first(x))
            return self.head(self.skip(torch.cat([x, h], -1)) + self.skip(self.whole(x)))

    class Forked(NeRF):
        """Another op reads what relu makes of the concatenation."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            joined = torch.relu(torch.cat([x, self.second(self.first(x))], -1))
            return self.head(self.skip(joined)) + joined.mean()

    for make in (Between, Twice, Forked):
        plan = abcfx.transform(make(256), torch.randn(3, 60), base=make(64), optimizer="adam").plan["skip.weight"]
        assert not plan.segments and 0.6 < plan.c < 0.7

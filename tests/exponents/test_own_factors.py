"""Factors that a model applies itself, such as sqrt(d) after its embedding, take the place of multipliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import abcfx
from abcfx.plan.options import ApplyMode

WIDTH, BASE = 64, 16
IDS = torch.arange(10).view(2, 5)


class Model(nn.Module):
    """A language model that applies factors itself, written for width `counted`; its norm has gain w or 1 + w."""

    def __init__(
        self,
        width: int,
        table: str = "",
        head: str = "",
        tied: bool = True,
        one_plus: bool = False,
        counted: int | None = None,
    ) -> None:
        super().__init__()
        d = counted or width
        self.embedding, self.block = nn.Embedding(50, width), nn.Linear(width, width)
        self.gain, self.one_plus = nn.Parameter(torch.zeros(width) + (not one_plus)), one_plus
        self.head = nn.Linear(width, 50, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        dtype = torch.bfloat16 if table == "buffer" else torch.float64
        self.register_buffer("normalizer", torch.tensor(d**0.5, dtype=dtype), persistent=False)
        self.at_table = d**0.5 if table == "number" else 1.0
        self.before_head = d**-0.5 if head == "before" else 1.0
        self.after_head = 16 / d if head == "after" else 1.0
        self.table = table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x = x * (self.normalizer.type(x.dtype) if self.table == "buffer" else self.at_table)
        x = x + torch.tanh(self.block(x))
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        x = x * (1 + self.gain if self.one_plus else self.gain)
        return self.head(x * self.before_head) * self.after_head


def transformed(scales: ApplyMode, counted: int | None, **options: Any) -> abcfx.Transformed:
    torch.manual_seed(0)
    model, base = Model(WIDTH, counted=counted, **options), Model(BASE, **options)
    options = {"optimizer": "adamw", "weight_decay": 0.1, "eps": 1e-4, "lr": 0.01}
    # kept as buffers in their dtype: only parameters in float64
    for each in (model, base):
        for parameter in each.parameters():
            parameter.data = parameter.data.double()
    return abcfx.transform(model, IDS, base=base, apply=scales, capture=abcfx.Capture(verify=False), **options)


def trajectory(result: abcfx.Transformed) -> list[float]:
    optimizer, losses = torch.optim.AdamW(result.param_groups), []
    for _ in range(10):
        loss = nn.functional.cross_entropy(result.module(IDS).flatten(0, 1), IDS.flip(0).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("scales", ["insert", "absorb"])
@pytest.mark.parametrize(
    "options",
    [
        {"table": "number"},
        {"table": "number", "tied": False},
        {"head": "before"},
        {"head": "before", "tied": False},
        {"head": "after"},
        {"head": "after", "tied": False},
        {"table": "buffer", "one_plus": True},
        {"table": "number", "head": "before", "one_plus": True},
    ],
    ids=str,
)
def test_a_factor_that_grows_trains_as_one_that_stays(options: dict[str, Any], scales: ApplyMode) -> None:
    """The same model, whose factors are written for the base width, at every width: the same trajectory."""
    growing, staying = (transformed(scales, counted, **options) for counted in (None, BASE))
    assert trajectory(growing) == pytest.approx(trajectory(staying), rel=1e-12, abs=0.0)


@pytest.mark.parametrize(
    ("options", "multiplier"),
    [
        ({}, {"embedding": 2.0, "head": 0.5}),
        ({"head": "before"}, {"embedding": 2.0, "head": 1.0}),
        ({"table": "number"}, {"embedding": 1.0, "head": 0.5}),
    ],
    ids=str,
)
def test_multipliers_of_a_tied_head(options: dict[str, Any], multiplier: dict[str, float]) -> None:
    """With b = 1/2 (and m = 4): a + b is 0 at the table and 1 at the head, less what the model divides by itself."""
    row = transformed("insert", None, **options).spec["embedding.weight"]
    assert row["b"] == 0.5 and row["multiplier"] == multiplier


def test_a_gain_that_is_used_as_one_plus_takes_no_multiplier() -> None:
    result = transformed("absorb", None, one_plus=True)
    assert result.spec["embedding.weight"]["multiplier"] == {"embedding": 1.0, "head": 0.25}
    assert result.spec["gain"]["b"] == 0.0
    plain = transformed("absorb", None)
    assert plain.spec["embedding.weight"]["multiplier"] == 1.0
    assert plain.spec["gain"]["b"] == 1.0


def test_given_exponents_are_checked_with_the_factor() -> None:
    torch.manual_seed(0)
    model, base = Model(WIDTH, table="number", tied=False), Model(BASE, table="number", tied=False)
    given = abcfx.transform(
        model, IDS, base=base, overrides=abcfx.Overrides(exponents={"embedding.weight": (0.0, 0.5)})
    )
    assert given.spec["embedding.weight"]["b"] == 0.5
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"only if a \+ b is\s*0\.5"):
        abcfx.transform(model, IDS, base=base, overrides=abcfx.Overrides(exponents={"embedding.weight": (0.0, 0.0)}))


class Between(nn.Module):
    """A function between a layer (an inner one, the table or the head) and a factor of the model or a norm."""

    def __init__(self, width: int, bend: Callable[[torch.Tensor], torch.Tensor], place: str) -> None:
        super().__init__()
        self.table, self.other = nn.Linear(6, width), nn.Linear(width, width)
        self.inner = nn.Linear(width, width, bias="norm" not in place)
        self.after, self.head = nn.Linear(width, width), nn.Linear(width, 3, bias=False)
        self.norm = nn.LayerNorm(width) if "norm" in place else nn.Identity()
        self.bend, self.place, self.width = bend, place, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shrinks = self.width**-0.5
        h = self.bend(self.table(x)) * self.width**0.5 if self.place == "table" else self.table(x)
        inner = self.inner(h) + self.other(h) if self.place == "sum" else self.inner(h)
        inner = self.bend(inner) * shrinks if self.place in ("inner", "sum", "norm") else self.bend(inner)
        h = h + self.after(self.norm(inner))
        return self.bend(self.head(h)) * shrinks if self.place == "head" else self.head(h)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("place", "name"), [("inner", "inner"), ("sum", "inner"), ("norm", "inner"), ("table", "table")]
)
@pytest.mark.parametrize("bend", [torch.tanh, nn.functional.gelu, torch.sin, lambda x: x.clamp(-1, 1)])
def test_no_layer_blows_up_in_front_of_a_nonlinearity_whose_result_is_scaled(
    bend: Callable[[torch.Tensor], torch.Tensor], place: str, name: str, optimizer: str
) -> None:
    x = torch.randn(4, 6)
    result = abcfx.transform(Between(64, bend, place), x, base=Between(16, bend, place), optimizer=optimizer)
    row = result.spec[f"{name}.weight"]
    assert result.solution.r[name] == result.solution.s[name] == 0.0
    assert not row["void"] and row["why"].endswith("grow" if name == "inner" else "does not")


@pytest.mark.parametrize("place", ["inner", "sum", "norm"])
def test_a_homogeneous_function_passes_a_factor_on_to_the_layer_before_it(place: str) -> None:
    x = torch.randn(4, 6)
    found = {
        bend: abcfx.transform(Between(64, bend, place), x, base=Between(16, bend, place)).spec["inner.weight"]
        for bend in (torch.relu, nn.Identity(), torch.tanh)
    }
    relu, linear, tanh = ((row["a"], row["b"], row["c"]) for row in found.values())
    assert relu == linear != tanh == (0.0, 0.5, 1.0)


def test_a_head_behind_whose_nonlinearity_a_number_shrinks_has_a_multiplier_of_its_own() -> None:
    x = torch.randn(4, 6)
    result = abcfx.transform(Between(64, torch.tanh, "head"), x, base=Between(16, torch.tanh, "head"))
    row = result.spec["head.weight"]
    assert (row["a"], row["b"], row["c"]) == (0.5, 0.5, 0.5) and result.solution.r["head"] == 0.0


@pytest.mark.parametrize(("bend", "void"), [(torch.relu, True), (torch.tanh, False)])
def test_a_norm_undoes_a_multiplier_only_if_no_nonlinearity_sees_it_first(
    bend: Callable[[torch.Tensor], torch.Tensor], void: bool
) -> None:
    x = torch.randn(4, 6)
    result = abcfx.transform(Between(64, bend, "a norm"), x, base=Between(16, bend, "a norm"))
    assert result.spec["inner.weight"]["void"] is void


class NormalisedGain(nn.Module):
    """A gain of size `init(d)` that the model multiplies by sqrt(d), on unit vectors that it multiplies by sqrt(d)."""

    def __init__(self, width: int, init: Callable[[int], float]) -> None:
        super().__init__()
        self.stem, self.query, self.head = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.gain = nn.Parameter(torch.full((width,), init(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = self.gain.shape[0]
        query = nn.functional.normalize(self.query(self.stem(x)), dim=-1) * (self.gain * width**0.5)
        return self.head(torch.tanh(query * width**0.5))


@pytest.mark.parametrize(("init", "b"), [(lambda d: d**-0.5, 0.5), (lambda d: 1.0, 0.0)])
def test_a_gain_whose_init_and_multiplier_undo_each_other_is_of_order_one(
    init: Callable[[int], float], b: float
) -> None:
    model, base = NormalisedGain(64, init), NormalisedGain(16, init)
    result = abcfx.transform(model, torch.rand(2, 8), base=base)
    assert result.plan["gain"].b == b and result.plan["gain"].init.factor == 1.0
    (query,) = (node for node in result.dag if result.outcome.dag.kind(node).name == "product")
    assert result.solution.s[query] == b

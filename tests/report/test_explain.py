"""`result.explain` says what the result holds, for every kind of parameter."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
import torch
from models import small_gpt
from rich.console import Console
from torch import nn
from typed import given

import abcfx
from abcfx.report.explanation import Explanation

IDS = torch.zeros(2, 16, dtype=torch.long)


def transformed(model: nn.Module | None = None, base: nn.Module | None = None, **options: Any) -> abcfx.Transformed:
    options = {"optimizer": "adamw", "lr": 0.01, **options}
    return abcfx.transform(model or small_gpt(64), IDS, base=base or small_gpt(16), **options)


@pytest.fixture(scope="module")
def result() -> abcfx.Transformed:
    return transformed(weight_decay=0.1)


def paragraph(explanation: Explanation, title: str) -> str:
    (found,) = [each for each in explanation.paragraphs if each.title.startswith(title)]
    return " ".join(line.text for line in found.lines)


def test_hidden(result: abcfx.Transformed) -> None:
    told = result.explain("blocks.1.attn.qkv.weight")
    assert (told.role, told.why) == ("hidden", "fan_in and fan_out grow")
    assert [(d.side, d.base_size, d.size, d.growth) for d in told.dims] == [
        ("fan_out", 48, 192, 1.0),
        ("fan_in", 16, 64, 1.0),
    ]
    assert [c.tag for c in told.constraints] == ["alpha", "u"]
    assert told.constraints[0].formula == "r(blocks.1.attn.qkv) = 0 <= c - alpha = 1 - 1 = 0"
    assert told.constraints[0].price == 3.0
    assert given(told.loosened).c == 0.5
    assert given(told.loosened).total == result.solution.solution.objective - 1.5  # it counts for q, k and v
    assert "cut into 3, so it counts 3 times" in paragraph(told, "Role")
    assert "lr 0.0025 = 0.01 x 4^-1" in paragraph(told, "What follows")
    assert "weight decay 0.4, chosen so that lr x weight decay is the same" in paragraph(told, "What follows")


def test_every_formula_holds_with_equality_and_every_price_is_the_solver_s(result: abcfx.Transformed) -> None:
    seen = 0
    for name in result.spec:
        for each in result.explain(name).constraints:
            left, right = each.formula.split(" <= ")
            assert float(left.rsplit("= ", 1)[1]) == float(right.rsplit("= ", 1)[1])
            values = re.findall(r"-? ?[\d.]+", right.split(" = ")[1])
            assert sum(float(v.replace(" ", "")) for v in values) == float(right.rsplit("= ", 1)[1])
            assert each.price == abs(result.solution.shadow_prices.get(each.name, 0.0))
            seen += 1
    assert seen == 19


def test_every_rate_is_the_product_that_is_said(result: abcfx.Transformed) -> None:
    for name, row in result.spec.items():
        (line,) = [text for text, _ in result.explain(name).paragraphs[-1].lines if text.startswith("lr ")]
        value, *product = re.findall(r"[\d.e-]+", line.partition(":")[0])
        assert float(value) == pytest.approx(row["lr"], rel=1e-3)
        if "^" in line:
            given, m, power = map(float, (*product[:2], line.rsplit("^", 1)[1]))
            assert given * m**power == pytest.approx(row["lr"], rel=1e-3)


def test_embedding_vector_and_readout(result: abcfx.Transformed) -> None:
    assert "no wider than in the base" in paragraph(result.explain("head"), "Role")
    told = result.explain("tok.weight")
    assert told.loosened is None
    assert "No alignment appears" in paragraph(told, "What would allow a larger rate")
    assert "multiplier 2 = 4^0.5" in paragraph(told, "What follows")
    told = result.explain("blocks.0.mlp.up.bias")
    assert not told.constraints
    assert "not part of the linear program" in paragraph(told, "What keeps c = 0 from")
    assert "as the bias of blocks.0.mlp.up" in paragraph(told, "Role")
    assert "gain or bias of the norm" in paragraph(result.explain("norm.weight"), "Role")
    assert "by adding it, in add" in paragraph(result.explain("pos"), "Role")


def test_why_a_tensor_may_not_change_more_is_followed_downstream() -> None:
    told = transformed(
        small_gpt(64, head_dim=32),
        small_gpt(16, head_dim=8),
        parametrization=abcfx.Parametrization(attention="keep"),
    ).explain("blocks.1.attn.qkv")
    (alpha,) = told.constraints
    assert alpha.formula.startswith("r(blocks.1.attn.qkv) = 0.5 <= c - alpha")
    assert alpha.because[-1].startswith("r(scaled_dot_product_attention_1#2) = 0 <=")
    assert "where r(scaled_dot_product_attention_1) = -0.5" in paragraph(told, "What keeps c = 1.5 from")


def test_a_frozen_parameter() -> None:
    model = small_gpt(64)
    model.tok.weight.requires_grad_(False)
    told = transformed(model).explain("tok")
    assert "Frozen" in paragraph(told, "Role")
    assert "does not learn" in paragraph(told, "No learning rate")
    assert "lr: none" in paragraph(told, "What follows")


def test_roles_and_exponents_that_were_given() -> None:
    told = transformed(overrides=abcfx.Overrides(roles={"blocks.0.mlp.up": "plain"})).explain("blocks.0.mlp.up")
    assert "The graph alone says hidden" in paragraph(told, "Role")
    assert "the base learning rate" in paragraph(told, "What follows")
    told = transformed(overrides=abcfx.Overrides(exponents={"blocks.0.mlp.up": (0.5, 0.0, 0.7)})).explain(
        "blocks.0.mlp.up"
    )
    assert "You gave c in `exponents`" in paragraph(told, "What keeps c = 0.7 from")


def test_other_optimizers() -> None:
    told = transformed(optimizer="sgd").explain("blocks.0.mlp.up")
    assert any("g(blocks.0.mlp.up.weight)" in each.formula for each in told.constraints)
    assert "it gradient" not in str(told)
    told = transformed(optimizer={"hidden": "muon", "default": "adamw"}).explain("blocks.0.mlp.up")
    assert "No alignment appears" in paragraph(told, "What would allow a larger rate")
    assert "for muon" in paragraph(told, "What follows")


def test_absorbed_multipliers_and_depth() -> None:
    told = transformed(apply="absorb").explain("head")
    assert "the factor m^-0.5 is absorbed" in paragraph(told, "What follows")
    assert told.paragraphs[2].title == "What keeps c = 0.5 from being smaller"
    told = transformed(small_gpt(64, layers=4), parametrization=abcfx.Parametrization(depth="completep")).explain(
        "blocks.3.mlp.up"
    )
    assert "x 2^-1 for 2 times the blocks" in paragraph(told, "What follows")


def test_without_a_base_and_with_one_of_the_same_size() -> None:
    told = abcfx.transform(small_gpt(64), IDS).explain("blocks.0.mlp.up")
    assert "No base was given" in paragraph(told, "How it grows")
    assert told.dims[0].base_size is None
    same = transformed(small_gpt(16)).explain("blocks.0.mlp.up")
    assert "m = 1" in paragraph(same, "How it grows")
    assert "as given, since m = 1" in paragraph(same, "What follows")


class Tied(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(10, width)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.router, self.free = nn.Linear(width, 4), nn.Linear(width, width, bias=False)
        self.experts = nn.Parameter(torch.randn(4, width, width) * width**-0.5)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.free(self.table(ids)))
        gates = torch.softmax(self.router(x), -1)
        x = x + torch.einsum("bti,eio,bte->bto", x, self.experts, gates)
        return self.head(self.norm(x)) * self.temperature


@pytest.fixture(scope="module")
def tied() -> abcfx.Transformed:
    torch.manual_seed(0)
    return abcfx.transform(Tied(32), IDS, base=Tied(8))


def test_tied_names_resolve(tied: abcfx.Transformed) -> None:
    told = tied.explain("head.weight")
    assert told.name == "table.weight"
    assert told.aliases == ("head.weight",)
    assert "As a table" in paragraph(told, "Role")
    assert {each.node for each in told.constraints} == {"table", "head"}
    assert "c would still be 0.5" in paragraph(told, "What would allow a larger rate")
    assert "at head" in paragraph(told, "What follows")


def test_router_experts_scalar_and_void(tied: abcfx.Transformed) -> None:
    assert "a router" in paragraph(tied.explain("router"), "Role")
    assert [d.side for d in tied.explain("experts").dims] == ["fan_out", "fan_in", "fan_out"]
    assert "single number" in paragraph(tied.explain("temperature"), "How it grows")
    assert "a norm follows at once" in paragraph(tied.explain("free"), "What follows")


def test_an_unknown_name_gets_those_that_are_close(result: abcfx.Transformed) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"blocks\.0\.mlp\.up\.weight"):
        result.explain("blocks.0.mlp.uo.weight")
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"close: blocks\.0\.attn\.qkv\.weight, "):
        result.explain("blocks.0.attn")
    with pytest.raises(abcfx.errors.InvalidInputError, match="To fix"):
        result.explain("")


def test_an_explanation_prints_as_text_and_exports_json(result: abcfx.Transformed) -> None:
    told = result.explain("head")
    assert max(map(len, str(told).splitlines())) <= 100
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(told)
    assert "What would allow a larger rate" in console.export_text()
    again = json.loads(json.dumps(told.to_dict()))
    assert again["constraints"][0]["formula"] == told.constraints[0].formula
    assert again["row"] == result.spec["head.weight"]


def test_explaining_changes_nothing(result: abcfx.Transformed) -> None:
    before = str(result)
    result.explain("head")
    assert str(result) == before

"""Routers that decide by sigmoid or relu are planned as those by softmax; a router without gradient is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from typed import number

import abcfx

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
Gate = Callable[[torch.Tensor], torch.Tensor]


class Experts(nn.Module):
    """A mixture of four experts behind a norm, whose weights a function makes of the router's logits."""

    def __init__(self, width: int, gate: Gate, contracts: bool = False) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 3)
        self.router = nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.gate, self.contracts = gate, contracts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        z = self.norm(h)
        weights = self.gate(self.router(z))
        if self.contracts:
            each = torch.stack([expert(z).relu() for expert in self.experts], -2)
            return self.head(h + torch.einsum("bte,bted->btd", weights, each))
        for i, expert in enumerate(self.experts):
            h = h + weights[..., i : i + 1] * expert(z).relu()
        return self.head(h)


def top(count: int, renormalised: bool, scores: Gate) -> Gate:
    """Return a gate that keeps the `count` largest scores, and may divide them by their sum."""

    def gate(logits: torch.Tensor) -> torch.Tensor:
        values, indices = scores(logits).topk(count, dim=-1)
        if renormalised:
            values = values / (values.sum(dim=-1, keepdim=True) + 1e-20)
        return torch.zeros_like(logits).scatter(-1, indices, values)

    return gate


GATES: dict[str, Gate] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "relu, divided by the sum": lambda logits: logits.relu() / (logits.relu().sum(-1, keepdim=True) + 1e-6),
    "sigmoid, top 2": top(2, True, torch.sigmoid),
    "sigmoid, top 1": top(1, False, torch.sigmoid),
    "softmax, top 2": top(2, True, lambda logits: logits.softmax(-1)),
    "the largest logits themselves": top(2, False, lambda logits: logits),
}


@pytest.mark.parametrize("contracts", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_a_router_is_a_readout_whatever_decides(name: str, contracts: bool) -> None:
    base, model = (Experts(width, GATES[name], contracts) for width in (16, 64))
    row = abcfx.transform(model, X, base=base).spec["router.weight"]
    rate = 1.5 if "divided" in name else 1.0  # a sum of small logits divides their changes too
    assert (row["role"], number(row["a"]) + row["b"], number(row["a"]) + row["c"]) == ("readout", 1.0, rate)
    assert "router" in str(row["why"])


def test_a_bottleneck_between_layers_is_no_router() -> None:
    class Squeeze(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.down, self.up = nn.Linear(6, width), nn.Linear(width, 4), nn.Linear(4, width)
            self.head = nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x)
            return self.head(h * self.up(self.down(h).relu()).sigmoid())

    result = abcfx.transform(Squeeze(64), X, base=Squeeze(16))
    assert "bottleneck" in str(result.spec["down.weight"]["why"])


@pytest.mark.parametrize(
    ("gate", "is_told"),
    [
        (top(1, True, lambda logits: logits.softmax(-1)), True),
        (top(1, True, torch.sigmoid), True),
        (top(1, False, lambda logits: logits), False),
        (top(2, True, torch.sigmoid), False),
        (top(1, False, torch.sigmoid), False),
    ],
)
def test_one_renormalised_expert_gives_its_router_no_gradient_and_that_is_told(gate: Gate, is_told: bool) -> None:
    model = Experts(16, gate)
    model(X).square().sum().backward()
    gradient = model.router.weight.grad
    assert gradient is not None and bool(gradient.abs().max() < 1e-6) == is_told
    result = abcfx.transform(Experts(64, gate), X, base=Experts(16, gate))
    assert any("no gradient reaches the router" in note for note in result.notes) == is_told

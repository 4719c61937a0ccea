"""Users register rules for custom autograd functions and modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
from models import MLP
from typed import graph_of

import abcfx


class Clipped(torch.autograd.Function):
    """A sigmoid with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].clamp(-1, 1)


class Opaque(torch.autograd.Function):
    """A function whose forward reads its context, so that it cannot be traced."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone() if ctx.needs_input_grad[0] else x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].clamp(-1e-3, 1e-3)


class WithFunction(MLP):
    function: Any = Clipped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function.apply(self.emb(x)))


class WithOpaque(WithFunction):
    function = Opaque


def test_a_custom_autograd_function_is_what_its_forward_does() -> None:
    result = abcfx.transform(WithFunction(32), torch.randn(4, 20), base=WithFunction(8))
    assert result.header.captured == "record" and result.spec["emb.weight"]["c"] == 0.5
    assert "pointwise" in {data["kind"].name for _, data in result.dag.nodes.items()}
    assert any("Clipped has a gradient of its own" in note for note in result.notes)


def test_a_custom_autograd_function_takes_a_rule_by_its_class() -> None:
    x = torch.randn(4, 20)
    with pytest.raises(abcfx.errors.UnknownOpError, match=r"register_rule\(Opaque\)"):
        abcfx.transform(WithOpaque(16), x)
    abcfx.rules.register_rule(Opaque)(lambda op, x: op.same(x))
    result = abcfx.transform(WithOpaque(16), x)
    assert result.header.captured == "record" and result.spec["emb.weight"]["role"] == "embedding"


def test_a_module_with_a_rule_of_its_own_stays_one_node() -> None:
    class Swish(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.beta = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(self.beta * x)

    @abcfx.rules.register_rule(Swish)
    def swish(op: Any, module: nn.Module, x: Any) -> Any:
        return op.product(op.same(x), op.parameter(module, "beta"))

    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), Swish(width), nn.Linear(width, 2))

    result = abcfx.transform(make(64), base=make(16))
    assert "1" in [node.target for node in graph_of(result.module).nodes if node.op == "call_module"]
    assert "pointwise" not in {data["kind"].name for _, data in result.dag.nodes.items()}
    assert result.spec["1.beta"]["role"] == "vector"


def test_arguments_by_keyword_are_put_in_their_place() -> None:
    class Keywords(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(6, width)), nn.Parameter(torch.zeros(width))
            self.head = nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.addmm(self.b, mat1=x, mat2=self.w)
            scores = torch.zeros(1, 1, 1).baddbmm(batch1=h[None], batch2=h.T[None], beta=0.0, alpha=0.1)
            return self.head(input=scores[0].softmax(-1) @ h)

    spec = abcfx.transform(Keywords(64), torch.randn(3, 6), base=Keywords(16)).spec
    assert (spec["w"]["role"], spec["b"]["role"], spec["head.weight"]["role"]) == ("embedding", "vector", "readout")


class Numbers(torch.autograd.Function):
    """A function whose forward has numbers at places where its call has none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.tanh(0.79788456 * x))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class WithNumbers(WithFunction):
    function = Numbers


def test_numbers_inside_a_custom_function_are_not_those_of_its_call() -> None:
    result = abcfx.transform(WithNumbers(32), torch.randn(4, 20), base=WithNumbers(8))
    assert {row["c"] for row in result.spec.values()} == {0.0, 0.5}

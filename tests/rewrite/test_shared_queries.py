"""The factor on attention logits goes into weights only where it then multiplies queries and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod

Attend = Callable[["Block", torch.Tensor], torch.Tensor]


class Block(nn.Module):
    """A residual branch of two heads, whose queries are made as one of the functions below says."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.norm, self.head = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 3)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width)
        self.raw = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.first, self.second = (nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        if how == "tied weights":
            self.k.weight = self.q.weight
        if how == "two modules, one weight":
            self.second.in_proj_weight = self.first.in_proj_weight
        if how == "weight norm":
            self.qkv = nn.utils.parametrizations.weight_norm(self.qkv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.norm(x + HOWS[self.how][0](self, x)))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plus_query: bool = False) -> torch.Tensor:
    q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return (out + q if plus_query else out).transpose(1, 2).flatten(2)


def cut(fused: torch.Tensor, plus_query: bool = False) -> torch.Tensor:
    q, k, v = fused.chunk(3, -1)
    return attention(q, k, v, plus_query)


def twice(attend: Attend) -> Attend:
    return lambda m, x: attend(m, attend(m, x))


def module(attention: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    return attention(x, x, x, need_weights=False)[0]


def two_memories(m: Block, x: torch.Tensor) -> torch.Tensor:
    q, y = m.q(x), x.flip(1)
    return attention(q, m.k(x), m.v(x)) + attention(q, m.k(y), m.v(y))


# how -> (the function, whether `fold` can put the factor into weights, whether a hook can)
HOWS: dict[str, tuple[Attend, bool, bool]] = {
    "separate": (lambda m, x: attention(m.q(x), m.k(x), m.v(x)), True, True),
    "fused": (lambda m, x: cut(m.qkv(x)), True, True),
    "relu before the cut": (lambda m, x: cut(F.relu(m.qkv(x))), True, True),
    "gelu before the cut": (lambda m, x: cut(F.gelu(m.qkv(x))), False, False),
    "queries added": (lambda m, x: cut(m.qkv(x), plus_query=True), False, False),
    "fused twice": (twice(lambda m, x: cut(m.qkv(x))), True, True),
    "no module": (lambda m, x: cut(F.linear(x, m.raw)), True, False),
    "weight norm": (lambda m, x: cut(m.qkv(x)), False, False),
    "one tensor": (lambda m, x: attention(m.q(x), m.q(x), m.v(x)), False, False),
    "keys are queries": (lambda m, x: (lambda q: attention(q, q, m.v(x)))(m.q(x)), False, False),
    "tied weights": (lambda m, x: attention(m.q(x), m.k(x.tanh()), m.v(x)), False, False),
    "two memories": (two_memories, True, True),
    "module twice": (twice(lambda m, x: module(m.first, x)), True, True),
    "two modules, one weight": (lambda m, x: module(m.first, x) + module(m.second, x.tanh()), True, True),
    "encoder layer twice": (twice(lambda m, x: m.encoder(x)), True, True),
}


@pytest.mark.parametrize(
    ("how", "method"), [*((how, "auto") for how in HOWS), ("module twice", "export"), ("queries added", "export")]
)
def test_every_way_to_apply_the_factor_computes_the_same(how: str, method: CaptureMethod) -> None:
    torch.manual_seed(0)
    model, base, x = Block(32, how).double(), Block(8, how).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    inserted, absorbed = (
        abcfx.transform(copy.deepcopy(model), x, base=base, apply=mode, capture=method) for mode in ("insert", "absorb")
    )
    expected = inserted.module(x)
    assert inserted.header.attention, "a factor is missing in this model"
    torch.testing.assert_close(absorbed.module(x), expected, rtol=1e-12, atol=1e-12)
    _, folds, hooks = HOWS[how]
    for result in (inserted, absorbed):
        if folds:
            torch.testing.assert_close(result.fold()(x), expected, rtol=1e-12, atol=1e-12)
        else:
            with pytest.raises(abcfx.errors.InvalidInputError, match="no parameter can take"):
                result.fold()
    before = copy.deepcopy(model.state_dict())
    if hooks:
        torch.testing.assert_close(
            abcfx.transform(model, x, base=base, apply="inplace", capture=method).module(x),
            expected,
            rtol=1e-12,
            atol=1e-12,
        )
    else:
        with pytest.raises(abcfx.errors.InvalidInputError, match="To fix: apply="):
            abcfx.transform(model, x, base=base, apply="inplace", capture=method)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_keeps_its_init_takes_no_factor() -> None:
    """Role "plain" leaves a layer as the model made it, so that the factor stays a node of the graph."""
    torch.manual_seed(0)
    model, base, x = Block(32, "separate").double(), Block(8, "separate").double(), torch.randn(2, 5, 6).double()
    kept = abcfx.Overrides(roles={"q.weight": "plain"})
    inserted, absorbed = (
        abcfx.transform(copy.deepcopy(model), x, base=base, apply=mode, overrides=kept) for mode in ("insert", "absorb")
    )
    torch.testing.assert_close(absorbed.module(x), inserted.module(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(absorbed.fold()(x), inserted.module(x), rtol=1e-12, atol=1e-12)

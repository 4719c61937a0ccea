"""Depth scaling changes branches, rates and eps where the base has fewer blocks, so that updates do not grow."""

from __future__ import annotations

import math
from typing import cast, get_args

import pytest
import torch
import torch.nn.functional as F
from models import trained
from torch import nn
from typed import Options, given, scales_in
from typing_extensions import Unpack

import abcfx
from abcfx.exponents.depth import DepthTable

IDS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int, depth: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))
        self.gain = nn.Parameter(torch.ones(width))
        if kind == "gpt2":  # its init takes depth into account
            nn.init.normal_(self.b.weight, std=0.5 * (width * depth) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "parallel":
            y = self.norm1(x)
            return x + (self.b(torch.tanh(self.a(y))) + self.c(y))
        x = x + self.b(F.dropout(torch.tanh(self.a(self.norm1(x))), 0.0, self.training))
        y = self.c(self.norm2(x))
        return x + (y * self.gain if self.kind == "gained" else torch.relu(y))


class Deep(nn.Module):
    def __init__(self, width: int, depth: int, kind: str = "plain") -> None:
        super().__init__()
        self.emb, self.norm, self.head = nn.Embedding(11, width), nn.LayerNorm(width), nn.Linear(width, 11)
        self.blocks = nn.ModuleList(Block(width, depth, kind) for _ in range(depth))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def deep(
    depth: DepthTable, layers: int = 8, kind: str = "plain", width: int = 32, **options: Unpack[Options]
) -> abcfx.Transformed:
    torch.manual_seed(0)
    model, base = Deep(width, layers, kind).double(), Deep(16, 2, kind).double()
    defaults: Options = {
        "optimizer": "adamw",
        "lr": 0.01,
        "parametrization": abcfx.Parametrization(depth=depth),
    }
    return abcfx.transform(
        model,
        IDS,
        base=base,
        **(defaults | options),
    )


# exponents of the ratio of depths, here 4
@pytest.mark.parametrize(
    ("depth", "optimizer", "branch", "lr", "eps"),
    [
        ("completep", "adamw", -1, 0, -1), ("mup", "adamw", -0.5, -0.5, -0.5), ("completep", "sgd", -1, 1, None),
        ("mup", "sgd", -0.5, 0, None), ("mup", "lion", -0.5, -0.5, None),
    ],
)  # fmt: skip
def test_numbers_of_the_published_table(
    depth: DepthTable, optimizer: str, branch: float, lr: float, eps: float | None
) -> None:
    plain, result = deep("none", optimizer=optimizer), deep(depth, optimizer=optimizer)
    nodes = scales_in(result.module, "branch")
    assert len(nodes) == 16 and {n.args[1] for n in nodes} == {4.0**branch}
    for name, row in result.spec.items():
        inside = name.startswith("blocks") and not name.endswith("gain")  # those are not used
        assert row["lr"] == pytest.approx(plain.spec[name]["lr"] * (4.0**lr if inside else 1))
        if eps is not None:
            assert row["eps"] == pytest.approx(given(plain.spec[name]["eps"]) * (4.0**eps if inside else 1))
    assert any("depth: 4 times" in note for note in result.notes) and any("'none'" in note for note in plain.notes)


@pytest.mark.parametrize("kind", ["plain", "gained", "parallel", "gpt2"])
@pytest.mark.parametrize(("depth", "optimizer"), [("completep", "adamw"), ("mup", "sgd")])
def test_absorbed_factors_train_the_same(kind: str, depth: DepthTable, optimizer: str) -> None:
    options: Options = {"optimizer": optimizer, "weight_decay": 0.1}
    inserted, sgd = deep(depth, kind=kind, **options), optimizer == "sgd"
    absorbed = deep(depth, kind=kind, **(options | {"apply": "absorb"}))
    assert not scales_in(absorbed.module)
    for left, right in zip(trained(inserted, IDS, 6, sgd), trained(absorbed, IDS, 6, sgd), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inserted.fold()(IDS), inserted.module(IDS), rtol=1e-10, atol=1e-10)


def change(depth: DepthTable, layers: int) -> float:
    result = deep(depth, layers, width=16, lr=1e-4)
    first, *_, last = trained(result, IDS, 4)
    return float((last - first).square().mean().sqrt())


@pytest.mark.slow
def test_what_the_model_learns_in_a_few_steps_does_not_grow_with_depth() -> None:
    slopes = {d: math.log(change(d, 64) / change(d, 4)) / math.log(64 / 4) for d in get_args(DepthTable)}
    assert abs(slopes["completep"]) < 0.1 and abs(slopes["mup"]) < 0.15
    assert slopes["none"] > 0.6


def test_init_that_knows_depth_is_the_bases() -> None:
    result = deep("mup", kind="gpt2", width=16)
    assert result.spec["blocks.5.b.weight"]["std"] == pytest.approx(0.5 * (16 * 2) ** -0.5, rel=0.1)


def test_same_depth_is_left_alone_and_blocks_without_branches_are_refused() -> None:
    same = deep("completep", layers=2)
    assert not scales_in(same.module, "branch")

    def chain(width: int, depth: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), *(nn.Linear(width, width) for _ in range(depth)))

    with pytest.raises(abcfx.errors.InvalidInputError, match="no residual branches"):
        abcfx.transform(
            chain(16, 4), torch.rand(3, 6), base=chain(16, 2), parametrization=abcfx.Parametrization(depth="completep")
        )
    with pytest.raises(abcfx.errors.InvalidInputError, match="'none', 'mup', 'completep'"):
        deep(cast("DepthTable", "sqrt"))


class Odd(nn.Module):
    """Blocks whose residual connections are written in other ways; `extra` is another list that grows or not."""

    def __init__(self, width: int, depth: int, how: str, extra: int = 0) -> None:
        super().__init__()
        self.how, self.stem, self.head = how, nn.Linear(6, width), nn.Linear(width, 3)
        names = ("n", "f", "g")
        self.blocks = nn.ModuleList(nn.ModuleDict({n: nn.Linear(width, width) for n in names}) for _ in range(depth))
        self.heads = nn.ModuleList(nn.Linear(width, 3) for _ in range(extra))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = F.layer_norm(x, x.shape[-1:])
            f, g = block.get_submodule("f"), block.get_submodule("g")
            if self.how == "two at once":
                x = x + f(y) + g(torch.tanh(y))
            elif self.how == "stream in the middle":
                x = f(y) + x + g(torch.tanh(y))
            elif self.how == "one inside the other":
                y = y + torch.tanh(f(y))
                x = x + g(y)
            else:
                x = x + torch.sigmoid(g(y)) * f(y)
        return self.head(x) + sum(head(x) for head in self.heads)


@pytest.mark.parametrize(
    ("how", "branches"),
    [("two at once", 6), ("stream in the middle", 6), ("one inside the other", 3), ("gated", 3)],
)
def test_every_branch_of_the_stream_is_scaled_once(how: str, branches: int) -> None:
    x = torch.randn(4, 6)
    torch.manual_seed(0)
    model, base = Odd(16, 3, how, extra=4).double(), Odd(16, 1, how, extra=2).double()
    result = abcfx.transform(model, x.double(), base=base, parametrization=abcfx.Parametrization(depth="completep"))
    nodes = scales_in(result.module, "branch")
    assert len(nodes) == branches
    assert all(n.args[1] == pytest.approx(1 / 3) for n in nodes)  # blocks, not heads
    torch.testing.assert_close(result.fold()(x.double()), result.module(x.double()), rtol=1e-12, atol=1e-12)


def test_more_heads_are_no_depth() -> None:
    result = abcfx.transform(
        Odd(16, 2, "gated", 8),
        torch.randn(4, 6),
        base=Odd(16, 2, "gated", 2),
        parametrization=abcfx.Parametrization(depth="completep"),
    )
    assert not scales_in(result.module, "branch")

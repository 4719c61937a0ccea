"""Dims are factored into atoms by views and cuts, so that parts of one parameter can grow differently."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typed import number

import abcfx
from abcfx.errors import PairingError
from abcfx.pairing.blocks import match_blocks
from abcfx.pairing.factors import Dim, factor_models, index_map, largest_ratio, sizes
from abcfx.pairing.factors.atoms import UnfitError, described, fresh, joined, piece, regrouped, unify


def indices(dim: Dim) -> torch.Tensor:
    """Return the small index of every large index of a dim."""
    return index_map(dim).indices()


TOKENS = torch.arange(12).view(2, 6) % 11


class Attention(nn.Module):
    """Grouped-query attention; q, k, v in one matrix or in three."""

    def __init__(self, width: int, heads: int, kv_heads: int, fused: bool = True, head_dim: int = 8) -> None:
        super().__init__()
        self.sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.repeats, self.head_dim = heads // kv_heads, head_dim
        self.tok, self.norm, self.head = nn.Embedding(11, width), nn.RMSNorm(width), nn.Linear(width, 4)
        rows = [sum(self.sizes)] if fused else self.sizes
        self.qkv = nn.ModuleList(nn.Linear(width, size) for size in rows)
        self.out = nn.Linear(self.sizes[0], width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        y = [layer(self.norm(x)) for layer in self.qkv]
        q, k, v = y if len(y) == 3 else y[0].split(self.sizes, -1)
        q, k, v = (z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for z in (q, k, v))
        k, v = (z.repeat_interleave(self.repeats, 1) for z in (k, v))
        return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Convolutions(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, channels, 3), nn.GroupNorm(groups, channels)
        self.grouped = nn.Conv2d(channels, channels, 3, groups=groups)
        self.depthwise = nn.Conv2d(channels, channels, 3, groups=channels)
        self.up = nn.ConvTranspose2d(channels, 5, 2, groups=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.depthwise(F.relu(self.grouped(self.norm(self.first(x))))))


class Deep(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            gate, value = block(x).chunk(2, -1)
            x = x + torch.sigmoid(gate) * value
        return self.last(x)


def dims_of(small: nn.Module, large: nn.Module, *args: object, name: str) -> str:
    blocks = match_blocks(dict(large.named_parameters()), dict(small.named_parameters()))
    factors = factor_models((small, large), inputs=((args, None), (args, None)), blocks=blocks)
    assert not [problem for problem in factors.problems if problem.fatal]
    return " , ".join(map(described, factors.parameter(name)))


pairs = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(st.lists(pairs, min_size=1, max_size=4))
@settings(deadline=None)
def test_views_there_and_back_keep_every_index(shape: list[tuple[int, int]]) -> None:
    total = math.prod(small for small, _ in shape), math.prod(large for _, large in shape)
    whole = fresh(total)
    assert [sizes(dim) for dim in regrouped([whole], shape)] == shape
    assert sizes(whole) == total
    (again,) = regrouped(regrouped([whole], shape), [total])
    assert indices(again).equal(indices(whole))
    of_shape = torch.arange(total[0]).view([small for small, _ in shape])
    for place, (small, large) in enumerate(shape):
        of_shape = of_shape.index_select(place, torch.arange(large) % small)
    assert indices(whole).equal(of_shape.flatten())


@given(st.lists(pairs, min_size=1, max_size=4))
@settings(deadline=None)
def test_pieces_of_a_dim_lie_one_behind_another(parts: list[tuple[int, int]]) -> None:
    total = sum(small for small, _ in parts), sum(large for _, large in parts)
    whole, start, cut = fresh(total), (0, 0), []
    for size in parts:
        cut.append(piece(whole, start, size))
        start = start[0] + size[0], start[1] + size[1]
    assert [sizes(each) for each in cut] == parts
    again = joined(cut)
    if total[0] != total[1]:
        unify(whole, again)
    assert indices(again).equal(indices(whole))
    offset = [sum(small for small, _ in parts[:i]) for i in range(len(parts))]
    expected = [torch.arange(large) % small + at for (small, large), at in zip(parts, offset, strict=True)]
    if total[0] != total[1]:
        assert indices(whole).equal(torch.cat(expected))
        assert largest_ratio(whole) == max(Fraction(large, small) for small, large in parts)


def test_dims_that_cannot_be_one_are_refused() -> None:
    with pytest.raises(UnfitError, match="against"):
        unify(fresh((4, 8)), fresh((4, 12)))
    with pytest.raises(UnfitError, match="cut"):
        regrouped([fresh((6, 6))], [(4, 4)])
    with pytest.raises(UnfitError, match="slice"):
        piece(fresh((4, 8)), (2, 0), (2, 4))


def test_copies_of_a_dim_that_is_no_multiple() -> None:
    assert index_map(fresh((4, 6))).copies().tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ((16, 2, 2), (32, 4, 4), "[2->4 x 8 | 2->4 x 8 | 2->4 x 8] , 16->32"),
        ((16, 4, 2), (16, 8, 2), "[2 x 2->4 x 8 | 32] , 16"),
        ((16, 4, 2), (16, 8, 4), "[2->4 x 2 x 8 | 2->4 x 8 | 2->4 x 8] , 16"),
    ],
)
def test_rows_of_a_fused_projection(small: tuple[int, int, int], large: tuple[int, int, int], expected: str) -> None:
    assert dims_of(Attention(*small), Attention(*large), TOKENS, name="qkv.0.weight") == expected


def test_columns_of_the_projection_behind_it() -> None:
    dims = dims_of(Attention(16, 4, 2), Attention(16, 8, 2), TOKENS, name="out.weight")
    assert dims == "16 , 2 x 2->4 x 8"


@pytest.mark.parametrize(("groups", "expected"), [((2, 2), "2 x 4->8 , 4->8"), ((2, 4), "2->4 x 4 , 4")])
def test_grouped_convolution(groups: tuple[int, int], expected: str) -> None:
    small, large = (Convolutions(channels, g) for channels, g in zip((8, 16), groups, strict=True))
    dims = dims_of(small, large, torch.zeros(1, 3, 8, 8), name="grouped.weight")
    rows, columns, *_ = dims.split(" , ")
    assert columns == expected.split(" , ")[1]
    assert math.prod(int(x.split("->")[-1]) for x in rows.split(" x ")) == 16


def test_more_blocks_than_the_base_has() -> None:
    small, large = Deep(4, 1), Deep(8, 3)
    assert dims_of(small, large, torch.zeros(2, 6), name="blocks.0.weight") == "[4->8 | 4->8] , 4->8"
    assert list(large.blocks._modules) == ["0", "1", "2"]


def test_two_architectures_are_told_where_they_differ() -> None:
    one, other = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    with pytest.raises(PairingError, match=r"differ in 1:\s+one runs relu, the other tanh"):
        factor_models((one, other), inputs=(((torch.zeros(2, 4),), None), ((torch.zeros(2, 4),), None)))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lion"])
def test_fused_rows_that_grow_in_part_get_what_the_split_ones_get(optimizer: str) -> None:
    def exponents(fused: bool) -> dict[str, tuple[str, float, float, float]]:
        models = (Attention(64, 8, 2, fused), Attention(16, 2, 2, fused))
        spec = abcfx.transform(models[0], (TOKENS,), base=models[1], optimizer=optimizer).spec
        return {name: (row["role"], number(row["a"]), row["b"], row["c"]) for name, row in spec.items()}

    def rate(row: tuple[str, float, float, float]) -> float:
        return row[3] + row[1] * (2 if optimizer == "sgd" else 1)  # with the multiplier absorbed

    fused, split = exponents(True), exponents(False)
    for name in split.keys() & fused.keys() - {"qkv.0.weight", "qkv.0.bias"}:
        assert fused[name] == split[name], name
    for kind in ("weight", "bias"):
        parts = [split[f"qkv.{i}.{kind}"] for i in range(3)]
        assert rate(fused[f"qkv.0.{kind}"]) == pytest.approx(min(map(rate, parts)))

"""A base with another number of blocks gives the same exponents, or an error that names the block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.pairing.blocks import match_blocks


class Mixed(nn.Module):
    """A model with blocks of two kinds, an op between blocks, and another after the last."""

    def __init__(self, width: int, kinds: str) -> None:
        super().__init__()
        self.emb, self.norm, self.head = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 3)

        def make(kind: str) -> nn.Module:
            linear = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
            return nn.Sequential(*linear) if kind == "m" else linear[0]

        self.blocks = nn.ModuleList(map(make, kinds))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.emb(x)
        for block in self.blocks:
            x = x + block(F.layer_norm(x, x.shape[-1:]))
            x = torch.tanh(x)
        return self.head(self.norm(x))


X = torch.randn(3, 6)


@pytest.mark.parametrize("capture", ["symbolic", "export"])
@pytest.mark.parametrize(
    ("target", "base"), [("mmmm", "mm"), ("mmm", "m"), ("mm", "mmm"), ("lmlmlm", "lm"), ("lmm", "lm")]
)
def test_blocks_are_paired_with_blocks_of_their_kind(target: str, base: str, capture: CaptureMethod) -> None:
    model = Mixed(64, target)
    deep = abcfx.transform(model, X, base=Mixed(16, base), capture=capture)
    same = abcfx.transform(model, X, base=Mixed(16, target), capture=capture)
    for name, row in same.spec.items():
        for key in ("role", "growth", "a", "b", "c", "g"):
            assert deep.spec[name][key] == row[key], (name, key)


def test_a_kind_that_the_base_has_not_is_named() -> None:
    with pytest.raises(abcfx.errors.PairingError, match=r"(?s)Block blocks\.1 .*at least one block of each kind"):
        abcfx.transform(Mixed(64, "mlm"), X, base=Mixed(16, "mm"))


def test_blocks_that_do_something_else_are_refused() -> None:
    class Other(Mixed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.emb(x)
            for index, block in enumerate(self.blocks):
                x = x + (torch.sigmoid(block(x)) if index == 3 else block(x))
            return self.head(self.norm(x))

    with pytest.raises(abcfx.errors.PairingError, match=r"target runs .*sigmoid"):
        abcfx.transform(Other(64, "mmmmmm"), X, base=Other(16, "mmm"))


def test_nested_numbers_and_order() -> None:
    def shapes(count: int) -> dict[str, torch.Tensor]:
        return {f"layers.{i}.experts.{j}.w": torch.zeros(2, 2) for i in range(count) for j in range(2)}

    blocks = match_blocks(shapes(12), shapes(4))
    assert blocks.counts == {"layers": (12, 4)} and blocks.ratio == 3.0
    assert blocks.twin("layers.11.experts.1.w") == "layers.3.experts.1.w"
    assert blocks.twin("layers.2.experts.0.w") == "layers.2.experts.0.w"


def test_shapes_alone_will_do_for_a_base() -> None:
    model, base = Mixed(64, "mm"), Mixed(16, "m")
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters()}
    kept = abcfx.transform(model, X, base=shapes, init="keep")
    paired = abcfx.transform(model, X, base=base, init="keep")
    assert [g["lr"] for g in kept.param_groups] == [g["lr"] for g in paired.param_groups]
    like = abcfx.transform(model, X, base=shapes, init=abcfx.InitLike(Mixed(16, "m"), Mixed(32, "m")))
    own = abcfx.transform(model, X, base=base)
    for name in ("emb.weight", "blocks.1.2.weight", "head.weight"):
        assert like.spec[name]["std"] == pytest.approx(own.spec[name]["std"], rel=0.2)
    with pytest.raises(abcfx.errors.InvalidInputError, match="InitLike"):
        abcfx.transform(model, X, base=shapes)


class Framed(nn.Module):
    """A model whose number of input features, or whose length, is that of the model."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(features, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x * scale)))))


@pytest.mark.parametrize("method", ["symbolic", "export", "record"])
def test_a_base_with_inputs_of_its_own(method: CaptureMethod) -> None:
    def inputs(features: int) -> tuple[torch.Tensor, dict[str, object]]:
        return torch.randn(4, features), {"scale": torch.ones(features)}

    (x, kwargs), (small, small_kwargs) = inputs(12), inputs(7)
    capture = abcfx.Capture(method, base_args=small, base_kwargs=small_kwargs)
    other = abcfx.transform(Framed(64, 12), x, kwargs, base=Framed(16, 7), optimizer="adamw", capture=capture)
    same = abcfx.transform(Framed(64, 12), x, kwargs, base=Framed(16, 12), optimizer="adamw", capture=method)
    for name, row in other.spec.items():
        for key in ("role", "growth", "a", "b", "c"):
            assert same.spec[name][key] == row[key], (name, key)
    assert other.module(x, **kwargs).shape == (4, 3)


def test_inputs_of_a_base_are_refused_where_one_batch_serves_all_models() -> None:
    capture = abcfx.Capture(base_args=torch.ones(2, 6))
    with pytest.raises(abcfx.errors.InvalidInputError, match="a check over widths calls all models with one batch"):
        abcfx.coord_check(lambda width: Mixed(width, "m"), X, widths=(8, 16), capture=capture)
    for grow in (abcfx.grow, abcfx.verify_growth):
        with pytest.raises(abcfx.errors.InvalidInputError, match=r"calls all models with one batch"):
            grow(Mixed(8, "m"), Mixed(16, "m"), X, capture=capture)
    with pytest.raises(abcfx.errors.InvalidInputError, match="expected a dict of keyword inputs"):
        abcfx.Capture(base_kwargs=X)  # type: ignore[arg-type]

"""Weights that are computed from parameters (reparametrized, masked, summed, normed) are layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from typed import number

import abcfx


class Reparametrized(nn.Module):
    def __init__(self, width: int, wrap: Any) -> None:
        super().__init__()
        self.stem, self.fc, self.head = nn.Linear(6, width), wrap(nn.Linear(width, width)), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc(F.relu(self.stem(x)))))


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_reparametrized_weight_is_a_layer(wrap: str) -> None:
    wrapper = getattr(nn.utils.parametrizations, wrap)
    result = abcfx.transform(Reparametrized(64, wrapper), torch.randn(3, 6), base=Reparametrized(16, wrapper))
    roles = {name: row["role"] for name, row in result.spec.items() if name.startswith("fc.parametrizations")}
    assert sorted(roles.values()) == (["hidden", "vector"] if wrap == "weight_norm" else ["hidden"])
    assert "plain" not in {row["role"] for row in result.spec.values()}


class Computed(nn.Module):
    """A hidden layer whose weight is computed from parameters in forward."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.width = how, width
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.w = nn.Parameter(torch.randn(width, width) * (1.0 if how == "equalized" else width**-0.5))
        self.gain = nn.Parameter(torch.ones(width, 1))
        self.down, self.up = nn.Parameter(torch.randn(4, width) * width**-0.5), nn.Parameter(torch.zeros(width, 4))
        self.register_buffer("mask", torch.ones(width, width))

    def weight(self) -> torch.Tensor:
        w = self.w
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "masked": lambda: w * self.get_buffer("mask"),
            "gained": lambda: w * self.gain,
            "merged": lambda: w + self.up @ self.down,
            "standardised": lambda: (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5),
            "symmetric": lambda: (w + w.T) / 2,
            "straight through": lambda: w + (torch.sign(w) - w).detach(),
            "viewed": lambda: w.view(self.width, 1, self.width).squeeze(1),
            "equalized": lambda: w * self.width**-0.5,
        }
        return ways[self.how]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(F.linear(F.relu(self.stem(x)), self.weight())))


HOWS = ["masked", "gained", "merged", "standardised", "symmetric", "straight through", "viewed", "equalized"]


@pytest.mark.parametrize("how", HOWS)
def test_a_weight_computed_from_parameters_is_a_layer(how: str) -> None:
    x = torch.randn(3, 6)
    spec = abcfx.transform(Computed(64, how), x, base=Computed(16, how)).spec
    own = 0.5 if how == "equalized" else 0.0  # d^-1/2 in the model stands for a multiplier
    assert spec["w"]["role"] == "hidden" and spec["w"]["init_factor"] == 1.0
    assert (spec["w"]["b"], spec["w"]["c"]) == (0.5 - own, 1.0 - own)
    assert (spec["stem.weight"]["c"], spec["head.weight"]["c"]) == (0.5, 0.5)
    if how == "gained":
        assert (spec["gain"]["role"], spec["gain"]["c"]) == ("vector", 0.0)
    if how == "merged":
        assert [number(spec[name]["a"]) + spec[name]["c"] for name in ("up", "down")] == [0.0, 1.0]
    assert abcfx.transform(Computed(64, how), x).spec["w"]["role"] == "hidden"


class Normalised(nn.Module):
    """A weight that forward divides by a norm of itself, as first layer, hidden layer and readout."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        layers = [nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)]
        self.how = how
        if how == "torch":
            layers = [torch.nn.utils.parametrizations.weight_norm(layer) for layer in layers]
        self.first, self.hidden, self.last = layers

    def apply_layer(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if self.how == "torch":
            return layer(x)
        if self.how == "cosine" and layer is self.last:
            return F.linear(F.normalize(x, dim=-1), F.normalize(layer.weight, dim=-1))
        return F.linear(x, layer.weight / layer.weight.norm(dim=1, keepdim=True), layer.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.apply_layer(self.first, x)
        return h, self.apply_layer(self.last, F.gelu(self.apply_layer(self.hidden, F.gelu(h))))


@pytest.mark.parametrize("how", ["torch", "by hand", "cosine"])
def test_a_weight_that_is_normalised_in_forward_keeps_its_init_and_takes_no_factor(how: str) -> None:
    torch.manual_seed(0)
    x, model, base = torch.randn(16, 5), Normalised(256, how), Normalised(16, how)
    inserted, absorbed = (abcfx.transform(model, x, base=base, apply=scales) for scales in ("insert", "absorb"))
    for left, right in zip(inserted.module(x), absorbed.module(x), strict=True):
        torch.testing.assert_close(left, right)
    sizes = [float(m(x)[0].detach().square().mean().sqrt()) for m in (base, inserted.module)]
    assert 0.6 < sizes[1] / sizes[0] < 1.6  # no multiplier against an init that has no effect
    name = "first.parametrizations.weight.original1" if how == "torch" else "first.weight"
    assert inserted.spec[name]["init_factor"] == 1.0
    if how == "cosine":  # a cosine is O(1) by itself
        assert inserted.spec["last.weight"]["multiplier"] == 1.0
        inserted.fold()
    else:
        with pytest.raises(abcfx.errors.InvalidInputError, match=r"multiplier of last.* cannot be put into weights"):
            inserted.fold()

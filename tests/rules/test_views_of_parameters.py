"""Parameters keep their role through views, lookups and transposed convolutions; what is filled in place is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod

IDS = torch.tensor([0, 2, 1, 3])
X = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A function of an activation (batch, tokens, width) and of parameters, between two layers."""

    def __init__(self, width: int, body: Callable[[Model, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.fc, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.vector, self.token = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(1, 1, width))
        self.column, self.table = nn.Parameter(torch.randn(1, width, 1)), nn.Parameter(torch.randn(width, 11))
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self, self.fc(self.stem(x))))


BODIES: dict[str, tuple[str, str, Callable[[Model, torch.Tensor], torch.Tensor]]] = {
    "view": ("vector", "vector", lambda self, h: h * self.vector.view(1, 1, -1)),
    "reshape": ("vector", "vector", lambda self, h: h * self.vector.reshape(1, 1, -1)),
    "new dims": ("vector", "vector", lambda self, h: h * self.vector[None, None]),
    "expand": ("token", "vector", lambda self, h: torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1)),
    "repeat": ("token", "vector", lambda self, h: torch.cat([self.token.repeat(h.shape[0], 1, 1), h], 1)),
    "column": ("column", "vector", lambda self, h: (h.mT * self.column).mT),
    "columns of a table": ("table", "embedding", lambda self, h: h + self.table[:, IDS].T),
    "last columns of a table": ("table", "embedding", lambda self, h: h + self.table[..., IDS].T),
    "rows of a table": ("table", "embedding", lambda self, h: h + self.table.T[IDS]),
    "index_select": ("table", "embedding", lambda self, h: h + self.table.index_select(-1, IDS).T),
}


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("name", BODIES)
def test_a_parameter_keeps_its_role_through_views(name: str, has_base: bool) -> None:
    parameter, role, body = BODIES[name]
    spec = abcfx.transform(Model(64, body), X, base=Model(16, body) if has_base else None).spec
    assert spec[parameter]["role"] == role


def test_what_is_overwritten_changes_nothing() -> None:
    def body(self: Model, h: torch.Tensor) -> torch.Tensor:
        copy = self.fc(h)
        copy.zero_()
        return h + copy + torch.empty_like(h).fill_(0.5)

    class Two(Model):
        def __init__(self) -> None:
            super().__init__(16, body)
            self.first = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(body(self, self.first(self.stem(x))))

    spec = abcfx.transform(Two(), X).spec
    assert (spec["first.weight"]["role"], spec["fc.weight"]["role"]) == ("hidden", "plain")


@pytest.mark.parametrize("method", ["symbolic", "export", "record"])
@pytest.mark.parametrize(
    "body",
    [
        lambda self, h: h * (2.0 / h.shape[-1] ** 0.5) * h.shape[-1] ** 0.5,
        lambda self, h: torch.cat(h.tensor_split((1, 3), -1)[::-1], -1),
        lambda self, h: h + torch.randn(h.shape, generator=None, device=h.device),
    ],
    ids=["number divided by a size", "tensor_split at places", "draw with generator=None"],
)
def test_numbers_splits_and_draws(method: CaptureMethod, body: Callable[[Model, torch.Tensor], torch.Tensor]) -> None:
    capture = abcfx.Capture(method=method)
    spec = abcfx.transform(Model(64, body), X, base=Model(16, body), capture=capture).spec
    assert (spec["fc.weight"]["role"], spec["fc.weight"]["c"]) == ("hidden", 1.0)


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("spelling", ["module", "aten.convolution"])
def test_a_transposed_convolution_contracts_the_first_dim_of_its_weight(spelling: str, depthwise: bool) -> None:
    """With three channels in, or one channel in for each out, the weight is embedding-like."""

    class Pictures(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, width if depthwise else 3, 1), nn.Conv2d(width, 2, 1)
            channels = (width, width) if depthwise else (3, width)
            self.up = nn.ConvTranspose2d(*channels, 2, groups=width if depthwise else 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h, weight, groups = self.stem(x), self.up.weight, self.up.groups
            if spelling == "module":
                return self.head(self.up(h).relu())
            h = torch.ops.aten.convolution(h, weight, None, [1, 1], [0, 0], [1, 1], True, [0, 0], groups)
            return self.head(h.relu())

    spec = abcfx.transform(Pictures(64), torch.randn(2, 3, 4, 4), base=Pictures(16)).spec
    assert spec["up.weight"]["role"] == "embedding"
    assert spec["head.weight"]["role"] == "readout"

"""What crosses the boundary of a submodule's call: idle conversions, no_grad blocks, arguments that nobody reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models_blocks import flat
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod


class Norm(nn.Module):
    """A root mean square norm as Hugging Face writes it: its first op returns the very tensor that it takes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class Experts(nn.Module):
    """Weights that multiply rows; how many rows there are, the caller knows as a product of two sizes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(width, width) * width**-0.5)

    def forward(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return F.relu(rows @ self.up).view(rows.shape[0], -1)


class Block(nn.Module):
    """A residual block with an argument of which nothing but the shape is used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.experts, self.down = Norm(width), Experts(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        rows = self.experts(self.norm(x).reshape(-1, width), first[:, 0])
        return x + self.down(rows).view(batch, length, first.shape[0] // batch * width)


class Cycles(nn.Module):
    """A model whose first block runs twice, the first time without gradients, and a teacher that never learns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x)
        with torch.no_grad():
            z = self.blocks[0](z, x[:, :1])
            half = 0.5 * z
        z = self.blocks[1](z + half, x[:, :1])
        return self.last(self.blocks[0](z, x[:, :1]))


@pytest.mark.parametrize("parametrization", [pytest.param("mup", marks=pytest.mark.slow), "ntk"])
@pytest.mark.parametrize("method", ["export", "record"])
def test_blocks_within_no_grad_are_called(method: CaptureMethod, parametrization: str) -> None:
    x = torch.rand(3, 5, 8)
    torch.manual_seed(0)
    result = abcfx.transform(Cycles(32), x, base=Cycles(16), capture=method, parametrization=parametrization)
    assert not any("cannot be called" in note for note in result.notes)
    calls: list[str] = []
    for path, part in result.module.named_modules():
        if path and path != "blocks":
            part.register_forward_hook(lambda *_, path=path: calls.append(path))
    outputs, gradients = [], []
    for module in (result.module, flat(result)):
        module.zero_grad()
        outputs.append(module(x))
        outputs[-1].square().sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert torch.equal(*outputs)
    assert (
        gradients[0].keys()
        == gradients[1].keys()
        == {*dict(flat(result).named_parameters())}
        - {
            "first.weight",
            "first.bias",
        }
    )
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())
    inner = {f"blocks.{index}{part}" for index in range(2) for part in ("", ".norm", ".experts", ".down")}
    assert sorted(calls) == sorted([*inner, *(path for path in inner if ".0" in path), "first", "last"])


def test_a_hook_before_a_block_within_no_grad_sees_what_the_users_model_hands_on() -> None:
    x = torch.rand(3, 5, 8)
    model = Cycles(32)
    result = abcfx.transform(model, x, base=Cycles(16), parametrization="ntk")
    seen: list[list[tuple[bool, tuple[int, ...]]]] = []
    for module in (model, result.module):
        found: list[tuple[bool, tuple[int, ...]]] = []
        module.get_submodule("blocks.0").register_forward_pre_hook(
            lambda _, args, found=found: found.extend((torch.is_grad_enabled(), tuple(each.shape)) for each in args)
        )
        module(x)
        seen.append(found)
    assert seen[0] == seen[1] and {grad for grad, _ in seen[0]} == {True, False}

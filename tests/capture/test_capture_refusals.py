"""Symbolic capture refuses models that its graph would compute wrongly, and shows the line of the model."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from abcfx.capture import capture
from abcfx.errors import CaptureError


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = x + 1
        return self.linear(x)


class DrawsPythonNoise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if random.random() < 0.5 else x


class StopsGradient(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = x.abs().mean()
        return x / scale


class Autocasts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 100


class OwnGradient(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubles: Callable[[torch.Tensor], torch.Tensor] = Doubles.apply
        return doubles(x)


@pytest.mark.parametrize(
    "model",
    [Branches(), DrawsPythonNoise(), StopsGradient(), Autocasts(), OwnGradient()],
    ids=lambda m: type(m).__name__,
)
def test_models_that_tracing_would_get_wrong_are_refused(model: nn.Module) -> None:
    with pytest.raises(CaptureError) as error:
        capture(nn.Sequential(nn.Identity(), model))
    message = str(error.value)
    assert "To fix: " in message
    assert f"1 ({type(model).__name__})" in message or "draws random numbers" in message


def test_error_shows_the_users_own_line() -> None:
    with pytest.raises(CaptureError, match=r"0 \(Branches\)\n    .*test_capture_refusals\.py:\d+: if x\.sum\(\) > 0:"):
        capture(nn.Sequential(Branches()))

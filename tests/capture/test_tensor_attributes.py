"""What a user wrote onto a parameter, as microsoft/mup does, is read while the model is traced."""

from __future__ import annotations

import torch
import torch.nn as nn

import abcfx


class Scaled(nn.Linear):
    """A readout that divides its input by a ratio that its weight carries, as mup.MuReadout does."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3)
        self.weight.ratio = width / 16  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x / self.weight.ratio)  # type: ignore[attr-defined]


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), Scaled(width))


def test_a_number_on_a_parameter_counts_as_the_readouts_own_multiplier() -> None:
    result = abcfx.transform(net(64), torch.randn(2, 5), base=net(16), optimizer="adam", capture="symbolic")
    assert list(result.plan["4.weight"].a.values()) == [0.0]
    assert "the model's own factor m^-1" in str(result.plan["4.weight"].why)
    plain = [node for node in result.outcome.captured.module.graph.nodes if "getattr" in node.name]
    assert plain == []

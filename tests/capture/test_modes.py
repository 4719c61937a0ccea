"""Train and eval mode share one exported graph only where they run the same operations on the same tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from abcfx.capture import capture


class Chooses(nn.Module):
    """In eval mode the other weight, or a detached input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "detached":
            return self.first(x if self.training else x.detach())
        same = self.training or self.kind == "same"
        return self.first(x) if same else self.second(x)


@pytest.mark.parametrize(("kind", "graphs"), [("same", 1), ("other weight", 2), ("detached", 2)])
def test_modes_that_differ_have_a_graph_each(kind: str, graphs: int) -> None:
    model = Chooses(kind)
    x = torch.randn(3, 4)
    module = capture(model, x, method="export").module
    assert len(module.graphs) == graphs
    for training in (True, False):
        assert torch.equal(module.train(training)(x), model.train(training)(x))

"""Exports in both modes: the path of training is captured, and modes with the same operations share one graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from abcfx.capture import capture


class AsksWhatItIsIn(nn.Module):
    """A layer that takes another algorithm when it is exported, as some models of transformers do."""

    def __init__(self, looks_at_values: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.looks_at_values = looks_at_values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting():
            if self.looks_at_values and x.sum() > 1e6:
                return x
            return self.linear(x) / 3
        return self.linear(x) * (1 / 3)


@pytest.mark.parametrize(("looks_at_values", "op"), [(False, "div"), (True, "mul")])
def test_path_of_training_is_captured_unless_it_cannot_be(looks_at_values: bool, op: str) -> None:
    captured = capture(AsksWhatItIsIn(looks_at_values), torch.rand(3, 4), method="export")
    assert any(op in str(node.target) for node in captured.module.graph.nodes)
    assert not torch.compiler.is_exporting()


class Modes(nn.Module):
    """A layer whose modes differ in what `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(4, 4), how

    def forward(self, x: torch.Tensor) -> object:
        y = nn.functional.dropout(self.linear(x), 0.5 if self.how == "dropout" else 0.0, self.training)
        if self.how == "factor":
            y = y * (2.0 if self.training else 3.0)
        if self.how == "operand":
            y = y + (x if self.training else y)
        if self.how == "output":
            return (y, x) if self.training else (x, y)
        return y


@pytest.mark.parametrize("how", ["nothing", "dropout", "factor", "operand", "output"])
def test_modes_that_run_the_same_operations_cost_one_export(how: str) -> None:
    captured = capture(Modes(how), torch.rand(3, 4), method="export")
    assert len(captured.module.graphs) == (1 if how == "nothing" else 2)


class Chooses(nn.Module):
    """A layer that in eval mode uses its other weight or a detached input."""

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

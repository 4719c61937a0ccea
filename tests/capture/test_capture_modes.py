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


class Block(nn.Module):
    """A layer whose caller may say how much it drops, beside what `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.dropout, self.how = nn.Linear(8, 8), nn.Dropout(0.5, inplace=how == "in place"), how

    def forward(self, x: torch.Tensor, share: float = 0.0) -> torch.Tensor:
        y = self.dropout(self.linear(x))
        if self.how == "function":
            y = torch.dropout(y, 0.5, self.training)
        if self.how == "given":
            y = nn.functional.dropout(y, share)
        if self.how == "attention":
            z = y.unflatten(-1, (2, 4)).transpose(1, 2)
            z = nn.functional.scaled_dot_product_attention(z, z, z, dropout_p=0.5 if self.training else 0.0)
            y = z.transpose(1, 2).reshape(y.shape)
        if self.how == "constant":
            y = y * torch.tensor(2.0 if self.training else 3.0)
        if self.how == "written":
            y += 1
        return x + y


class Blocks(nn.Module):
    """Two blocks, which are called with arguments that may depend on the mode."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.blocks, self.how = nn.ModuleList((Block(how), Block(how))), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, 0.5 if self.training else 0.0) if self.how == "given" else block(x)
        return x


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that gets one entry for each call of torch.export."""
    made: list[object] = []
    export = torch.export.export

    def counted(module: nn.Module, args: tuple[object, ...], **options: object) -> object:
        made.append(module)
        return export(module, args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.export, "export", counted)
    return made


@pytest.mark.parametrize(
    ("how", "count"),
    [("module", 1), ("function", 1), ("attention", 1), ("written", 2), ("in place", 2), ("constant", 2)],
)
@pytest.mark.parametrize("training", [True, False])
def test_modes_that_differ_in_dropout_alone_cost_one_export(
    how: str, count: int, training: bool, exports: list[object]
) -> None:
    model, x = Blocks(how).train(training), torch.randn(3, 5, 8)
    module = capture(model, x, method="export").module
    assert (len(exports), len(module.graphs)) == (count, 2)
    for mode in (True, False):
        torch.manual_seed(0)
        expected = model.train(mode)(x)
        torch.manual_seed(0)
        assert torch.equal(module.train(mode)(x), expected)


def test_mode_that_is_an_argument_of_a_submodule_costs_two_exports(exports: list[object]) -> None:
    """In each mode the emitted module calls submodules with the arguments that they get there."""
    module = capture(Blocks("given"), torch.randn(3, 5, 8), method="export").module
    train, evaluate = (module.calls_in(graph) for graph in module.graphs)
    assert len(exports) == 2
    assert [call.path for call in train] == [call.path for call in evaluate]
    assert {call.path for call, other in zip(train, evaluate, strict=True) if call.given != other.given} == {
        "blocks.0",
        "blocks.1",
    }

"""Every pass takes a module and plain data, returns the nodes that it touched, and changes nothing when it raises."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from abcfx.passes import PassError, insert_scales, multiply_marks, probe_activations, scale_nodes
from abcfx.passes.scale_insertion import ScaleInsertion

MARK = torch.add  # any function of a tensor and a number


class Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(MARK(self.first(x), 0.5))


def marks(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.target is MARK]


def test_marks_become_powers_of_the_width_ratio() -> None:
    model = Marked()
    module = fx.symbolic_trace(model)
    result = multiply_marks(module, marks(module), 4.0)
    assert result.graph_module is module and result.touched == ("add",) and result.modified
    (node,) = scale_nodes(module.graph)
    assert node.meta["abcfx"].formula == "m^-0.5"
    x = torch.randn(2, 3)
    assert torch.equal(module(x), model.second(model.first(x) * 0.5))
    assert not multiply_marks(module, marks(module), 4.0).modified


def test_a_node_that_is_no_mark_is_refused_and_nothing_changes() -> None:
    module = fx.symbolic_trace(Marked())
    nodes = list(module.graph.nodes)
    code = module.code
    with pytest.raises(PassError, match="multiply_marks: first has the arguments"):
        multiply_marks(module, [*marks(module), nodes[1]], 4.0)
    assert module.code == code and not scale_nodes(module.graph)


def test_a_probe_is_a_new_module_and_the_given_one_stays() -> None:
    module = fx.symbolic_trace(Marked())
    first = next(node for node in module.graph.nodes if node.name == "first")
    insert_scales(module, [ScaleInsertion(first, first.all_input_nodes[0], 2.0)])
    code = module.code
    result = probe_activations(module, module.graph, [first])
    assert result.graph_module is not module and result.touched == ("first",)
    x = torch.randn(2, 3)
    assert torch.equal(result.graph_module(x)[0], module.get_submodule("first")(2 * x))
    assert module.code == code

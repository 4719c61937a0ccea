"""The layer DAG is frozen, has the order in which the model runs, and is read by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import networkx as nx
import pytest
import torch
from torch import nn

from abcfx.capture import capture
from abcfx.dag.building import build_dag
from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.queries import absorbing_parameters, block_of, blocks_around
from abcfx.rules import Layer, Vector


class Small(nn.Module):
    """Two layers with a skip connection, a gain, and a weight that goes through gelu."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.emb, self.hidden = nn.Linear(6, width), nn.Linear(width, width)
        self.gain, self.head = nn.Parameter(torch.ones(width)), nn.Linear(width, 3)
        self.bent = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.emb(x)
        x = x + self.gain * self.hidden(x)
        return self.head(nn.functional.linear(x, nn.functional.gelu(self.bent.weight)))


@pytest.fixture(scope="module")
def dag() -> LayerDag:
    return build_dag(capture(Small(), torch.randn(2, 6)))


def test_nodes_are_read_by_name(dag: LayerDag) -> None:
    (merge,) = dag.successors("emb")[-1:]
    assert dag.kind(merge).name == "merge" and "emb" in dag and "nowhere" not in dag
    assert dag.node("emb").parameter == "emb.weight" and dag.node("emb").path == "emb"
    assert dag.node("gain").parameter == "gain" and isinstance(dag.kind("gain"), Vector)
    assert {"emb", "hidden", "gain"} <= dag.ancestors(merge) and "emb" not in dag.ancestors("emb")
    assert merge in dag.descendants("emb")
    assert dag.outputs <= set(dag.order) and list(dag.order) == [node.name for node in dag.nodes]
    assert all(dag.order.index(above) < dag.order.index(n) for n in dag.order for above in dag.predecessors(n))


def test_nothing_can_be_written_into_it(dag: LayerDag) -> None:
    with pytest.raises(FrozenInstanceError):
        dag.nodes = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        dag.node("emb").path = "other"  # type: ignore[misc]
    with pytest.raises(nx.NetworkXError, match=r"[Ff]rozen"):
        dag.edges.add_edge("emb", "head")


def test_a_copy_for_networkx_is_a_users_own(dag: LayerDag) -> None:
    graph = dag.to_networkx()
    assert list(graph) == list(dag.order) and set(graph.edges) == set(dag.edges.edges)
    assert graph.nodes["emb"]["weight"] and graph.nodes["emb"]["parameter"] == "emb.weight"
    assert {node for node, data in graph.nodes.items() if data["output"]} == dag.outputs
    graph.nodes["emb"]["kind"] = None
    graph.remove_node("head")
    assert isinstance(dag.kind("emb"), Layer) and "head" in dag.to_networkx()


def test_a_parameter_that_must_keep_its_size_takes_no_factor(dag: LayerDag) -> None:
    assert absorbing_parameters(dag, "hidden") == ("hidden.weight", "hidden.bias")
    assert "bent.weight" in dag.pinned_parameters and absorbing_parameters(dag, "bent") == ()
    assert absorbing_parameters(dag, "emb") == ()  # read twice


def test_names_of_numbered_blocks() -> None:
    assert blocks_around("a.0.b.12.w") == [("a", "0", "b.12.w"), ("a.0.b", "12", "w")]
    assert blocks_around("0.weight") == [("", "0", "weight")] and blocks_around("norm1.weight") == []
    assert block_of("a.0.b.12.w", ["a.0.b"]) == ("a.0.b", "12", "w") and block_of("a.0.w", ["b"]) is None

"""`find_c` and `find_c_dag` explain bad input and constraints in conflict."""

from __future__ import annotations

import math
from typing import Any, cast

import networkx as nx
import pytest
from oracles import FULL, MUP, mup_graph

from abcfx.errors import AbcfxError, InfeasibleError, InvalidInputError
from abcfx.lp.names import RowKind
from abcfx.lp.network_rows import NetworkOptimizer
from abcfx.lp.networks import find_c, find_c_dag


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"a": [], "b": []}, "at least one"),
            ({"b": [0.5, 0.5]}, "got 4 and 2"),
            ({"alpha": [1.0] * 3}, "alpha must be 4 numbers, one per layer, or one number for all; got 3"),
            ({"omega": [0.5, math.nan, 0.5, 0.5]}, "layer 1: omega must be a finite number; got nan"),
            ({"u": math.inf}, "u must be a finite number; got inf"),
            ({"u": "1.0"}, "u must be"),
            ({"alpha": None}, "alpha must be a finite number; got None"),
            ({"a": [-0.5, math.nan, 0.0, 0.5]}, "layer 1: a must be a finite number"),
            ({"b": [0.6, 0.5, 0.5, 0.5]}, r"layer 0 is a source .* a \+ b must be 0 .* its b is 0.5"),
            ({"b": [0.5, 0.5, 0.50001, 0.5]}, r"layer 2 is hidden, .* must be 0.5 .* = 0.50001. With this a"),
            ({"b": [0.5, 0.5, 0.5, -0.1]}, r"layer 3 is a readout .* must be at least 0.5"),
            ({"optimizer": "lion"}, "optimizer='lion' is not known.\n  Expected one of: 'adam', 'sgd'"),
        ],
    )
    def test_chains(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidInputError, match=words):
            find_c(**{**MUP, **FULL, **changes})

    def test_case_of_options_does_not_matter(self) -> None:
        assert (
            find_c(**MUP, **FULL, optimizer=cast("NetworkOptimizer", "SGD")).c
            == find_c(**MUP, **FULL, optimizer="sgd").c
        )
        assert (
            find_c_dag(mup_graph(h__merge="SUM"), optimizer=cast("NetworkOptimizer", "Adam")).c
            == find_c_dag(mup_graph(h__merge="sum")).c
        )

    def test_near_misses_are_accepted(self) -> None:
        assert find_c([-0.5, 0.0, 0.5], [0.5, 0.500004, -1e-13], **FULL).c == pytest.approx([0.5, 1.0, 0.5])

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"h__a": None}, "node 'h' has no attribute a; write graph.nodes"),
            ({"h__b": None}, "node 'h' has no attribute b"),
            ({"h__u": None}, "h has no u: a layer with a weight"),
            ({"h__u": math.nan}, "h: u must be a finite number; got nan"),
            ({"e__omega": math.inf}, "e: omega must be a finite number; got inf"),
            ({"h__merge": "max"}, "h: merge='max' is not known.\n  Expected one of: 'min', 'sum'"),
            ({"h__has_weight": "yes"}, "h: has_weight must be True or False; got 'yes'"),
            ({"h__b": 0.6}, r"h is hidden, so a \+ b must be 0.5"),
            ({"h__predecessors": ["e", "z"]}, "node 'h' lists the predecessor 'z', but there is no such node"),
            ({"h__predecessors": ["e", "o"]}, "node 'h' lists the predecessor 'o', but there is no edge from it"),
            ({"h__predecessors": []}, "node 'h' has an edge from 'e', but does not list that predecessor"),
        ],
    )
    def test_graphs(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidInputError, match=words):
            find_c_dag(mup_graph(**changes))

    def test_shapes_of_graphs(self) -> None:
        for graph in (nx.DiGraph(), nx.Graph([(0, 1)]), [("e", "h")]):
            with pytest.raises(InvalidInputError, match=r"networkx.DiGraph with at least one node"):
                find_c_dag(graph)
        graph = mup_graph()
        graph.add_edge("o", "h")
        with pytest.raises(InvalidInputError, match="cycle, h -> o -> h: no layer may feed itself"):
            find_c_dag(graph)
        graph = mup_graph()
        graph.add_edge("h", "typo")
        with pytest.raises(InvalidInputError, match="'typo', known only from the edge h -> typo, has no attribute a"):
            find_c_dag(graph)
        graph = mup_graph()
        graph.edges["e", "h"]["multiplicity"] = 0
        with pytest.raises(InvalidInputError, match="edge e -> h: multiplicity must be a whole number, 1 or more"):
            find_c_dag(graph)
        with pytest.raises(InvalidInputError, match="optimizer='lion' is not known"):
            find_c_dag(mup_graph(), optimizer=cast("NetworkOptimizer", "lion"))

    def test_alignments_of_a_re_solve(self) -> None:
        solution = find_c_dag(mup_graph())
        with pytest.raises(InvalidInputError, match="o has no omega"):
            solution.resolve(1.0, {"h": 0.5}, 1.0)
        with pytest.raises(InvalidInputError, match="alpha is given for 'x', which is not a node"):
            solution.resolve({"h": 1.0, "o": 1.0, "x": 1.0}, 0.5, 1.0)
        with pytest.raises(InvalidInputError, match="alpha must be a dict by node, or one number for all; got 3"):
            solution.resolve([1.0] * 3, 0.5, 1.0)

    def test_every_error_is_ours(self) -> None:
        assert issubclass(InvalidInputError, AbcfxError) and issubclass(InvalidInputError, ValueError)

    def test_nodes_whose_names_look_alike(self) -> None:
        graph = nx.relabel_nodes(mup_graph(), {"e": 1, "h": "1", "o": 2})
        assert find_c_dag(graph).c == {1: 0.5, "1": 1.0, 2: 0.5}


class TestInfeasible:
    def test_feature_learning_against_omega(self) -> None:
        with pytest.raises(InfeasibleError) as error:
            find_c(**MUP, alpha=1.0, omega=[0.5, 0.5, 0.5, 1.2], u=1.0, feature_learning=True)
        lines = str(error.value).split("\n  - ")
        assert lines[0] == "no exponents satisfy these constraints together; relax one of them:"
        assert set(lines[1:]) == {
            f"layer 3: omega: r(layer 3) <= r(layer 2) - 0.2 ({RowKind.OMEGA.sentence})",
            "layer 3: r >= 0",
            "layer 2: r = 0",
        }

    def test_a_source_without_weight_that_grows(self) -> None:
        graph = mup_graph(e__has_weight=False, e__a=-0.3)
        with pytest.raises(InfeasibleError, match=r"e: source: r\(e\) <= -0.3 .*\n.*e: r >= 0"):
            find_c_dag(graph)

    def test_only_branching_finds_out(self) -> None:
        graph = mup_graph()
        graph.add_node("act", a=0.2, has_weight=False)
        graph.remove_edge("h", "o")
        graph.add_edges_from([("h", "act"), ("act", "o")])
        with pytest.raises(InfeasibleError) as error:
            find_c_dag(graph, feature_learning=True)
        assert "no exponents put r(act) exactly at the bound" in str(error.value)
        assert "act: input: r(act) = r(h) + 0.2" in str(error.value)
        assert "h: r >= 0" in str(error.value)

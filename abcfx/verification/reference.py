"""The packaged reference data: exponents of named parametrizations, and optima that another solver found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import networkx as nx

from abcfx.lp.networks import ChainSolution, GraphSolution, find_c, find_c_dag

ALIGNMENTS = ("alpha", "omega", "u")


@cache
def reference() -> Mapping[str, Any]:
    """`named`: rows of parametrization, optimizer, alignment, c; `networks`: chains and graphs with their optima."""
    return dict(json.loads((files("abcfx.data") / "verification.json").read_text(encoding="utf-8")))


def graph_of(row: Mapping[str, Any]) -> nx.DiGraph:
    """A row's graph, as `find_c_dag` takes it."""
    graph = nx.DiGraph()
    for node in row["nodes"]:
        graph.add_node(node["name"], **{key: value for key, value in node.items() if key != "name"})
    for node in row["nodes"]:
        for predecessor, count in Counter(node["predecessors"]).items():
            graph.add_edge(predecessor, node["name"], multiplicity=count)
    return graph


def solve_row(row: Mapping[str, Any]) -> ChainSolution | GraphSolution:
    """The row, solved here. Raises whatever `find_c` and `find_c_dag` raise."""
    options = {"optimizer": row["optimizer"], "feature_learning": row["feature_learning"]}
    if row["kind"] == "dag":
        return find_c_dag(graph_of(row), **options)
    a, b, alpha, omega, u = ([float(value) for value in row[key]] for key in ("a", "b", *ALIGNMENTS))
    return find_c(a, b, alpha, omega, u, **options)

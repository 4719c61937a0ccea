"""The packaged reference data: exponents of named parametrizations, and optima that another solver found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias, TypedDict

import networkx as nx

from abcfx.errors import AbcfxError, InfeasibleError
from abcfx.lp.network_rows import OPTIMIZERS, NetworkOptimizer
from abcfx.lp.networks import ChainSolution, GraphSolution, find_c, find_c_dag
from abcfx.verification.networks import Chain, named_chain

Status: TypeAlias = Literal["optimal", "infeasible", "invalid"]


class NamedRow(TypedDict):
    """A named parametrization under an optimizer and an alignment preset, with c of embedding, hidden and readout."""

    parametrization: str
    optimizer: str
    alignment: str
    c: list[float]


class GraphNode(TypedDict):
    """A node of a reference graph."""

    name: str
    a: float
    b: float
    has_weight: bool
    predecessors: list[str]
    merge: str
    alpha: float
    omega: float
    u: float


class Expected(TypedDict, total=False):
    """The answer to a reference network: `c` where the optimum is unique, else the range of each c."""

    status: Status
    objective: float
    c: list[float]
    c_min: list[float | None]
    c_max: list[float | None]


class NetworkRow(TypedDict, total=False):
    """A network that another solver was asked about: `nodes` for a graph, the lists of numbers for a chain."""

    id: str
    kind: Literal["chain", "dag"]
    optimizer: NetworkOptimizer
    feature_learning: bool
    a: list[float]
    b: list[float]
    alpha: list[float]
    omega: list[float]
    u: list[float]
    nodes: list[GraphNode]
    expected: Expected


class Reference(TypedDict):
    """All reference data."""

    named: list[NamedRow]
    networks: list[NetworkRow]


@cache
def reference() -> Reference:
    """Read the packaged reference data."""
    data: Reference = json.loads((files("abcfx.data") / "verification.json").read_text(encoding="utf-8"))
    return data


def reference_chains(hidden: int = 2) -> list[tuple[str, NetworkOptimizer, Chain]]:
    """Return a name, the optimizer and the chain of each named parametrization that `find_c` solves."""
    found: list[tuple[str, NetworkOptimizer, Chain]] = []
    for row in reference()["named"]:
        name = f"{row['parametrization']} {row['optimizer']} {row['alignment']}"
        chain = named_chain(row["parametrization"], row["alignment"], hidden)
        found += [(name, optimizer, chain) for optimizer in OPTIMIZERS if optimizer == row["optimizer"]]
    return found


def graph_of(row: NetworkRow) -> nx.DiGraph:
    """Make a row's graph, as `find_c_dag` takes it."""
    graph = nx.DiGraph()
    for node in row["nodes"]:
        graph.add_node(node["name"], **{key: value for key, value in node.items() if key != "name"})
    for node in row["nodes"]:
        for predecessor, count in Counter(node["predecessors"]).items():
            graph.add_edge(predecessor, node["name"], multiplicity=count)
    return graph


def solve_row(row: NetworkRow) -> ChainSolution | GraphSolution:
    """Solve a row's network. Raises whatever `find_c` and `find_c_dag` raise."""
    optimizer, feature_learning = row["optimizer"], row["feature_learning"]
    if row["kind"] == "dag":
        return find_c_dag(graph_of(row), optimizer=optimizer, feature_learning=feature_learning)
    a, b, alpha, omega, u = (list(map(float, row[key])) for key in ("a", "b", "alpha", "omega", "u"))
    return find_c(a, b, alpha, omega, u, optimizer=optimizer, feature_learning=feature_learning)


def compare_with_reference(row: NetworkRow) -> tuple[Status, float, bool]:
    """Solve a row's network; return the status, how far the sum of c is off, and whether each c agrees."""
    expected = row["expected"]
    try:
        solution = solve_row(row)
    except AbcfxError as error:
        return "infeasible" if isinstance(error, InfeasibleError) else "invalid", 0.0, True
    if expected["status"] != "optimal":
        return "optimal", 0.0, False
    c: dict[Hashable, float] = dict(enumerate(solution.c)) if isinstance(solution.c, list) else solution.c
    names: list[Hashable] = list(c) if row["kind"] == "chain" else [node["name"] for node in row["nodes"]]
    low = expected["c"] if "c" in expected else expected["c_min"]
    high = expected["c"] if "c" in expected else expected["c_max"]
    agrees = all(
        (least is None or c[name] >= least - 1e-6) and (most is None or c[name] <= most + 1e-6)
        for name, least, most in zip(names, low, high, strict=True)
        if name in c
    )
    return "optimal", abs(solution.objective - expected["objective"]), agrees

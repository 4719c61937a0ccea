"""The packaged reference data of `verify`: exponents known from papers, and solutions that another solver found."""

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
    """One known result: the learning-rate exponents of a named parametrization.

    Attributes:
        parametrization, optimizer: such as "mup" and "adam".
        alignment: preset of alignment exponents (how far updates and inputs line up), such as "full".
        c: exponents of the rates n^-c (n: width) of embedding, hidden layers and readout.
    """

    parametrization: str
    optimizer: str
    alignment: str
    c: list[float]


class GraphNode(TypedDict):
    """A node of a network that was given to another solver.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Attributes:
        name: its name.
        a, b: exponents of multiplier n^-a and init n^-b, with n the width.
        has_weight: whether it is a layer; else it only merges its inputs.
        predecessors: nodes whose output it takes; a name occurs twice where one is used twice.
        merge: how several inputs are joined: "min" if they are added or concatenated, "sum" if they are multiplied.
        alpha, omega, u: alignment exponents of dW x, W dx and dW dx.
    """

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
    """Another solver's answer for a network: learning-rate exponents c (a rate is n^-c, n: width), if there are any.

    Attributes:
        status: "optimal", "infeasible" (no stable learning rates) or "invalid" (multipliers and inits with which
            outputs at init grow or shrink with the width).
        objective: sum of the exponents.
        c: exponent of each layer where the solution is unique.
        c_min, c_max: range of each exponent where it is not; None for no bound.
    """

    status: Status
    objective: float
    c: list[float]
    c_min: list[float | None]
    c_max: list[float | None]


class NetworkRow(TypedDict, total=False):
    """A network that another solver was given, and its answer.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Attributes:
        id: name of the network.
        kind: "chain" (described by the lists `a` to `u`) or "dag" (described by `nodes`).
        optimizer: "adam" or "sgd".
        feature_learning: whether the inputs of the last layers are required to change by order 1.
        a, b: of a chain: exponents of multiplier n^-a and init n^-b of each layer, with n the width.
        alpha, omega, u: of a chain: alignment exponents of dW x, W dx and dW dx of each layer.
        nodes: of a graph.
        expected: the answer.
    """

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
    """The reference data of `verify`: results from papers and from another solver, with which it compares.

    Attributes:
        named: learning-rate exponents of named parametrizations, known from papers.
        networks: networks that another solver was given, with its answers.
    """

    named: list[NamedRow]
    networks: list[NetworkRow]


@cache
def reference() -> Reference:
    """Read the packaged reference data from its JSON file; it is read once."""
    data: Reference = json.loads((files("abcfx.data") / "verification.json").read_text(encoding="utf-8"))
    return data


def reference_chains(hidden: int = 2) -> list[tuple[str, NetworkOptimizer, Chain]]:
    """Return the named parametrizations of the reference data whose optimizer `find_c` knows, as chains of layers.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        hidden: number of hidden layers of each chain.

    Returns:
        (name, optimizer, multiplier, init and alignment exponents of the layers) of each.
    """
    found: list[tuple[str, NetworkOptimizer, Chain]] = []
    for row in reference()["named"]:
        name = f"{row['parametrization']} {row['optimizer']} {row['alignment']}"
        chain = named_chain(row["parametrization"], row["alignment"], hidden)
        found += [(name, optimizer, chain) for optimizer in OPTIMIZERS if optimizer == row["optimizer"]]
    return found


def graph_of(row: NetworkRow) -> nx.DiGraph:
    """Make the graph, as `find_c_dag` takes it, of a network that the packaged reference data describe."""
    graph = nx.DiGraph()
    for node in row["nodes"]:
        graph.add_node(node["name"], **{key: value for key, value in node.items() if key != "name"})
    for node in row["nodes"]:
        for predecessor, count in Counter(node["predecessors"]).items():
            graph.add_edge(predecessor, node["name"], multiplicity=count)
    return graph


def solve_row(row: NetworkRow) -> ChainSolution | GraphSolution:
    """Solve a reference network for its learning-rate exponents, by `find_c` or `find_c_dag`, and return the solution.

    Args:
        row: the network: a chain of layers or a graph.

    Raises:
        AbcfxError: there is no solution, or the network is invalid.
    """
    optimizer, feature_learning = row["optimizer"], row["feature_learning"]
    if row["kind"] == "dag":
        return find_c_dag(graph_of(row), optimizer=optimizer, feature_learning=feature_learning)
    a, b, alpha, omega, u = (list(map(float, row[key])) for key in ("a", "b", "alpha", "omega", "u"))
    return find_c(a, b, alpha, omega, u, optimizer=optimizer, feature_learning=feature_learning)


def compare_with_reference(row: NetworkRow) -> tuple[Status, float, bool]:
    """Solve a reference network for its learning-rate exponents and compare the solution with another solver's.

    Args:
        row: the network and the other solver's answer.

    Returns:
        (our status, difference in the sum of exponents, whether each exponent agrees or lies in its range).
    """
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

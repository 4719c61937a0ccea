"""The exact r of a network, computed from its c by the min of every term; this shares no code with the solver."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import TypeAlias, TypeVar

import networkx as nx

from abcfx.lp.network_rows import NetworkOptimizer
from abcfx.lp.networks import find_c
from abcfx.verification.networks import Chain, chain_graph

Name = TypeVar("Name", bound=Hashable)
Term: TypeAlias = tuple[dict[Hashable, float], float]  # coefficients by variable, constant


def network_levels(graph: nx.DiGraph, optimizer: str, c: Mapping[Name, float]) -> dict[Name, float]:
    """Compute r of every node by exact recursion from the c of every weight."""
    values: dict[Hashable, float] = {("c", node): value for node, value in c.items()}
    for node in nx.topological_sort(graph):
        terms = network_terms(graph, node, optimizer)
        values["r", node] = min(k + sum(factor * values[name] for name, factor in x.items()) for x, k in terms)
    return {node: values["r", node] for node in graph}


def chain_levels(chain: Chain, optimizer: NetworkOptimizer) -> list[float]:
    """Solve a chain with `find_c`, and compute r of every layer by exact recursion from the c that were found."""
    c = find_c(**chain, optimizer=optimizer).c
    return list(network_levels(chain_graph(**chain), optimizer, dict(enumerate(c))).values())


def network_terms(graph: nx.DiGraph, node: Hashable, optimizer: str) -> list[Term]:
    """Return the terms whose min is r of a node; for SGD one for each readout that the node reaches."""
    values = {"has_weight": True, "merge": "min", **graph.nodes[node]}
    times = {tail: graph.edges[tail, node].get("multiplicity", 1) for tail in graph.pred[node]}
    inputs: list[Term] = [({("r", tail): 1.0}, 0.0) for tail in times]
    if values["merge"] == "sum" and times:
        inputs = [({("r", tail): float(count) for tail, count in times.items()}, 0.0)]
    if not values["has_weight"]:
        return [_sum(term, ({}, values["a"])) for term in inputs] or [({}, values["a"])]
    updates: list[Term] = [({("c", node): 1.0}, values["a"])]
    if optimizer == "sgd":
        updates = [_sum(updates[0], ({}, values["a"]), gradient) for gradient in _gradients(graph, node)]
    if not inputs:
        return updates
    return [
        *(_sum(update, ({}, -values["alpha"])) for update in updates),
        *(_sum(update, term, ({}, -values["u"])) for update, term in itertools.product(updates, inputs)),
        *(_sum(term, ({}, values["a"] + values["b"] - values["omega"])) for term in inputs),
    ]


def _gradients(graph: nx.DiGraph, node: Hashable) -> list[Term]:
    """Return the terms whose min is the exponent of the gradient that the readouts send back to a node."""
    terms: list[Term] = []
    for readout in nx.descendants(graph, node):
        values = {"has_weight": True, "b": 0.0, **graph.nodes[readout]}
        if not graph.succ[readout]:
            terms.append(({}, values["a"] + values["b"]))
            if values["has_weight"]:
                terms.append(({("c", readout): 1.0}, 2 * values["a"]))
    return terms or [({}, 0.0)]


def _sum(*terms: Term) -> Term:
    total: dict[Hashable, float] = {}
    for coefficients, _ in terms:
        for name, value in coefficients.items():
            total[name] = total.get(name, 0.0) + value
    return total, sum(constant for _, constant in terms)

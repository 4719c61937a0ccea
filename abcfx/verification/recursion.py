"""Exact r of a network from its c, by the min of every term; shares no code with the solver. Random networks to try."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import networkx as nx

Term: TypeAlias = tuple[dict[Hashable, float], float]  # coefficients by variable, constant


def network_levels(graph: nx.DiGraph, optimizer: str, c: Mapping[Any, float]) -> dict[Any, float]:
    """r of every node by exact recursion from c."""
    values: dict[Hashable, float] = {("c", node): value for node, value in c.items()}
    for node in nx.topological_sort(graph):
        terms = network_terms(graph, node, optimizer)
        values["r", node] = min(k + sum(factor * values[name] for name, factor in x.items()) for x, k in terms)
    return {node: values["r", node] for node in graph}


def network_terms(graph: nx.DiGraph, node: Any, optimizer: str) -> list[Term]:
    """The terms whose min is r of the node; for SGD one for each readout that it reaches, without G levels."""
    values = {"has_weight": True, "merge": "min", **graph.nodes[node]}
    times = {tail: graph.edges[tail, node].get("multiplicity", 1) for tail in graph.pred[node]}
    inputs: list[Term] = [({("r", tail): 1.0}, 0.0) for tail in times]
    if values["merge"] == "sum" and times:
        inputs = [({("r", tail): float(count) for tail, count in times.items()}, 0.0)]
    if not values["has_weight"]:
        return [_add(term, ({}, values["a"])) for term in inputs] or [({}, values["a"])]
    updates: list[Term] = [({("c", node): 1.0}, values["a"])]
    if optimizer == "sgd":
        updates = [_add(updates[0], ({}, values["a"]), gradient) for gradient in _gradients(graph, node)]
    if not inputs:
        return updates
    return [
        *(_add(update, ({}, -values["alpha"])) for update in updates),
        *(_add(update, term, ({}, -values["u"])) for update, term in itertools.product(updates, inputs)),
        *(_add(term, ({}, values["a"] + values["b"] - values["omega"])) for term in inputs),
    ]


def _gradients(graph: nx.DiGraph, node: Any) -> list[Term]:
    terms: list[Term] = []
    for readout in nx.descendants(graph, node):
        values = {"has_weight": True, "b": 0.0, **graph.nodes[readout]}
        if not graph.succ[readout]:
            terms.append(({}, values["a"] + values["b"]))
            if values["has_weight"]:
                terms.append(({("c", readout): 1.0}, 2 * values["a"]))
    return terms or [({}, 0.0)]


def _add(*terms: Term) -> Term:
    total: dict[Hashable, float] = {}
    for coefficients, _ in terms:
        for name, value in coefficients.items():
            total[name] = total.get(name, 0.0) + value
    return total, sum(constant for _, constant in terms)


def random_chain(rng: random.Random, length: int, low: float = 0.0, high: float = 1.0) -> dict[str, list[float]]:
    """Keyword arguments of `find_c`."""
    a = [rng.uniform(-0.5, 0.5) for _ in range(length)]
    b = [0.5 - value for value in a]
    b[0] = -a[0]
    if length > 1:
        b[-1] += rng.choice([0.0, rng.uniform(0, 0.6)])
    draws = {name: [rng.uniform(low, high) for _ in range(length)] for name in ("alpha", "omega", "u")}
    return {"a": a, "b": b, **draws}


def chain_graph(a: Sequence[float], b: Sequence[float], **alignments: Sequence[float]) -> nx.DiGraph:
    """The same chain for `find_c_dag`, with layers 0, 1, ... as nodes."""
    graph = nx.DiGraph()
    for layer in range(len(a)):
        values = {name: alignment[layer] for name, alignment in alignments.items()}
        graph.add_node(layer, a=a[layer], b=b[layer], **values)
        if layer:
            graph.add_edge(layer - 1, layer)
    return graph


def random_graph(rng: random.Random, size: int, *, ties: bool = False, weights: float = 0.6) -> nx.DiGraph:
    """A valid graph of any shape; with `ties` all numbers are multiples of 1/4, so that optima are rarely unique."""

    def draw(low: float, high: float) -> float:
        if ties:
            return rng.randint(round(4 * low), round(4 * high)) / 4
        return round(rng.uniform(low, high), 4)

    graph = nx.DiGraph()
    for i in range(size):
        tails = rng.sample(range(i), min(i, rng.choice([1, 1, 1, 2, 2, 3]))) if rng.random() > 0.07 else []
        has_weight = rng.random() < weights or (not tails and rng.random() < 0.9)
        merge = "sum" if rng.random() < 0.2 else "min"
        alignments = {"alpha": draw(0, 1.25), "omega": draw(0, 1), "u": draw(0, 1.25)}
        graph.add_node(f"n{i}", has_weight=has_weight, merge=merge, **alignments)
        for tail in tails:
            graph.add_edge(f"n{tail}", f"n{i}", multiplicity=2 if rng.random() < 0.05 else 1)
    for node, values in graph.nodes.items():
        values["a"] = draw(-0.5, 0.5) if values["has_weight"] else rng.choice([0.0, 0.0, 0.0, draw(-0.25, 0.25)])
        values["b"] = (0.5 if graph.pred[node] else 0.0) - values["a"] if values["has_weight"] else 0.0
        if values["has_weight"] and graph.pred[node] and not graph.succ[node]:
            values["b"] += draw(0, 0.5)
    return graph


def shuffled(rng: random.Random, graph: nx.DiGraph) -> nx.DiGraph:
    """The same graph, written down in another order."""
    nodes, edges = list(graph.nodes(data=True)), list(graph.edges(data=True))
    rng.shuffle(nodes)
    rng.shuffle(edges)
    other = nx.DiGraph()
    other.add_nodes_from(nodes)
    other.add_edges_from(edges)
    return other

"""Ways to the optimum that share no code with the solver: a closed form for chains, a mixed-integer program of mins."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

Term: TypeAlias = tuple[dict[Hashable, float], float]  # coefficients by variable, constant
BIG = 200.0
MUP = {"a": [-0.5, 0.0, 0.0, 0.5], "b": [0.5, 0.5, 0.5, 0.5]}
FULL = {"alpha": 1.0, "omega": 0.5, "u": 1.0}


def adam_chain(
    a: Sequence[float], b: Sequence[float], alpha: Sequence[float], omega: Sequence[float], u: Sequence[float]
) -> tuple[list[float], list[float]]:
    """c and r in closed form: every r as low as W dx of the layer after it allows, then every c as low as r allows.

    Raising a rate lowers at most one other, by as much: nothing is gained, and the tie-break is for low upstream rates.
    """
    r = [0.0] * len(a)
    for layer in range(len(a) - 1, 0, -1):
        r[layer - 1] = max(0.0, r[layer] + omega[layer] - a[layer] - b[layer])
    c = [r[0] - a[0]]
    for layer in range(1, len(a)):
        c.append(r[layer] - a[layer] + max(alpha[layer], u[layer] - r[layer - 1]))
    return c, r


def least_sum(
    levels: Mapping[Hashable, Sequence[Term]],
    rates: Mapping[Hashable, tuple[float, float, float]],
    lower: Mapping[Hashable, float],
    exact: Collection[Hashable] = (),
    *,
    relaxed: bool = False,
) -> float | None:
    """The least cost of rates (cost, low, high) with every level the exact min of its terms; None if infeasible.

    One binary per term says which one is the min; the program is solved again with the binaries fixed, so that no
    integer tolerance remains. `relaxed` lets levels be below the min, which is exact as long as `exact` is empty.
    """
    columns = {name: j for j, name in enumerate([*rates, *levels])}
    terms = [(level, term) for level, options in levels.items() for term in options]
    width = len(columns) + len(terms)
    matrix, low, high = np.zeros((2 * len(terms) + len(levels), width)), [], []
    for k, (level, (coefficients, constant)) in enumerate(terms):
        for row in (2 * k, 2 * k + 1):
            matrix[row, columns[level]] += 1
            for name, value in coefficients.items():
                matrix[row, columns[name]] -= value
        matrix[2 * k + 1, len(columns) + k] = -BIG  # level >= term where the binary is 1
        low += [-np.inf, constant - BIG]
        high += [constant, np.inf]
    for row, level in enumerate(levels, start=2 * len(terms)):
        matrix[row, [len(columns) + k for k, (owner, _) in enumerate(terms) if owner == level]] = 1
        low.append(1)
        high.append(1)
    if relaxed:
        keep = range(0, 2 * len(terms), 2)
        matrix, low, high = matrix[keep], [low[k] for k in keep], [high[k] for k in keep]
    lows = np.array([low for _, low, _ in rates.values()] + [lower.get(x, -BIG) for x in levels] + [0] * len(terms))
    tops = [lower[level] if level in exact else BIG for level in levels]
    highs = np.array([high for _, _, high in rates.values()] + tops + [1] * len(terms))
    cost = np.array([cost for cost, _, _ in rates.values()] + [0.0] * (width - len(rates)))
    constraints = LinearConstraint(matrix, np.array(low), np.array(high))
    is_integer = (np.arange(width) >= len(columns)) & (not relaxed)
    result = milp(cost, constraints=constraints, bounds=Bounds(lows, highs), integrality=is_integer)
    if result.status not in (0, 2):  # scipy meets a solve error now and then, with presolve
        no_presolve = {"presolve": False}
        bounds = Bounds(lows, highs)
        result = milp(cost, constraints=constraints, bounds=bounds, integrality=is_integer, options=no_presolve)
    assert result.status in (0, 2), result.message
    if result.status == 2:
        return None
    lows[len(columns) :] = highs[len(columns) :] = np.round(result.x[len(columns) :])
    return float(milp(cost, constraints=constraints, bounds=Bounds(lows, highs)).fun)


def network_optimum(
    graph: nx.DiGraph, optimizer: str, feature_learning: bool, *, relaxed: bool = False
) -> float | None:
    """The least sum of c of a graph as `find_c_dag` takes it, all attributes given."""
    before_readouts = {("r", tail) for tail, head in graph.edges if not graph.succ[head]}
    return least_sum(
        {("r", node): _terms(graph, node, optimizer) for node in graph},
        {("c", node): (1.0, -BIG, BIG) for node in graph if graph.nodes[node]["has_weight"]},
        {("r", node): 0.0 for node in graph},
        before_readouts if feature_learning else (),
        relaxed=relaxed,
    )


def network_levels(graph: nx.DiGraph, optimizer: str, c: Mapping[Any, float]) -> dict[Any, float]:
    """r of every node by exact recursion from c."""
    values: dict[Hashable, float] = {("c", node): value for node, value in c.items()}
    for node in nx.topological_sort(graph):
        terms = _terms(graph, node, optimizer)
        values["r", node] = min(k + sum(factor * values[name] for name, factor in x.items()) for x, k in terms)
    return {node: values["r", node] for node in graph}


def _terms(graph: nx.DiGraph, node: Any, optimizer: str) -> list[Term]:
    """The terms whose min is r of the node; for SGD one for each readout that it reaches, without G levels."""
    values = graph.nodes[node]
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
        values = graph.nodes[readout]
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


def mup_graph(**attributes: Any) -> nx.DiGraph:
    """e -> h -> o, with the attributes given as `node__name=value` changed, or removed where the value is None."""
    graph = chain_graph([-0.5, 0.0, 0.5], [0.5, 0.5, 0.5], alpha=[1.0] * 3, omega=[0.5] * 3, u=[1.0] * 3)
    graph = nx.relabel_nodes(graph, {0: "e", 1: "h", 2: "o"})
    for key, value in attributes.items():
        node, name = key.split("__")
        graph.nodes[node][name] = value
        if value is None:
            del graph.nodes[node][name]
    return graph

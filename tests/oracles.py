"""Two ways to the optimum that share no code with the solver, and the networks on which both are compared."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypedDict

import networkx as nx
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from abcfx.verification.networks import chain_graph
from abcfx.verification.recursion import Term, network_terms

BIG = 200.0


class Weights(TypedDict):
    """The exponents a and b of a chain, by layer."""

    a: list[float]
    b: list[float]


class SharedAlignments(TypedDict):
    """One number of each alignment for all layers."""

    alpha: float
    omega: float
    u: float


MUP: Weights = {"a": [-0.5, 0.0, 0.0, 0.5], "b": [0.5, 0.5, 0.5, 0.5]}
FULL: SharedAlignments = {"alpha": 1.0, "omega": 0.5, "u": 1.0}


def adam_chain(
    a: Sequence[float], b: Sequence[float], alpha: Sequence[float], omega: Sequence[float], u: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return c and r in closed form: each r as low as W dx of the next layer allows, then each c as low as r allows.

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
    """Return the least cost of rates (cost, low, high) where each level is the min of its terms; None if infeasible.

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
    """Return the least sum of c of a graph for `find_c_dag` in which all attributes are written out."""
    before_readouts = {("r", tail) for tail, head in graph.edges if not graph.succ[head]}
    return least_sum(
        {("r", node): network_terms(graph, node, optimizer) for node in graph},
        {("c", node): (1.0, -BIG, BIG) for node in graph if graph.nodes[node]["has_weight"]},
        {("r", node): 0.0 for node in graph},
        before_readouts if feature_learning else (),
        relaxed=relaxed,
    )


def mup_graph(**attributes: Any) -> nx.DiGraph:
    """Build the graph e -> h -> o; `node__name=value` changes an attribute, and None removes it."""
    graph = chain_graph([-0.5, 0.0, 0.5], [0.5, 0.5, 0.5], alpha=[1.0] * 3, omega=[0.5] * 3, u=[1.0] * 3)
    graph = nx.relabel_nodes(graph, {0: "e", 1: "h", 2: "o"})
    for key, value in attributes.items():
        node, name = key.split("__")
        graph.nodes[node][name] = value
        if value is None:
            del graph.nodes[node][name]
    return graph

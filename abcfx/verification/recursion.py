"""Computes, without the solver, how fast each layer of a network changes, from given learning-rate exponents.

A layer's output changes by order n^-r during training (n: width). Its r is a minimum of terms, one for each thing that
changes it (own update, change of its input); this code shares nothing with the linear program that solves for rates.
"""

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
    """Compute r of every node of a network (its output changes by order n^-r, n: width) from given learning rates.

    Args:
        graph: the network, as `find_c_dag` takes it.
        optimizer: "adam" or "sgd".
        c: exponent of the learning rate n^-c of each node with a weight.

    Returns:
        Node -> r.
    """
    values: dict[Hashable, float] = {("c", node): value for node, value in c.items()}
    for node in nx.topological_sort(graph):
        terms = network_terms(graph, node, optimizer)
        values["r", node] = min(k + sum(factor * values[name] for name, factor in x.items()) for x, k in terms)
    return {node: values["r", node] for node in graph}


def chain_levels(chain: Chain, optimizer: NetworkOptimizer) -> list[float]:
    """Solve a chain of layers with `find_c`, then compute r of every layer from the learning rates without a solver.

    A layer's output changes by order n^-r during training, with n the width.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        chain: multiplier, init and alignment exponents of each layer.
        optimizer: "adam" or "sgd".

    Returns:
        r of each layer, in order.
    """
    c = find_c(**chain, optimizer=optimizer).c
    return list(network_levels(chain_graph(**chain), optimizer, dict(enumerate(c))).values())


def network_terms(graph: nx.DiGraph, node: Hashable, optimizer: str) -> list[Term]:
    """Return the terms whose minimum is r of a node (its output changes by order n^-r, n: width).

    A term is (coefficient by variable, constant). Variables are ("r", node before), and ("c", node) for the exponent of
    a learning rate n^-c. With SGD there is a set of terms for each readout that sends a gradient back to the node.

    Args:
        graph: the network, as `find_c_dag` takes it.
        node: the node.
        optimizer: "adam" or "sgd".
    """
    values = {"has_weight": True, "merge": "min", **graph.nodes[node]}
    times = {tail: graph.edges[tail, node].get("multiplicity", 1) for tail in graph.pred[node]}
    inputs: list[Term] = [({("r", tail): 1.0}, 0.0) for tail in times]
    if values["merge"] == "sum" and times:
        inputs = [({("r", tail): float(count) for tail, count in times.items()}, 0.0)]
    if not values["has_weight"]:
        return [_add_terms(term, ({}, values["a"])) for term in inputs] or [({}, values["a"])]
    updates: list[Term] = [({("c", node): 1.0}, values["a"])]
    if optimizer == "sgd":
        updates = [_add_terms(updates[0], ({}, values["a"]), gradient) for gradient in _gradients(graph, node)]
    if not inputs:
        return updates
    return [
        *(_add_terms(update, ({}, -values["alpha"])) for update in updates),
        *(_add_terms(update, term, ({}, -values["u"])) for update, term in itertools.product(updates, inputs)),
        *(_add_terms(term, ({}, values["a"] + values["b"] - values["omega"])) for term in inputs),
    ]


def _gradients(graph: nx.DiGraph, node: Hashable) -> list[Term]:
    """Return the terms whose minimum is x, where the gradient that readouts send to a node is of order n^-x (n: width).

    Readouts are the last layers: nodes without successors. A term is (coefficient by variable, constant).

    Args:
        graph: the network, as `find_c_dag` takes it.
        node: the node that gets the gradient.
    """
    terms: list[Term] = []
    for readout in nx.descendants(graph, node):
        values = {"has_weight": True, "b": 0.0, **graph.nodes[readout]}
        if not graph.succ[readout]:
            terms.append(({}, values["a"] + values["b"]))
            if values["has_weight"]:
                terms.append(({("c", readout): 1.0}, 2 * values["a"]))
    return terms or [({}, 0.0)]


def _add_terms(*terms: Term) -> Term:
    """Add up linear terms, each (coefficient by variable, constant), and return the sum in the same way."""
    total: dict[Hashable, float] = {}
    for coefficients, _ in terms:
        for name, value in coefficients.items():
            total[name] = total.get(name, 0.0) + value
    return total, sum(constant for _, constant in terms)

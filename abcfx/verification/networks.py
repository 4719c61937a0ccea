"""The networks that `verify` solves for learning-rate exponents: named parametrizations, random chains and graphs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypedDict

import networkx as nx

from abcfx.theory.parametrizations import alignment_preset, named_exponents

MUP_A, MUP_B = [-0.5, 0.0, 0.5], [0.5, 0.5, 0.5]  # of embedding, hidden, readout
FULL = (1.0, 0.5, 1.0)  # alpha, omega, u of full alignment


class Chain(TypedDict):
    """A chain of layers as keyword arguments of `find_c` and `chain_graph`; each list has a number for each layer.

    Attributes:
        a: exponents of multipliers n^-a, with n the width.
        b: exponents of the initial standard deviations n^-b.
        alpha, omega, u: alignment exponents of dW x, W dx and dW dx: 1/2 for independent factors, 1 for aligned ones.
    """

    a: list[float]
    b: list[float]
    alpha: list[float]
    omega: list[float]
    u: list[float]


def named_chain(parametrization: str, alignment: str, hidden: int) -> Chain:
    """Return the chain of layers of a named parametrization: an embedding, some hidden layers and a readout.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        parametrization: such as "mup"; it gives multiplier and init exponents.
        alignment: preset of alignment exponents, such as "full".
        hidden: number of hidden layers.
    """
    table, preset = named_exponents(parametrization), alignment_preset(alignment)
    roles = ["embedding", *["hidden"] * hidden, "readout"]
    alignments = [preset.of(role, narrowing=0.0) for role in roles]
    return Chain(
        a=[table[role][0] for role in roles],
        b=[table[role][1] for role in roles],
        alpha=[each.alpha for each in alignments],
        omega=[each.omega for each in alignments],
        u=[each.u for each in alignments],
    )


def random_chain(rng: random.Random, length: int, low: float = 0.0, high: float = 1.0) -> Chain:
    """Draw a random chain of layers whose outputs neither grow nor vanish with width at init (the last may vanish).

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        rng: the generator.
        length: number of layers.
        low, high: range of the alignment exponents.
    """
    a = [rng.uniform(-0.5, 0.5) for _ in range(length)]
    b = [0.5 - value for value in a]
    b[0] = -a[0]
    if length > 1:
        b[-1] += rng.choice([0.0, rng.uniform(0, 0.6)])
    alpha, omega, u = ([rng.uniform(low, high) for _ in range(length)] for _ in range(3))
    return Chain(a=a, b=b, alpha=alpha, omega=omega, u=u)


def chain_graph(a: Sequence[float], b: Sequence[float], **alignments: Sequence[float]) -> nx.DiGraph:
    """Write a chain of layers as a graph for `find_c_dag`, with the nodes 0, 1, ...

    Args:
        a, b: exponents of multiplier n^-a and init n^-b (n: width) of each layer.
        alignments: `alpha`, `omega` and `u`, each with a number for each layer: alignment exponents of dW x, W dx and
            dW dx, 1/2 for independent factors and 1 for aligned ones.
    """
    graph = nx.DiGraph()
    for layer in range(len(a)):
        values = {name: alignment[layer] for name, alignment in alignments.items()}
        graph.add_node(layer, a=a[layer], b=b[layer], **values)
        if layer:
            graph.add_edge(layer - 1, layer)
    return graph


def random_graph(rng: random.Random, size: int, *, ties: bool = False, weights: float = 0.6) -> nx.DiGraph:
    """Draw a random graph of layers, additions and products, as `find_c_dag` takes it.

    Its multiplier and init exponents are such that the RMS of outputs at init does not depend on the width; that of the
    last layers may shrink.

    Args:
        rng: the generator.
        size: number of nodes.
        ties: make all exponents multiples of 1/4, so that the best solution is rarely unique.
        weights: share of nodes with a weight.
    """

    def draw(low: float, high: float) -> float:
        """Draw an exponent from a range, as a multiple of 1/4 if `ties`."""
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
    """Return the same graph of layers with its nodes and edges listed in another, random order."""
    nodes, edges = list(graph.nodes(data=True)), list(graph.edges(data=True))
    rng.shuffle(nodes)
    rng.shuffle(edges)
    other = nx.DiGraph()
    other.add_nodes_from(nodes)
    other.add_edges_from(edges)
    return other

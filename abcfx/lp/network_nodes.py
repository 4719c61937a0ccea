"""Layers of a network as `find_c` and `find_c_dag` take them: their exponents, and who feeds whom, checked."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, SupportsFloat, TypeAlias, get_args

import networkx as nx

from abcfx.errors import InvalidInputError
from abcfx.lp.levels import without_gc
from abcfx.support.choices import choose
from abcfx.support.text import shown

Merge: TypeAlias = Literal["min", "sum"]
MERGES: tuple[Merge, ...] = get_args(Merge)
MAX_USES = 2**31 - 1  # of one output by one node; the solver counts in 32 bits
RELATIVE, ABSOLUTE = 1e-5, 1e-8  # tolerances of a + b, as in numpy.isclose


class Node(NamedTuple):
    """A node of the user's network: a layer, or a node without a weight (such as a sum).

    Attributes:
        key: the user's name of it.
        label: the same as text.
        a: exponent of the multiplier m**-a (m, the width ratio).
        b: exponent of the init m**-b.
        has_weight: whether it is a layer.
        merge: how it joins several inputs: "min" adds or concatenates them, "sum" multiplies them.
        inputs: how often it uses each predecessor, by label.
    """

    key: Hashable
    label: str
    a: float
    b: float
    has_weight: bool
    merge: Merge
    inputs: Mapping[str, int]

    @property
    def is_aligned(self) -> bool:
        """Whether the node has alignments (how strongly updates line up with inputs).

        They matter for a layer with a weight whose input changes in training.
        """
        return self.has_weight and bool(self.inputs)


@without_gc
def chain_nodes(a: Sequence[float], b: Sequence[float]) -> list[Node]:
    """Make the nodes of a chain of layers from exponents a (multiplier) and b (init), embedding first.

    Raises:
        InvalidInputError: `a` and `b` are empty or differ in length, or an exponent is not a finite number.
    """
    for name, values in (("a", a), ("b", b)):
        if not hasattr(values, "__getitem__") or getattr(values, "ndim", 1) != 1:
            raise InvalidInputError(
                f"{name}: expected a list with one exponent per layer, embedding first; got {type(values).__name__}.\n"
                f"  To fix: {name}=[...]"
            )
    if len(a) != len(b) or not len(a):
        raise InvalidInputError(
            f"a and b must have one exponent per layer, and at least one; got {len(a)} and {len(b)}. "
            "Write one entry per layer, embedding first, readout last."
        )
    return [
        _node(layer, f"layer {layer}", {"a": a[layer], "b": b[layer]}, {f"layer {layer - 1}": 1} if layer else {})
        for layer in range(len(a))
    ]


@without_gc
def graph_nodes(graph: nx.DiGraph) -> list[Node]:
    """Make the nodes of a network out of a networkx graph with attributes, each after its predecessors.

    Raises:
        InvalidInputError: the graph is empty, undirected or has a cycle, or an attribute is missing or malformed.
    """
    if not (isinstance(graph, nx.DiGraph) and len(graph)):
        raise InvalidInputError(f"graph must be a networkx.DiGraph with at least one node; got {graph!r}")
    try:
        order = list(nx.topological_sort(graph))
    except nx.NetworkXUnfeasible:
        cycle = [str(edge[0]) for edge in nx.find_cycle(graph)]
        path = " -> ".join([*cycle, cycle[0]])
        raise InvalidInputError(f"the graph has a cycle, {path}: no layer may feed itself; remove an edge") from None
    labels = {key: str(key) for key in order}
    if len(set(labels.values())) < len(order):
        labels = {key: repr(key) for key in order}
    nodes = []
    for key in order:
        _check_attributes(graph, key)
        inputs = {labels[tail]: _multiplicity(graph, tail, key) for tail in graph.predecessors(key)}
        nodes.append(_node(key, labels[key], graph.nodes[key], inputs))
    return nodes


def find_successors(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Return, by label, the nodes of the network that read the output of each node."""
    successors: dict[str, list[str]] = {node.label: [] for node in nodes}
    for node in nodes:
        for label in node.inputs:
            successors[label].append(node.label)
    return successors


def measure_distances(nodes: Sequence[Node], successors: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return for each node, by label, the number of weights on the longest path from it to an output.

    `successors` has, by label, the nodes that read each node.
    """
    has_weight = {node.label: node.has_weight for node in nodes}
    distances: dict[str, int] = {}
    for node in reversed(nodes):
        ways = [distances[other] + has_weight[other] for other in successors[node.label]]
        distances[node.label] = max(ways, default=0)
    return distances


def check_stable_at_init(node: Node, is_readout: bool) -> None:
    """Raise an error unless a layer's output is O(1) at initialisation; that of a readout may be smaller.

    Its multiplier is m**-a, its init m**-b (m, the width ratio).

    Raises:
        InvalidInputError: says what a + b has to be.
    """
    if not node.has_weight:
        return
    total, target = node.a + node.b, 0.5 if node.inputs else 0.0
    at_least = is_readout and bool(node.inputs)
    if abs(total - target) <= ABSOLUTE + RELATIVE * target or (at_least and total > target):
        return
    role = "a source (no predecessor)" if not node.inputs else "a readout (no successor)" if at_least else "hidden"
    raise InvalidInputError(
        f"{node.label} is {role}, so a + b must be {'at least ' if at_least else ''}{target:g} for an output of size "
        f"O(1) at initialisation; got {node.a:g} + {node.b:g} = {total:g}. With this a, its b is {target - node.a:g}."
    )


def finite_number(value: object, name: str, label: str) -> float:
    """Return a number that the user gave for a layer as a float.

    Args:
        value: the number.
        name: what it is, for the message.
        label: the layer that it belongs to, for the message.

    Raises:
        InvalidInputError: it is no finite number.
    """
    number = math.nan
    if isinstance(value, (float, int, SupportsFloat)):  # the protocol last, since it takes long to check
        with suppress(
            TypeError, OverflowError, ValueError, RuntimeError
        ):  # an array of several numbers; an int beyond 1e308
            number = float(value)
    if not math.isfinite(number):
        raise InvalidInputError(f"{label}: {name} must be a finite number; got {shown(value)}")
    return number


def _node(key: Hashable, label: str, attributes: Mapping[str, object], inputs: Mapping[str, int]) -> Node:
    """Make a node of the network that `find_c_dag` solves from the attributes of the user's networkx node.

    Args:
        key: the user's name of it.
        label: the same as text.
        attributes: `a` and `b` (exponents of the layer's multiplier n^-a and init std n^-b), `has_weight`, and `merge`
            ("min" if its inputs are added or concatenated, "sum" if they are multiplied).
        inputs: how often it uses each predecessor, by label.

    Raises:
        InvalidInputError: an attribute is malformed.
    """
    has_weight = attributes.get("has_weight", True)
    if not isinstance(has_weight, bool):
        raise InvalidInputError(f"{label}: has_weight must be True or False; got {has_weight!r}")
    merge = attributes.get("merge", "min")
    chosen: Merge = "min" if merge == "min" else choose(f"{label}: merge", merge, MERGES)
    a, b = (finite_number(attributes.get(name, 0.0), name, label) for name in ("a", "b"))
    return Node(key, label, a, b, bool(has_weight), chosen, inputs)


def _check_attributes(graph: nx.DiGraph, key: Hashable) -> None:
    """Check that a node has `a`, and `b` if it has a weight, and that a list of `predecessors` fits the edges.

    Raises:
        InvalidInputError: names what is missing or does not fit.
    """
    values = graph.nodes[key]
    for name in ("a", "b") if values.get("has_weight", True) is not False else ("a",):
        if name not in values:
            edges = [f"{tail} -> {head}" for tail, head in [*graph.in_edges(key), *graph.out_edges(key)]]
            place = f", known only from the edge {edges[0]}," if edges and not values else ""
            fix = f"graph.nodes[{key!r}][{name!r}] = ..."
            raise InvalidInputError(f"node {key!r}{place} has no attribute {name}; write {fix}")
    if "predecessors" in values:
        edges = list(graph.predecessors(key))
        for listed in values["predecessors"]:
            if listed not in edges:
                lack = "edge from it" if listed in graph else "such node"
                raise InvalidInputError(f"node {key!r} lists the predecessor {listed!r}, but there is no {lack}")
        for tail in edges:
            if tail not in values["predecessors"]:
                raise InvalidInputError(f"node {key!r} has an edge from {tail!r}, but does not list that predecessor")


def _multiplicity(graph: nx.DiGraph, tail: Hashable, head: Hashable) -> int:
    """Return how often the node `head` uses the output of the node `tail`.

    Raises:
        InvalidInputError: the user gave something else than a whole number.
    """
    data = graph.get_edge_data(tail, head)
    counts = [edge.get("multiplicity", 1) for edge in (data.values() if graph.is_multigraph() else [data])]
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_USES:
            raise InvalidInputError(
                f"edge {tail} -> {head}: multiplicity must be a whole number, 1 or more; got {count!r:.60}"
            )
    return sum(counts)

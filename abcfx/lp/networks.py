"""Owns the fronts `find_c` (a chain) and `find_c_dag` (a networkx graph), which write rows for the solver."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import networkx as nx
import numpy as np

from abcfx.errors import InvalidInputError
from abcfx.lp.levels import without_gc
from abcfx.lp.names import RowKind, RowLabel, RowName
from abcfx.lp.program import LpSolution, Solver
from abcfx.lp.rows import Alignment, Rate, Row
from abcfx.support.choices import choose

NetworkOptimizer: TypeAlias = Literal["adam", "sgd"]
Merge: TypeAlias = Literal["min", "sum"]
OPTIMIZERS: tuple[NetworkOptimizer, ...] = get_args(NetworkOptimizer)
MERGES: tuple[Merge, ...] = get_args(Merge)
RELATIVE, ABSOLUTE = 1e-5, 1e-8  # of a + b, as in numpy.isclose

ALPHA, U, OMEGA = RowLabel(RowKind.ALPHA), RowLabel(RowKind.U), RowLabel(RowKind.OMEGA)

Alignments: TypeAlias = float | Sequence[float] | Mapping[Hashable, float]


@dataclass(frozen=True)
class Solution:
    """The exponents of a network; `c, r = solution` unpacks.

    Attributes:
        c: learning-rate exponents, lr = lr0 * m**-c: a list in layer order, or a dict by node (nodes with a weight).
        r: exponents of the change of each output since initialisation, by exact recursion from `c`; list or dict.
        objective: the sum of `c`, the least at which everything is stable.
        binding: by layer, the names of the constraints that hold its `c` up.
        shadow_prices: d(objective) / d(right-hand side) by name of constraint, where it is not zero.
    """

    c: Any
    r: Any
    objective: float
    binding: dict[Hashable, tuple[Hashable, ...]]
    shadow_prices: dict[Hashable, float]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.c, self.r))


class _Node(NamedTuple):
    """A layer; `key` is the user's name, `label` ours; `inputs` says how often each predecessor is used, by label."""

    key: Hashable
    label: str
    a: float
    b: float
    has_weight: bool
    merge: Merge
    inputs: Mapping[str, int]


def find_c(
    a: Sequence[float],
    b: Sequence[float],
    alpha: float | Sequence[float],
    omega: float | Sequence[float],
    u: float | Sequence[float],
    *,
    optimizer: NetworkOptimizer = "adam",
    feature_learning: bool = False,
) -> Solution:
    """The least stable learning-rate exponents of a chain of layers, embedding first, readout last.

    Args:
        a, b: exponents of the multiplier m**-a and of the initial standard deviation m**-b. Their sum is 0 for the
            first layer, 1/2 for hidden layers and at least 1/2 for the last.
        alpha, omega, u: alignment exponents of dW x, W dx and dW dx; one number stands for every layer.
        optimizer: "adam" or "sgd".
        feature_learning: the input of the last layer must change by O(1): r = 0 there.

    >>> c, r = find_c([-0.5, 0.0, 0.5], [0.5, 0.5, 0.5], alpha=1.0, omega=0.5, u=1.0)
    >>> c
    [0.5, 1.0, 0.5]
    """
    return chain_solver(a, b, alpha, omega, u, optimizer=optimizer, feature_learning=feature_learning).solve()


def find_c_dag(graph: nx.DiGraph, *, optimizer: NetworkOptimizer = "adam", feature_learning: bool = False) -> Solution:
    """The least stable learning-rate exponents of a network given as a directed acyclic graph of layers.

    Node attributes: `a`; for layers with a weight also `b`, `alpha`, `omega`, `u`; `has_weight` (default True);
    `merge` of several inputs (default "min": added or concatenated; "sum": multiplied, the r of the factors add up).
    With a weight, a + b is 0 without predecessor (source), at least 1/2 without successor (readout), else 1/2. Without,
    a node adds its `a` to r. An input used twice (x * x) is an edge with `multiplicity=2`, or two of a MultiDiGraph.

    Raises:
        InvalidInputError: an attribute is missing, not finite or breaks these rules, or the graph has a cycle.
        InfeasibleError: no exponents satisfy the constraints; the message names those in conflict.
    """
    return dag_solver(graph, optimizer=optimizer, feature_learning=feature_learning).solve()


@without_gc
def chain_solver(
    a: Sequence[float],
    b: Sequence[float],
    alpha: float | Sequence[float],
    omega: float | Sequence[float],
    u: float | Sequence[float],
    *,
    optimizer: NetworkOptimizer = "adam",
    feature_learning: bool = False,
) -> GraphSolver:
    """The solver behind `find_c`, to be kept for re-solves at other alignments."""
    if len(a) != len(b) or not len(a):
        raise InvalidInputError(
            f"a and b must have one exponent per layer, and at least one; got {len(a)} and {len(b)}. "
            "Write one entry per layer, embedding first, readout last."
        )
    nodes = [
        _node(layer, f"layer {layer}", {"a": a[layer], "b": b[layer]}, {f"layer {layer - 1}": 1} if layer else {})
        for layer in range(len(a))
    ]
    return GraphSolver(nodes, (alpha, omega, u), optimizer, feature_learning, is_chain=True)


@without_gc
def dag_solver(
    graph: nx.DiGraph, *, optimizer: NetworkOptimizer = "adam", feature_learning: bool = False
) -> GraphSolver:
    """The solver behind `find_c_dag`, to be kept for re-solves at other alignments."""
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
    alpha, omega, u = (dict(nx.get_node_attributes(graph, name)) for name in ("alpha", "omega", "u"))
    return GraphSolver(nodes, (alpha, omega, u), optimizer, feature_learning, is_chain=False)


class GraphSolver:
    """The LP of one network, kept for re-solves; made by `chain_solver` and `dag_solver`."""

    def __init__(
        self,
        nodes: list[_Node],
        alignments: tuple[Alignments, Alignments, Alignments],
        optimizer: NetworkOptimizer,
        feature_learning: bool,
        is_chain: bool,
    ) -> None:
        optimizer = choose("optimizer", optimizer, OPTIMIZERS)
        self._nodes = nodes  # in topological order
        self._is_chain = is_chain
        self._aligned = [(node.label, i) for i, node in enumerate(nodes) if _is_aligned(node)]
        successors: dict[str, list[str]] = {node.label: [] for node in nodes}
        for node in nodes:
            for label in node.inputs:
                successors[label].append(node.label)
        for node in nodes:
            _check_stable_at_initialisation(node, is_readout=not successors[node.label])
        distances = _distances(nodes, successors)
        before_readouts = [("r", label) for node in nodes if not successors[node.label] for label in node.inputs]
        self._lp = Solver(
            _write_rows(nodes, successors, optimizer),
            rates={("c", node.label): Rate(distance=distances[node.label]) for node in nodes if node.has_weight},
            lower={("r", node.label): 0.0 for node in nodes},
            alignment=self._alignment(*alignments),
            exact=before_readouts if feature_learning else (),
        )

    def solve(self) -> Solution:
        """The optimum at the alignments of the last call, at first those that the solver was made with."""
        return self._solution(self._lp.solve())

    def resolve(self, alpha: Alignments, omega: Alignments, u: Alignments) -> Solution:
        """The optimum at other alignments: lists in layer order (chain), dicts by node (graph), or one number for all.

        Only row bounds change and HiGHS starts near the optimum; the answer is that of a cold solve.
        """
        return self._solution(self._lp.resolve(self._alignment(alpha, omega, u)))

    def _solution(self, lp: LpSolution) -> Solution:
        c = {node.key: lp.c["c", node.label] for node in self._nodes if node.has_weight}
        r = {node.key: lp.levels["r", node.label] for node in self._nodes}
        return Solution(
            c=list(c.values()) if self._is_chain else c,
            r=list(r.values()) if self._is_chain else r,
            objective=lp.objective,
            binding={node.key: lp.binding["c", node.label] for node in self._nodes if node.has_weight},
            shadow_prices=lp.shadow_prices,
        )

    def _alignment(self, alpha: Alignments, omega: Alignments, u: Alignments) -> Alignment:
        alphas, omegas, us = (self._by_node(*x) for x in ((alpha, "alpha"), (omega, "omega"), (u, "u")))
        return {label: (alphas[i], omegas[i], us[i]) for label, i in self._aligned}

    def _by_node(self, given: Any, name: str) -> list[float]:
        """One number per node; 0 where a node has no use for it and none is given."""
        count = len(self._nodes)
        if isinstance(given, Mapping):
            keys = {node.key for node in self._nodes}
            for node in self._nodes:
                if _is_aligned(node) and node.key not in given:
                    raise InvalidInputError(f"{node.label} has no {name}: a layer with a weight and an input needs one")
            for key in given:
                if key not in keys:
                    raise InvalidInputError(f"{name} is given for {key!r}, which is not a node of the graph")
            values = [given.get(node.key, 0.0) for node in self._nodes]
        elif not hasattr(given, "__len__"):
            values = [given] * count
        elif self._is_chain and len(given) == count:
            values = list(given)
        else:
            expected = f"{count} numbers, one per layer" if self._is_chain else "a dict by node"
            raise InvalidInputError(f"{name} must be {expected}, or one number for all; got {len(given)} numbers")
        array = np.asarray(values)
        if array.dtype.kind in "fiu" and np.isfinite(array).all():
            return list(map(float, values))
        return [_number(value, name, node.label) for value, node in zip(values, self._nodes, strict=True)]


def _is_aligned(node: _Node) -> bool:
    return node.has_weight and bool(node.inputs)


def _node(key: Hashable, label: str, attributes: Mapping[str, Any], inputs: Mapping[str, int]) -> _Node:
    has_weight, merge = attributes.get("has_weight", True), attributes.get("merge", "min")
    if has_weight not in (True, False):
        raise InvalidInputError(f"{label}: has_weight must be True or False; got {has_weight!r}")
    if merge not in MERGES:
        merge = choose(f"{label}: merge", merge, MERGES)
    a, b = (_number(attributes.get(name, 0.0), name, label) for name in ("a", "b"))
    return _Node(key, label, a, b, bool(has_weight), merge, inputs)


def _number(value: Any, name: str, label: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInputError(f"{label}: {name} must be a finite number; got {value!r}")
    return number


def _check_attributes(graph: nx.DiGraph, key: Hashable) -> None:
    """`a` is there, and `b` if there is a weight; an attribute `predecessors`, if there is one, says what edges say."""
    values = graph.nodes[key]
    for name in ("a", "b") if values.get("has_weight", True) else ("a",):
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
    """How often `head` uses the output of `tail`."""
    data = graph.get_edge_data(tail, head)
    count = sum(edge.get("multiplicity", 1) for edge in (data.values() if graph.is_multigraph() else [data]))
    if not (isinstance(count, int) and count >= 1):
        raise InvalidInputError(f"edge {tail} -> {head}: multiplicity must be a whole number, 1 or more; got {count!r}")
    return count


def _check_stable_at_initialisation(node: _Node, is_readout: bool) -> None:
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


def _distances(nodes: list[_Node], successors: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The longest way to an output, in layers with a weight: strictly larger upstream."""
    has_weight = {node.label: node.has_weight for node in nodes}
    distances: dict[str, int] = {}
    for node in reversed(nodes):
        ways = [distances[other] + has_weight[other] for other in successors[node.label]]
        distances[node.label] = max(ways, default=0)
    return distances


def _write_rows(nodes: list[_Node], successors: Mapping[str, Sequence[str]], optimizer: NetworkOptimizer) -> list[Row]:
    """The change of an output is the min of dW x (alpha), dW dx (u) and W dx (omega): theory.md, 1.2.

    Entries of an update are m**-(c + q), with q = 0 for Adam and the gradient exponent a + G for SGD.
    """
    rows: list[Row] = []
    gradients = _write_gradient_rows(rows, nodes, successors) if optimizer == "sgd" else {}
    r = {node.label: ("r", node.label) for node in nodes}
    for _, label, a, b, has_weight, merge, inputs in nodes:
        out, update = r[label], (("c", label), *gradients.get(label, ()))
        size = 2 * a if optimizer == "sgd" else a
        if merge == "sum":
            repeated = tuple([r[other] for other, count in inputs.items() for _ in range(count)])
            incoming = [("", repeated)] if inputs else []
        else:
            incoming = [(other if len(inputs) > 1 else "", (r[other],)) for other in inputs]
        if has_weight and inputs:
            rows.append(Row(RowName(label, ALPHA), out, update, size, "alpha", label))
            for other, levels in incoming:
                u, omega = (RowLabel(RowKind.U, other), RowLabel(RowKind.OMEGA, other)) if other else (U, OMEGA)
                rows.append(Row(RowName(label, u), out, update + levels, size, "u", label))
                rows.append(Row(RowName(label, omega), out, levels, a + b, "omega", label))
        elif has_weight:
            rows.append(Row(RowName(label, RowLabel(RowKind.UPDATE)), out, update, size))
        elif inputs:
            names = [RowName(label, RowLabel(RowKind.INPUT, other)) for other, _ in incoming]
            rows += [Row(name, out, levels, a) for name, (_, levels) in zip(names, incoming, strict=True)]
        else:
            rows.append(Row(RowName(label, RowLabel(RowKind.SOURCE)), out, (), a))
    return rows


def _write_gradient_rows(
    rows: list[Row], nodes: list[_Node], successors: Mapping[str, Sequence[str]]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Adds the rows of G, the min over the readouts that a node reaches of (a + b, 2a + c); returns G by node.

    A readout's own G is 0 (no entry). Nodes that reach the same readouts by the same way share one level.
    """
    passed_back: dict[str, tuple[str, str]] = {}
    gradients: dict[str, tuple[tuple[str, str], ...]] = {}
    for _, label, a, b, has_weight, _, inputs in reversed(nodes):
        level = ("G", label)
        arriving = list(dict.fromkeys(passed_back[other] for other in successors[label]))
        passed_back[label] = arriving[0] if len(arriving) == 1 else level
        if arriving:
            gradients[label] = (passed_back[label],)
        if len(arriving) > 1:
            names = [RowName(label, RowLabel(RowKind.GRADIENT, other[1])) for other in arriving]
            rows += [Row(name, level, (other,), 0.0) for name, other in zip(names, arriving, strict=True)]
        elif not arriving and inputs:
            rows.append(Row(RowName(label, RowLabel(RowKind.INITIAL_GRADIENT)), level, (), a + b))
            if has_weight:
                rows.append(Row(RowName(label, RowLabel(RowKind.UPDATED_GRADIENT)), level, (("c", label),), 2 * a))
    return gradients

"""Owns the fronts `find_c` (a chain) and `find_c_dag` (a networkx graph): one code path that writes rows for the solver."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import networkx as nx

from abcfx.errors import InvalidInputError
from abcfx.solver import LpSolution, Rate, Row, Solver

OPTIMIZERS = ("adam", "sgd")
MERGES = ("min", "sum")
RELATIVE, ABSOLUTE = 1e-5, 1e-8  # of a + b, as in numpy.isclose

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
    binding: dict[Hashable, tuple[str, ...]]
    shadow_prices: dict[str, float]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.c, self.r))


class _Node(NamedTuple):
    """A layer; `inputs` says how often each predecessor is used."""

    key: Hashable
    label: str
    a: float
    b: float
    has_weight: bool
    merge: str
    inputs: Mapping[Hashable, int]


def find_c(
    a: Sequence[float],
    b: Sequence[float],
    alpha: float | Sequence[float],
    omega: float | Sequence[float],
    u: float | Sequence[float],
    *,
    optimizer: str = "adam",
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


def find_c_dag(graph: nx.DiGraph, *, optimizer: str = "adam", feature_learning: bool = False) -> Solution:
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


def chain_solver(
    a: Sequence[float],
    b: Sequence[float],
    alpha: float | Sequence[float],
    omega: float | Sequence[float],
    u: float | Sequence[float],
    *,
    optimizer: str = "adam",
    feature_learning: bool = False,
) -> GraphSolver:
    """The solver behind `find_c`, to be kept for re-solves at other alignments."""
    if len(a) != len(b) or not len(a):
        raise InvalidInputError(
            f"a and b must have one exponent per layer, and at least one; got {len(a)} and {len(b)}. "
            "Write one entry per layer, embedding first, readout last."
        )
    nodes = [
        _node(layer, f"layer {layer}", {"a": a[layer], "b": b[layer]}, {layer - 1: 1} if layer else {})
        for layer in range(len(a))
    ]
    return GraphSolver(nodes, (alpha, omega, u), optimizer, feature_learning, is_chain=True)


def dag_solver(graph: nx.DiGraph, *, optimizer: str = "adam", feature_learning: bool = False) -> GraphSolver:
    """The solver behind `find_c_dag`, to be kept for re-solves at other alignments."""
    if not (isinstance(graph, nx.DiGraph) and len(graph)):
        raise InvalidInputError(f"graph must be a networkx.DiGraph with at least one node; got {graph!r}")
    try:
        order = list(nx.topological_sort(graph))
    except nx.NetworkXUnfeasible:
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        path = " -> ".join(str(key) for key in [*cycle, cycle[0]])
        raise InvalidInputError(f"the graph has a cycle: {path}. A layer cannot feed itself; remove one edge.") from None
    labels = {key: str(key) for key in order}
    if len(set(labels.values())) < len(order):
        labels = {key: repr(key) for key in order}
    nodes = [_node(key, labels[key], graph.nodes[key], _inputs(graph, key)) for key in order]
    aligned = [{key: values[name] for key, values in graph.nodes(data=True) if name in values} for name in ("alpha", "omega", "u")]
    return GraphSolver(nodes, (aligned[0], aligned[1], aligned[2]), optimizer, feature_learning, is_chain=False)


class GraphSolver:
    """The LP of one network, kept for re-solves; made by `chain_solver` and `dag_solver`."""

    def __init__(
        self,
        nodes: list[_Node],
        alignments: tuple[Alignments, Alignments, Alignments],
        optimizer: str,
        feature_learning: bool,
        is_chain: bool,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise InvalidInputError(f"optimizer must be one of {', '.join(map(repr, OPTIMIZERS))}; got {optimizer!r}")
        self._nodes = nodes  # in topological order
        self._is_chain = is_chain
        successors: dict[Hashable, list[Hashable]] = {node.key: [] for node in nodes}
        for node in nodes:
            for key in node.inputs:
                successors[key].append(node.key)
        for node in nodes:
            _check_stable_at_initialisation(node, is_readout=not successors[node.key])
        distances = _distances(nodes, successors)
        before_readouts = [("r", key) for node in nodes if not successors[node.key] for key in node.inputs]
        self._lp = Solver(
            _write_rows(nodes, successors, optimizer),
            rates={("c", node.key): Rate(distance=distances[node.key]) for node in nodes if node.has_weight},
            lower={("r", node.key): 0.0 for node in nodes},
            alignment=self._alignment(*alignments),
            exact=dict.fromkeys(before_readouts) if feature_learning else (),
        )

    def solve(self) -> Solution:
        """The optimum at the alignments of the last call, at first those that the solver was made with."""
        return self._solution(self._lp.solve())

    def resolve(self, alpha: Alignments, omega: Alignments, u: Alignments) -> Solution:
        """The optimum at other alignments: lists in layer order (chain), dicts by node (graph), or one number for all.

        Only row bounds change and HiGHS starts from the last optimum; the answer is that of a cold solve.
        """
        return self._solution(self._lp.resolve(self._alignment(alpha, omega, u)))

    def _solution(self, lp: LpSolution) -> Solution:
        c = {node.key: lp.c["c", node.key] for node in self._nodes if node.has_weight}
        r = {node.key: lp.levels["r", node.key] for node in self._nodes}
        return Solution(
            c=list(c.values()) if self._is_chain else c,
            r=list(r.values()) if self._is_chain else r,
            objective=lp.objective,
            binding={key: lp.binding["c", key] for key in c},
            shadow_prices=lp.shadow_prices,
        )

    def _alignment(self, alpha: Alignments, omega: Alignments, u: Alignments) -> dict[Hashable, tuple[float, float, float]]:
        alphas, omegas, us = self._by_node(alpha, "alpha"), self._by_node(omega, "omega"), self._by_node(u, "u")
        return {node.key: (alphas[node.key], omegas[node.key], us[node.key]) for node in self._nodes if _is_aligned(node)}

    def _by_node(self, values: Alignments, name: str) -> dict[Hashable, float]:
        if isinstance(values, Mapping):
            given: Mapping[Hashable, Any] = values
        elif isinstance(values, Sequence) or hasattr(values, "__len__"):
            if not self._is_chain or len(values) != len(self._nodes):
                expected = f"{len(self._nodes)} numbers, one per layer" if self._is_chain else "a dict by node, or one number"
                raise InvalidInputError(f"{name} must be {expected}; got {len(values)} numbers")
            given = dict(enumerate(values))
        else:
            given = {node.key: values for node in self._nodes}
        numbers = {}
        for node in self._nodes:
            if node.key in given:
                numbers[node.key] = _number(given[node.key], name, node.label)
            elif _is_aligned(node):
                raise InvalidInputError(f"{node.label} has no {name}: a layer with a weight and an input needs alpha, omega and u")
        if len(numbers) < len(given):
            unknown = next(key for key in given if key not in numbers)
            raise InvalidInputError(f"{name} names {unknown!r}, which is not a node of the graph")
        return numbers


def _is_aligned(node: _Node) -> bool:
    return node.has_weight and bool(node.inputs)


def _node(key: Hashable, label: str, attributes: Mapping[str, Any], inputs: Mapping[Hashable, int]) -> _Node:
    has_weight = attributes.get("has_weight", True)
    merge = attributes.get("merge", "min")
    if has_weight not in (True, False):
        raise InvalidInputError(f"{label}: has_weight must be True or False; got {has_weight!r}")
    if merge not in MERGES:
        raise InvalidInputError(
            f"{label}: merge must be 'min' (inputs are added or concatenated) or 'sum' (multiplied); got {merge!r}"
        )
    for name in ("a", "b") if has_weight else ("a",):
        if name not in attributes:
            place = f" (named by the edge {next(iter(inputs))!s} -> {label})" if inputs else ""
            raise InvalidInputError(f"{label}{place} has no attribute {name}: write graph.nodes[{key!r}][{name!r}] = ...")
    a = _number(attributes["a"], "a", label)
    b = _number(attributes.get("b", 0.0), "b", label)
    return _Node(key, label, a, b, bool(has_weight), merge, inputs)


def _number(value: Any, name: str, label: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInputError(f"{label}: {name} must be a finite number; got {value!r}")
    return number


def _inputs(graph: nx.DiGraph, key: Hashable) -> dict[Hashable, int]:
    """How often each predecessor is used; checked against a `predecessors` attribute where there is one."""
    inputs = {}
    for predecessor, data in graph.pred[key].items():
        edges = data.values() if graph.is_multigraph() else [data]
        inputs[predecessor] = sum(edge.get("multiplicity", 1) for edge in edges)
        if not isinstance(inputs[predecessor], int) or inputs[predecessor] < 1:
            raise InvalidInputError(f"edge {predecessor} -> {key}: multiplicity must be a whole number from 1 up")
    listed = graph.nodes[key].get("predecessors")
    if listed is not None and Counter(listed) != Counter(inputs):
        unknown = [name for name in listed if name not in graph]
        what = f"{unknown[0]!r} is not in the graph" if unknown else f"its edges come from {list(Counter(inputs).elements())}"
        raise InvalidInputError(f"{key}: the attribute predecessors says {list(listed)}, but {what}; drop one of the two")
    return inputs


def _check_stable_at_initialisation(node: _Node, is_readout: bool) -> None:
    if not node.has_weight:
        return
    total = node.a + node.b
    target, role = (0.0, "a source") if not node.inputs else (0.5, "a readout" if is_readout else "a hidden layer")
    at_least = bool(node.inputs) and is_readout
    tolerance = ABSOLUTE + RELATIVE * target
    if abs(total - target) <= tolerance or (at_least and total >= target):
        return
    raise InvalidInputError(
        f"{node.label} is {role}, so a + b must be {'at least ' if at_least else ''}{target:g} for outputs of size O(1) at "
        f"initialisation; got a + b = {node.a:g} + {node.b:g} = {total:g}. Set its b to {target - node.a:g}."
    )


def _distances(nodes: list[_Node], successors: Mapping[Hashable, Sequence[Hashable]]) -> dict[Hashable, int]:
    """Longest way to an output, in layers with a weight: strictly larger upstream."""
    has_weight = {node.key: node.has_weight for node in nodes}
    distances: dict[Hashable, int] = {}
    for node in reversed(nodes):
        distances[node.key] = max((distances[key] + has_weight[key] for key in successors[node.key]), default=0)
    return distances


def _write_rows(nodes: list[_Node], successors: Mapping[Hashable, Sequence[Hashable]], optimizer: str) -> list[Row]:
    """theory.md, 1.2: the change of each output is the min of dW x, dW dx and W dx."""
    rows: list[Row] = []
    gradients = _write_gradient_rows(rows, nodes, successors) if optimizer == "sgd" else {}
    labels = {node.key: node.label for node in nodes}
    for key, label, a, b, has_weight, merge, inputs in nodes:
        out = ("r", key)
        # raw update entries are m^-(c + q): q = 0 for Adam, the gradient exponent g = a + G for SGD
        update = (("c", key), *gradients.get(key, ()))
        size = 2 * a if optimizer == "sgd" else a
        if merge == "sum":
            repeated = tuple(("r", other) for other, count in inputs.items() for _ in range(count))
            incoming = [("", repeated)] if inputs else []
        else:
            incoming = [(f" from {labels[other]}" if len(inputs) > 1 else "", (("r", other),)) for other in inputs]
        if not has_weight:
            rows += [Row(f"{label}: input{suffix}", out, levels, a, words=PASSES_ON) for suffix, levels in incoming]
        if not has_weight and not inputs:
            rows.append(Row(f"{label}: source", out, (), a, words=SOURCE))
        if has_weight and not inputs:
            rows.append(Row(f"{label}: update", out, update, size, words=UPDATE))
        if has_weight and inputs:
            rows.append(Row(f"{label}: alpha", out, update, size, "alpha", key, words=ALPHA))
            for suffix, levels in incoming:
                rows.append(Row(f"{label}: u{suffix}", out, (*update, *levels), size, "u", key, words=U))
                rows.append(Row(f"{label}: omega{suffix}", out, levels, a + b, "omega", key, words=OMEGA))
    return rows


def _write_gradient_rows(
    rows: list[Row], nodes: list[_Node], successors: Mapping[Hashable, Sequence[Hashable]]
) -> dict[Hashable, tuple[Hashable, ...]]:
    """Adds the rows of G, the min over the readouts a node reaches of (a + b, 2a + c); returns the G at each output."""
    passed_back: dict[Hashable, Hashable] = {}
    gradients: dict[Hashable, tuple[Hashable, ...]] = {}
    for node in reversed(nodes):
        level = ("G", node.key)
        arriving = list(dict.fromkeys(passed_back[key] for key in successors[node.key]))
        if not arriving and node.inputs:
            rows.append(Row(f"{node.label}: G init", level, (), node.a + node.b, words=BACKWARD_INIT))
            if node.has_weight:
                rows.append(Row(f"{node.label}: G update", level, (("c", node.key),), 2 * node.a, words=BACKWARD_UPDATE))
        elif len(arriving) > 1:
            rows += [Row(f"{node.label}: G from {g[1]}", level, (g,), 0.0, words=BACKWARD) for g in arriving]
        passed_back[node.key] = arriving[0] if len(arriving) == 1 else level
        if arriving:
            gradients[node.key] = (passed_back[node.key],)
    return gradients


UPDATE = "its own update changes its output"
ALPHA = "its own update, acting on the input (alpha), changes its output"
U = "its own update, acting on the change of the input (u), changes its output"
OMEGA = "its initial weights pass on the change of the input (omega)"
PASSES_ON = "it passes on the change of its input"
SOURCE = "a source without weight changes by its a"
BACKWARD = "the gradients of all branches add up"
BACKWARD_INIT = "the initial readout passes the gradient back"
BACKWARD_UPDATE = "the updated readout passes the gradient back"

"""`find_c` and `find_c_dag`: the linear program of learning-rate exponents for a chain and for a graph of layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

import networkx as nx
import numpy as np

from abcfx.errors import InvalidInputError
from abcfx.lp.levels import without_gc
from abcfx.lp.network_nodes import (
    Node,
    chain_nodes,
    check_stable_at_init,
    find_successors,
    finite_number,
    graph_nodes,
    measure_distances,
)
from abcfx.lp.network_rows import OPTIMIZERS, NetworkOptimizer, write_rows
from abcfx.lp.program import LpSolution, Solver
from abcfx.lp.rows import Alignment, Rate
from abcfx.support.choices import choose

NetworkAlignments: TypeAlias = float | Sequence[float] | Mapping[Hashable, float]
Exponents = TypeVar("Exponents", list[float], dict[Hashable, float])


@dataclass(frozen=True)
class Solution(Generic[Exponents]):
    """The solution for a network; a pair: `c, r = solution` unpacks, `solution[0]` is c.

    Attributes:
        c: learning-rate exponents, lr = lr0 * m**-c (m, the width ratio): of a chain a list in layer order, of a graph
            a dict by node, for nodes with a weight.
        r: exponents of the change of each output since initialisation, m**-r; list or dict.
        objective: the sum of `c`, the least at which training is stable.
        binding: names of the rows that keep each `c` from going lower, by layer or node.
        shadow_prices: d(objective) / d(right-hand side) by name of row or bound, where it is not zero.
        solver: the linear program, to be solved again.
    """

    c: Exponents
    r: Exponents
    objective: float
    binding: dict[Hashable, tuple[Hashable, ...]]
    shadow_prices: dict[Hashable, float]
    solver: NetworkSolver[Exponents] = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[Exponents]:
        """Yield the exponents c (learning rates) and r (changes), so that `c, r = solution` unpacks the solution."""
        return iter((self.c, self.r))

    def __len__(self) -> int:
        """Return 2, the length of the solution as a pair (c, r)."""
        return 2

    def __getitem__(self, index: int) -> Exponents:
        """Return the exponents c for index 0 and the exponents r for index 1."""
        return (self.c, self.r)[index]

    def resolve(self, alpha: NetworkAlignments, omega: NetworkAlignments, u: NetworkAlignments) -> Solution[Exponents]:
        """Solve the same network at other alignments (how strongly updates line up with inputs), from the last optimum.

        Args:
            alpha, omega, u: one number for all layers, a list in layer order (chain) or a dict by node (graph).

        Returns:
            The solution that `find_c` or `find_c_dag` finds there.
        """
        return self.solver.resolve(alpha, omega, u)


ChainSolution: TypeAlias = Solution[list[float]]
GraphSolution: TypeAlias = Solution[dict[Hashable, float]]


def find_c(
    a: Sequence[float],
    b: Sequence[float],
    alpha: float | Sequence[float],
    omega: float | Sequence[float],
    u: float | Sequence[float],
    *,
    optimizer: NetworkOptimizer = "adam",
    feature_learning: bool = False,
) -> ChainSolution:
    """Find the smallest learning-rate exponents c at which a chain of layers trains stably: the largest stable rates.

    Args:
        a: exponents of the multipliers m**-a (m, the width ratio), one per layer: embedding first, readout last.
        b: exponents of the initial standard deviations m**-b. a + b is 0 for the first layer, 1/2 for hidden layers and
            at least 1/2 for the last.
        alpha: alignment exponents of dW x, the update times the input; one number stands for every layer.
        omega: alignment exponents of W dx, the initial weight times the change of the input.
        u: alignment exponents of dW dx.
        optimizer: "adam" or "sgd".
        feature_learning: demand that the input of the last layer changes by O(1): r = 0 there.

    Returns:
        Lists `c` and `r` in layer order, what binds, and shadow prices; `resolve` solves again at other alignments.

    Raises:
        InvalidInputError: lengths differ, a number is not finite, or a + b breaks the rule above.
        InfeasibleError: no exponents satisfy the constraints; the message names those in conflict.

    >>> c, r = find_c([-0.5, 0.0, 0.5], [0.5, 0.5, 0.5], alpha=1.0, omega=0.5, u=1.0)
    >>> c
    [0.5, 1.0, 0.5]
    """
    return ChainSolver(chain_nodes(a, b), (alpha, omega, u), optimizer, feature_learning).solve()


def find_c_dag(
    graph: nx.DiGraph, *, optimizer: NetworkOptimizer = "adam", feature_learning: bool = False
) -> GraphSolution:
    """Find the smallest learning-rate exponents c at which a directed acyclic graph of layers trains stably.

    Args:
        graph: a networkx graph. Its nodes have the attributes `a`; for layers with a weight also `b`, `alpha`, `omega`,
            `u` (see `find_c`); `has_weight` (default True); and `merge`, how several inputs are joined: "min" (default)
            if they are added or concatenated, "sum" if they are multiplied, so that their r add up. With a weight, a +
            b is 0 for a node without predecessor, at least 1/2 for one without successor, else 1/2. A node without a
            weight adds its `a` to r. An input that is used twice (x * x) is an edge with `multiplicity=2`, or two edges
            of a MultiDiGraph.
        optimizer: "adam" or "sgd".
        feature_learning: demand that the inputs of all readouts change by O(1).

    Returns:
        Dicts `c` (nodes with a weight) and `r` by node, what binds, and shadow prices.

    Raises:
        InvalidInputError: an attribute is missing, not finite or breaks these rules, or the graph has a cycle.
        InfeasibleError: no exponents satisfy the constraints; the message names those in conflict.

    >>> import networkx as nx
    >>> graph = nx.DiGraph([("in", "out")])
    >>> graph.nodes["in"].update(a=-0.5, b=0.5)
    >>> graph.nodes["out"].update(a=0.5, b=0.5, alpha=1.0, omega=0.5, u=1.0)
    >>> find_c_dag(graph).c
    {'in': 0.5, 'out': 0.5}
    """
    nodes = graph_nodes(graph)
    alpha, omega, u = (dict(nx.get_node_attributes(graph, name)) for name in ("alpha", "omega", "u"))
    return GraphSolver(nodes, (alpha, omega, u), optimizer, feature_learning).solve()


class NetworkSolver(ABC, Generic[Exponents]):
    """The linear program of one network, kept to be solved again at other alignments of updates with inputs.

    Args:
        nodes: the nodes, each after its predecessors.
        alignments: how strongly dW x, W dx and dW dx add up: (alpha, omega, u), for all layers or for each.
        optimizer: "adam" or "sgd".
        feature_learning: demand that the inputs of readouts change by O(1).
    """

    @without_gc
    def __init__(
        self,
        nodes: list[Node],
        alignments: tuple[NetworkAlignments, NetworkAlignments, NetworkAlignments],
        optimizer: NetworkOptimizer,
        feature_learning: bool,
    ) -> None:
        """Check the network, and write its linear program of learning-rate exponents.

        Args:
            nodes: the nodes, each after its predecessors.
            alignments: how strongly dW x, W dx and dW dx add up: (alpha, omega, u).
            optimizer: "adam" or "sgd".
            feature_learning: demand that the inputs of readouts change by O(1).
        """
        optimizer = choose("optimizer", optimizer, OPTIMIZERS)
        if not isinstance(feature_learning, bool):
            raise InvalidInputError(f"feature_learning={feature_learning!r}: expected True or False.")
        self._nodes = nodes  # each after its predecessors
        self._aligned = [(node.label, i) for i, node in enumerate(nodes) if node.is_aligned]
        successors = find_successors(nodes)
        for node in nodes:
            check_stable_at_init(node, is_readout=not successors[node.label])
        distances = measure_distances(nodes, successors)
        before_readouts = [("r", label) for node in nodes if not successors[node.label] for label in node.inputs]
        self._program = Solver(
            write_rows(nodes, successors, optimizer),
            rates={("c", node.label): Rate(distance=distances[node.label]) for node in nodes if node.has_weight},
            lower={("r", node.label): 0.0 for node in nodes},
            alignment=self._alignment(*alignments),
            exact=before_readouts if feature_learning else (),
        )

    def solve(self) -> Solution[Exponents]:
        """Solve the linear program at the alignments given last: to `resolve`, or else to the constructor.

        An alignment says how strongly updates line up with inputs.
        """
        return self._solution(self._program.solve())

    def resolve(self, alpha: NetworkAlignments, omega: NetworkAlignments, u: NetworkAlignments) -> Solution[Exponents]:
        """Solve again at new alignments (alpha of dW x, omega of W dx, u of dW dx), starting at the last optimum.

        Alignments say how strongly the factors of these products line up: 1/2 if independent, 1 if fully.
        """
        return self._solution(self._program.resolve(self._alignment(alpha, omega, u)))

    @abstractmethod
    def _by_layer(self, values: dict[Hashable, float]) -> Exponents:
        """Return the values (c or r) of all layers as a list in layer order (chain) or a dict by node (graph)."""

    @abstractmethod
    def _listed(self, given: Collection[object], name: str) -> list[object]:
        """Return one alignment exponent for each layer or node, from a list (chain) or a dict by node (graph).

        An alignment exponent says how strongly updates line up with inputs: 1/2 if independent, 1 if fully.

        Args:
            given: what the user gave.
            name: "alpha", "omega" or "u", for messages.

        Raises:
            InvalidInputError: it is no list (for a chain) or dict (for a graph), or has no entry for some layer.
        """

    def _solution(self, found: LpSolution) -> Solution[Exponents]:
        """Return a solution of the linear program, `found`, with the user's names of layers."""
        return Solution(
            c=self._by_layer({node.key: found.c["c", node.label] for node in self._nodes if node.has_weight}),
            r=self._by_layer({node.key: found.levels["r", node.label] for node in self._nodes}),
            objective=found.objective,
            binding={node.key: found.binding["c", node.label] for node in self._nodes if node.has_weight},
            shadow_prices=found.shadow_prices,
            solver=self,
        )

    def _alignment(self, alpha: NetworkAlignments, omega: NetworkAlignments, u: NetworkAlignments) -> Alignment:
        """Return the alignment exponents (alpha, omega, u) of each layer for which they matter, by the layer's label.

        They say how strongly updates line up with inputs: 1/2 if independent, 1 if fully.
        """
        alphas, omegas, us = (self._by_node(*x) for x in ((alpha, "alpha"), (omega, "omega"), (u, "u")))
        return {label: (alphas[i], omegas[i], us[i]) for label, i in self._aligned}

    def _by_node(self, given: NetworkAlignments, name: str) -> list[float]:
        """Return one alignment exponent for each layer, from one number, a list (chain) or a dict by node (graph).

        It says how strongly updates line up with inputs (1/2 if independent, 1 if fully), and is 0 for a node that
        needs none and was given none.

        Args:
            given: what the user gave.
            name: "alpha", "omega" or "u", for messages.
        """
        values = self._listed(given, name) if isinstance(given, Collection) else [given] * len(self._nodes)
        try:
            array = np.asarray(values)
        except (TypeError, ValueError, RuntimeError):  # lists of several lengths, tensors without values
            array = np.empty(0, dtype=object)
        if array.dtype.kind in "fiu" and np.isfinite(array).all():
            numbers: list[float] = array.astype(np.float64).tolist()
            return numbers
        return [finite_number(value, name, node.label) for value, node in zip(values, self._nodes, strict=True)]


class ChainSolver(NetworkSolver[list[float]]):
    """The linear program of a chain of layers, which takes alignments and returns exponents as lists.

    The lists are in layer order; an alignment says how strongly updates line up with inputs.
    """

    def _by_layer(self, values: dict[Hashable, float]) -> list[float]:
        """Return values (c or r) of the layers as a list in layer order."""
        return list(values.values())

    def _listed(self, given: Collection[object], name: str) -> list[object]:
        """Check a list of alignment exponents, one for each layer in order, and return it as a list.

        An alignment exponent says how strongly updates line up with inputs: 1/2 if independent, 1 if fully.

        Raises:
            InvalidInputError: it is no list, or has another length.
        """
        if isinstance(given, Mapping) or len(given) != len(self._nodes):
            raise InvalidInputError(
                f"{name} must be {len(self._nodes)} numbers, one per layer, or one number for all; "
                f"got {len(given)} numbers"
            )
        return list(given)


class GraphSolver(NetworkSolver[dict[Hashable, float]]):
    """The linear program of a graph of layers, which takes alignments and returns exponents as dicts by node.

    An alignment says how strongly updates line up with inputs.
    """

    def _by_layer(self, values: dict[Hashable, float]) -> dict[Hashable, float]:
        """Return values (c or r) of the nodes as a dict by the user's names of the nodes."""
        return values

    def _listed(self, given: Collection[object], name: str) -> list[object]:
        """Return the alignment exponents of all nodes as a list, in the order of the nodes, from a dict by node.

        An alignment exponent says how strongly updates line up with inputs: 1/2 if independent, 1 if fully. It is 0 for
        a node that needs none.

        Raises:
            InvalidInputError: it is no dict, a layer is missing, or there is no such node.
        """
        if not isinstance(given, Mapping):
            raise InvalidInputError(f"{name} must be a dict by node, or one number for all; got {len(given)} numbers")
        keys = {node.key for node in self._nodes}
        for node in self._nodes:
            if node.is_aligned and node.key not in given:
                raise InvalidInputError(f"{node.label} has no {name}: a layer with a weight and an input needs one")
        for key in given:
            if key not in keys:
                raise InvalidInputError(f"{name} is given for {key!r}, which is not a node of the graph")
        return [given.get(node.key, 0.0) for node in self._nodes]

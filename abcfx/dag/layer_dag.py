"""The layer DAG of a model and what can be asked of it: uses, what feeds what, void multipliers, distances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import networkx as nx
import torch.fx as fx

from abcfx.capture import CapturedGraph
from abcfx.dag.interpreter import Interpreter, tensors
from abcfx.errors import InvalidInputError
from abcfx.rules import Kind, Layer, Vector
from abcfx.rules.kinds import Merge, Norm, NumberFactor, Product, Reduce, Softmax


@dataclass(frozen=True)
class LayerDag:
    """The layer DAG of a model.

    `graph`: networkx DiGraph; node attributes `kind`, `fx_node`, `path` (module path), later also `s`, `r`, `role`.
    `outputs`: nodes whose tensors the model returns. `order`: node names as the model runs.
    """

    graph: nx.DiGraph
    outputs: frozenset[str]
    order: tuple[str, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def kind(self, node: str) -> Kind:
        kind: Kind = self.graph.nodes[node]["kind"]
        return kind

    def nodes_of(self, *kinds: type[Kind]) -> list[str]:
        return [node for node in self.order if isinstance(self.kind(node), kinds)]

    def layers(self) -> list[tuple[str, Layer]]:
        """(node, kind) of every use of a weight, as the model runs."""
        return [(node, kind) for node in self.order if isinstance(kind := self.kind(node), Layer)]

    def vectors(self) -> list[tuple[str, Vector]]:
        return [(node, kind) for node in self.order if isinstance(kind := self.kind(node), Vector)]

    def uses(self) -> dict[str, list[str]]:
        """Parameter name -> the nodes that use it; more than one for a tied parameter or a module called twice."""
        uses: dict[str, list[str]] = {}
        for node in self.order:
            kind = self.kind(node)
            if isinstance(kind, Layer | Vector):
                uses.setdefault(kind.parameter, []).append(node)
        return uses

    def reaches(self, node: str, stop: Callable[[str], bool], through: Callable[[str], bool]) -> bool:
        """Whether some path from `node` on gets to a node with `stop`, by way of nodes with `through` only."""
        waiting, seen = list(self.graph.successors(node)), set()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if stop(at):
                return True
            if through(at):
                waiting.extend(self.graph.successors(at))
        return False

    def feeds_output(self, node: str) -> bool:
        """Whether the node's tensor gets to an output of the model without another layer or norm in between."""
        if node in self.outputs:
            return True

        def between(n: str) -> bool:
            return not isinstance(self.kind(n), Layer | Norm)

        return self.reaches(node, lambda n: n in self.outputs and between(n), between)

    def feeds_softmax(self, node: str) -> bool:
        """Whether it gets to a softmax (as the logits of a router do) with no layer, norm or product between."""
        return self.reaches(
            node,
            stop=lambda n: isinstance(self.kind(n), Softmax),
            through=lambda n: not isinstance(self.kind(n), Layer | Norm | Product),
        )

    def is_void(self, node: str, through_scales: bool = False) -> bool:
        """Whether a multiplier on this layer changes nothing: every consumer is a norm, and nothing is added before.

        `through_scales`: also where the model itself multiplies with numbers in between.
        """
        consumers = list(self.graph.successors(node))
        if not consumers or node in self.outputs or self.kind(node).vectors:
            return False

        def voids(n: str) -> bool:
            if through_scales and isinstance(self.kind(n), NumberFactor):
                return self.is_void(n, through_scales=True)
            return isinstance(self.kind(n), Norm) and node in self.kind(n).inputs

        return all(map(voids, consumers))

    def takers(self, node: str) -> tuple[str, ...]:
        """Parameters that can take a factor on the tensor of a node, which nothing else may use; () where none can.

        A weight with its bias, gain and bias of a norm, a gain written out; of a sum, those of every summand.
        """
        if self.graph.out_degree(node) != 1 or node in self.outputs or self._is_pinned(node):
            return ()
        kind = self.kind(node)
        if isinstance(kind, NumberFactor | Reduce):
            return self.takers(kind.input)
        if isinstance(kind, Product):  # linear in each factor: a written-out gain first
            vectors = [n for n in kind.sources if isinstance(self.kind(n), Vector)]
            return next((names for n in (*vectors, *kind.sources) if (names := self.takers(n))), ())
        if isinstance(kind, Merge):
            found = [self.takers(source) for source in kind.sources]
            return tuple(name for names in found for name in names) if all(found) else ()
        nodes: tuple[str, ...] = ()
        if isinstance(kind, Layer):
            nodes = () if kind.normalised else (node, *kind.vectors)
        elif isinstance(kind, Norm):
            nodes = kind.vectors
        elif isinstance(kind, Vector):
            nodes = (node,)
        uses = self.uses()
        kinds = [self.kind(n) for n in nodes]
        names = tuple(k.parameter for k in kinds if isinstance(k, Layer | Vector))
        alone = all(len(uses[name]) == 1 for name in names) and all(self.graph.out_degree(n) == 1 for n in nodes)
        return names if len(names) == len(nodes) and alone and not any(map(self._is_pinned, nodes)) else ()

    def _is_pinned(self, node: str) -> bool:
        """Whether a function that is not homogeneous takes it, or a gain is used as 1 + gain."""
        return bool(self.graph.nodes[node]["pinned"]) or node in self.graph.graph.get("pinned", ())

    def distances(self) -> dict[str, int]:
        """Largest number of layers between a node and the outputs."""
        far: dict[str, int] = {}
        for node in reversed(self.order):
            far[node] = max((far[n] + isinstance(self.kind(n), Layer) for n in self.graph.successors(node)), default=0)
        return far

    def merges(self) -> list[str]:
        return self.nodes_of(Merge, Product)

    def forks(self) -> list[str]:
        return [node for node in self.order if self.graph.out_degree(node) > 1]


def build_dag(captured: CapturedGraph, graph: fx.Graph | None = None, unknown: str = "raise") -> LayerDag:
    """The layer DAG of a captured model (of its train graph, unless another is given).

    Raises UnknownOpError for an op without a rule, with the op, the module path, the source line and what to write.
    With unknown="report" such an op passes on the largest change among its inputs, and a note says so.
    """
    if unknown not in ("raise", "report"):
        raise InvalidInputError(f"unknown={unknown!r}; expected 'raise' or 'report'.")
    module = captured.module
    names = {parameter: name for name, parameter in module.named_parameters()}
    dag = nx.DiGraph()
    interpreter = Interpreter(module, dag, names, unknown == "report")
    returned = interpreter.run(graph or module.graph)
    outputs = frozenset(v.node for v in tensors(returned) if v.node is not None)
    caches = frozenset(node for node in outputs if _is_cache(dag, node))
    if caches < outputs:
        outputs -= caches
    alive = set(outputs).union(*(nx.ancestors(dag, node) for node in outputs))
    order = tuple(node for node in dag if node in alive)
    return LayerDag(_restricted(dag, order), outputs, order, tuple(interpreter.notes))


def _restricted(dag: nx.DiGraph, order: tuple[str, ...]) -> nx.DiGraph:
    """The nodes given, in that order; a subgraph view of few among many would have them in the order of a set."""
    kept = nx.DiGraph(**dag.graph)
    kept.add_nodes_from((node, dag.nodes[node]) for node in order)
    kept.add_edges_from((node, after) for node in order for after in dag.successors(node) if after in kept)
    return kept


def _is_cache(dag: nx.DiGraph, node: str) -> bool:
    """Whether a returned tensor only goes into attention inside the model: keys and values kept for later.

    A loss is no function of it, so it is no output for the LP.
    """
    followers = list(dag.successors(node))
    return bool(followers) and all(_is_attention(dag, n) for n in followers)


def _is_attention(dag: nx.DiGraph, node: str) -> bool:
    """Whether a product makes attention logits or sums values with their softmax."""
    if not isinstance(dag.nodes[node]["kind"], Product):
        return False
    if any(isinstance(dag.nodes[n]["kind"], Softmax) for n in dag.predecessors(node)):
        return True
    ahead = list(dag.successors(node))
    while ahead and all(isinstance(dag.nodes[n]["kind"], NumberFactor | Merge) for n in ahead):
        ahead = [after for n in ahead for after in dag.successors(n)]
    return any(isinstance(dag.nodes[n]["kind"], Softmax) for n in ahead)

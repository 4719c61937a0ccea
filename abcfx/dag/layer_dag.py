"""The layer DAG of a model, built once and never changed, with the edges between its nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx

from abcfx.rules import Kind, Layer, Vector
from abcfx.rules.builder import DagNode
from abcfx.rules.kinds import Norm, NumberFactor, Product, Softmax


@dataclass(frozen=True, eq=False)
class LayerDag:
    """The layer DAG of a model, the graph of its layers, norms, sums and products, with edges between them.

    It never changes.

    Attributes:
        nodes: the nodes, in the order in which the model runs.
        outputs: names of the nodes whose tensors the model returns, without by-products such as key-value caches.
        pinned_parameters: parameters that a function f with f(kx) != k f(x) reads, or that a constant is added to.
        output_paths: where these tensors are in what the model returns, such as "logits"; "" for a sole tensor.
        notes: sentences for the report, about ops that were guessed and returned tensors that are no outputs.
        concatenated: for each weight whose input is a concatenation, by call: the index of the dim that meets it, and
            the sizes of the concatenated tensors.
    """

    nodes: tuple[DagNode, ...] = field(repr=False)
    outputs: frozenset[str]
    pinned_parameters: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    output_paths: tuple[str, ...] = ()
    concatenated: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict, repr=False)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names of the nodes of the layer DAG (a graph of layers and ops), in the order in which the model runs."""
        return tuple(node.name for node in self.nodes)

    @cached_property
    def _by_name(self) -> dict[str, DagNode]:
        """The nodes of the layer DAG (a graph of layers and ops) by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def edges(self) -> nx.DiGraph:
        """The edges between the nodes of the layer DAG, as a read-only networkx DiGraph of their names."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.order)
        after: dict[str, list[str]] = {name: [] for name in self.order}
        for node in self.nodes:
            for source in dict.fromkeys(node.kind.sources):
                after[source].append(node.name)
        graph.add_edges_from((name, follower) for name, followers in after.items() for follower in followers)
        return nx.freeze(graph)

    def __contains__(self, name: object) -> bool:
        """Whether the layer DAG has a node with this name."""
        return name in self._by_name

    def node(self, name: str) -> DagNode:
        """Return the node of the layer DAG with this name: a layer, sum, norm or the like."""
        return self._by_name[name]

    def kind(self, name: str) -> Kind:
        """Return what the node with this name does (Layer, Norm, ...), with formulas for how large its output is."""
        return self._by_name[name].kind

    def successors(self, name: str) -> tuple[str, ...]:
        """Return the names of the DAG nodes that read a node, in the order in which they run."""
        return tuple(self.edges.successors(name))

    def predecessors(self, name: str) -> tuple[str, ...]:
        """Return the names of the DAG nodes that a node reads, in the order in which they run."""
        return tuple(self.edges.predecessors(name))

    def ancestors(self, name: str) -> set[str]:
        """Return the names of all DAG nodes that a node is computed from, without the node itself."""
        return set(nx.ancestors(self.edges, name))

    def descendants(self, name: str) -> set[str]:
        """Return the names of all DAG nodes that are computed from a node, without the node itself."""
        return set(nx.descendants(self.edges, name))

    def to_networkx(self) -> nx.DiGraph:
        """Return a copy of the DAG as a networkx graph whose nodes have the attributes below.

        `kind`: what the node does, an instance of `abcfx.rules.Kind`. `path`: its module path. `fx_node`: the op that
        it was made for. `parameter`: name of the parameter of a layer or vector, else None. `weight`: whether it is a
        layer. `output`: whether the model returns its tensor.
        """
        graph = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(
                node.name,
                kind=node.kind,
                path=node.path,
                fx_node=node.fx_node,
                parameter=node.parameter,
                weight=isinstance(node.kind, Layer),
                output=node.name in self.outputs,
            )
        graph.add_edges_from(self.edges.edges)
        return graph

    def nodes_of(self, *kinds: type[Kind]) -> list[str]:
        """Return the names of all nodes of the given kinds (classes), in the order in which the model runs."""
        return [node for node in self.order if isinstance(self.kind(node), kinds)]

    def layers(self) -> list[tuple[str, Layer]]:
        """Return (name, kind) of every layer node (one use of a weight), in the order in which the model runs."""
        return [(node, kind) for node in self.order if isinstance(kind := self.kind(node), Layer)]

    def vectors(self) -> list[tuple[str, Vector]]:
        """Return (name, kind) of every parameter that is added or multiplied entry by entry, as the model runs."""
        return [(node, kind) for node in self.order if isinstance(kind := self.kind(node), Vector)]

    def uses(self) -> dict[str, list[str]]:
        """Return for each parameter the nodes that use it: several if it is tied or its module is called twice."""
        uses: dict[str, list[str]] = {}
        for node in self.order:
            kind = self.kind(node)
            if isinstance(kind, Layer | Vector):
                uses.setdefault(kind.parameter, []).append(node)
        return uses

    def _reaches(self, node: str, stop: Callable[[str], bool], through: Callable[[str], bool]) -> bool:
        """Whether a path leads from a DAG node to one where `stop` is true, through nodes where `through` is true."""
        waiting, seen = list(self.successors(node)), set()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if stop(at):
                return True
            if through(at):
                waiting.extend(self.successors(at))
        return False

    def feeds_output(self, node: str) -> bool:
        """Whether the output of a DAG node gets to an output of the model without another layer or norm in between."""
        if node in self.outputs:
            return True

        def between(n: str) -> bool:
            """Whether the DAG node `n` may lie between `node` and the model's output: it is no layer and no norm."""
            return not isinstance(self.kind(n), Layer | Norm)

        return self._reaches(node, lambda n: n in self.outputs and between(n), between)

    def feeds_softmax(self, node: str) -> bool:
        """Whether the output of a DAG node gets to a softmax (as of a router) past no layer, norm or product."""
        return self._reaches(
            node,
            stop=lambda n: isinstance(self.kind(n), Softmax),
            through=lambda n: not isinstance(self.kind(n), Layer | Norm | Product),
        )

    def is_void(self, node: str, through_scales: bool = False, through_layers: bool = False) -> bool:
        """Whether a multiplier on a layer changes nothing: only norms read the layer, and nothing is added before them.

        A norm divides the multiplier out; a function such as tanh in between would notice it.

        Args:
            node: name of the layer.
            through_scales: look past products with numbers that the model itself makes in between.
            through_layers: look past further layers, without biases, in between.
        """
        consumers = self.successors(node)
        if not consumers or node in self.outputs or self.kind(node).vectors or self.node(node).is_bent:
            return False

        def voids(n: str) -> bool:
            """Whether the node `n`, which reads the layer, divides its multiplier out, as a norm does."""
            passes = (through_scales and isinstance(self.kind(n), NumberFactor)) or (
                through_layers and isinstance(self.kind(n), Layer)
            )
            if passes:
                return self.is_void(n, through_scales, through_layers)
            return isinstance(self.kind(n), Norm) and node in self.kind(n).inputs

        return all(map(voids, consumers))

    def distances(self) -> dict[str, int]:
        """Return for each DAG node the number of layers on the longest path from it to an output of the model."""
        far: dict[str, int] = {}
        for node in reversed(self.order):
            far[node] = max((far[n] + isinstance(self.kind(n), Layer) for n in self.successors(node)), default=0)
        return far

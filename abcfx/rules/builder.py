"""Nodes of the layer DAG, and the builder that rules add them to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.fx as fx

from abcfx.rules.extents import DimPart
from abcfx.rules.kinds import Kind, Layer, Vector


@dataclass(frozen=True, eq=False)
class DagNode:
    """A node of the layer DAG (a graph of the model's layers and other ops): what it computes, and where it stands.

    Attributes:
        name: unique in the DAG; a layer is called as its module, any other node as its op.
        kind: what the node does to the magnitude, change and gradient of a tensor; it names the nodes that it reads.
        fx_node: the op of the traced graph that the node was made for.
        path: module path of that op; "" in the root.
        gains: those of `kind.vectors` (parameters) that multiply the result; the others are added to it.
        is_pinned: whether a function f with f(kx) != k f(x) reads the node, or a constant is added to it.
        is_bent: whether such a function reads the node (tanh, gelu): it then matters how large the tensor itself is.
        is_parametric: whether the node is computed from parameters and constants alone.
        operand: for a layer or product, the fx node that returns its input; None where the op itself makes the input.
        operands: for a merge, the fx node that returns each of its inputs, if it is an argument of the op.
        over: for a layer, the dims of its input that are summed over, where these are not the last ones; () where rows
            of the input come in another order each time.
        paired: for a layer with a stack of matrices, dim of the weight that counts them -> the input's dim beside it.
        weight: of a layer whose weight is composed of several parameters, or is a nonlinear function of one, the fx
            node that returns the weight. A multiplier belongs to the parameter then, not to the input.
        is_curved: of a layer, whether its weight is not proportional to its parameter.
        concatenation: of a layer that is one segment of a weight, the fx node that concatenates the inputs of all.
    """

    name: str
    kind: Kind
    fx_node: fx.Node
    path: str = ""
    gains: tuple[str, ...] = ()
    is_pinned: bool = False
    is_bent: bool = False
    is_parametric: bool = False
    operand: fx.Node | None = None
    operands: Mapping[str, fx.Node] = field(default_factory=dict)
    over: tuple[int, ...] | None = None
    paired: Mapping[int, int] = field(default_factory=dict)
    weight: fx.Node | None = None
    is_curved: bool = False
    concatenation: fx.Node | None = None

    @property
    def parameter(self) -> str | None:
        """The name of the parameter of a layer (weight) or vector (bias, gain); None for any other node."""
        return self.kind.parameter if isinstance(self.kind, Layer | Vector) else None


class DagBuilder:
    """A builder that collects the nodes of a layer DAG, a graph of layers and ops, in the order in which they run.

    Attributes:
        names: name of each parameter of the model.
        shapes: shape of each parameter, by name.
        nodes: the nodes added so far, by name.
        pinned_parameters: parameters that a function f with f(kx) != k f(x) reads, or that a constant is added to.
        segments: for weights that count as several layers, one for each of the tensors concatenated to make their
            input, the columns of each.
        concatenated: for each weight whose input is a concatenation, its dim and the sizes of the tensors, by call.
    """

    def __init__(
        self, names: Mapping[torch.nn.Parameter, str], segments: Mapping[str, tuple[DimPart, ...]] | None = None
    ) -> None:
        """Start a layer DAG (a graph of layers and ops) without nodes.

        Args:
            names: name of each parameter.
            segments: for weights that count as several layers, the columns of each.
        """
        self.names, self.segments = names, segments or {}
        self.concatenated: dict[str, list[tuple[int, ...]]] = {}
        self.shapes = {name: tuple(parameter.shape) for parameter, name in names.items()}
        self.nodes: dict[str, DagNode] = {}
        self.pinned_parameters: set[str] = set()
        self._vectors: dict[str, str] = {}

    def __contains__(self, name: object) -> bool:
        """Whether a node with this name was added to the layer DAG, the graph of layers and ops."""
        return name in self.nodes

    def kind(self, name: str) -> Kind:
        """Return what a DAG node does (Layer, Merge, Norm, ...), with the formulas for how large its output is."""
        return self.nodes[name].kind

    def add(self, node: DagNode) -> str:
        """Add a node to the layer DAG (graph of layers and ops) and return its name.

        The name ends in `#2`, `#3`, ... where the node's own is taken.
        """
        unique, again = node.name, 1
        while unique in self.nodes:
            again += 1
            unique = f"{node.name}#{again}"
        made_of = [self.nodes[source].is_parametric for source in node.kind.sources]
        is_computed = bool(made_of) and all(made_of) and not isinstance(node.kind, Layer)
        self.nodes[unique] = replace(node, name=unique, is_parametric=is_computed or isinstance(node.kind, Vector))
        return unique

    def add_vector(self, vector: Vector, fx_node: fx.Node, path: str) -> str:
        """Return the name of the DAG node of a parameter that is added or multiplied entry by entry (a bias, a gain).

        The node is made when the parameter is first used; later uses get the same node.

        Args:
            vector: the parameter.
            fx_node: the op that uses it.
            path: module path of that op.
        """
        if vector.parameter not in self._vectors:
            self._vectors[vector.parameter] = self.add(DagNode(vector.parameter, vector, fx_node, path))
        return self._vectors[vector.parameter]

    def pin(self, name: str, is_bent: bool) -> None:
        """Mark a DAG node whose output must stay as large as it is in a wider copy of the model that computes the same.

        Args:
            name: the node.
            is_bent: whether that is because a function f with f(kx) != k f(x) reads it.
        """
        node = self.nodes[name]
        self.nodes[name] = replace(node, is_pinned=True, is_bent=node.is_bent or is_bent)

    def cut(self, name: str, pieces: int) -> None:
        """Count a layer whose output features are cut into pieces (fused q, k, v) as that many layers in the objective.

        The objective is that of the linear program: the sum of the learning-rate exponents c over layers.
        """
        node = self.nodes[name]
        assert isinstance(node.kind, Layer)
        self.nodes[name] = replace(node, kind=replace(node.kind, pieces=max(node.kind.pieces, pieces)))

    def above(self, *names: str) -> list[str]:
        """Return the given DAG nodes and all that they are computed from, in the order in which the model runs."""
        found, waiting = set(names), list(names)
        while waiting:
            for source in self.nodes[waiting.pop()].kind.sources:
                if source not in found:
                    found.add(source)
                    waiting.append(source)
        return [name for name in self.nodes if name in found]

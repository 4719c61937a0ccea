"""Adds nodes to the layer DAG for one op of the traced graph: what `Op` is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from abcfx.rules.builder import DagNode
from abcfx.rules.extents import ParameterDim
from abcfx.rules.kinds import Kind, Merge, Product, Vector
from abcfx.rules.op_arguments import OpArguments
from abcfx.rules.registry import plain_name
from abcfx.rules.values import Value, is_discrete, shape_of


class NodeMaker(OpArguments):
    """Adds nodes to the layer DAG, a graph of the model's layers and ops, for one op of the traced graph."""

    def constant(self) -> Value:
        """Return an abstract tensor (a record of what is known of it) for a result that training does not change."""
        return Value(at=self.at, shape=shape_of(self.at))

    def _unary(self, x: Value, make: Callable[[str], Kind], gains: tuple[str, ...] = ()) -> Value:
        """Add to the layer DAG (graph of layers and ops) a node that reads x alone, and return its abstract tensor.

        Args:
            x: the tensor that is read.
            make: makes what the node does, its `Kind`, from the name of the node that computes x.
            gains: names of the nodes of those parameters that multiply the result.
        """
        node = self._node(x)
        if node is None:
            return self.constant()
        return self._value_of(DagNode(self.at.name, make(node), self.at, self._path, gains))

    def _contraction(self, x: Value, kind: Product) -> Value:
        """Add a product of two activations to the layer DAG (graph of layers and ops), and return its abstract tensor.

        The DAG node also keeps the fx node of its input x.
        """
        operand = x.at if x.at in self.at.all_input_nodes else None
        return self._value_of(DagNode(self.at.name, kind, self.at, self._path, operand=operand))

    def _value_of(self, node: DagNode) -> Value:
        """Add a node to the layer DAG (graph of layers and ops) and return a record (abstract tensor) of its result."""
        return Value(self._builder.add(node), self.at, shape=shape_of(self.at))

    def _pin(self, x: Value, is_bent: bool = False) -> None:
        """Mark a tensor (node or parameter) whose entries must stay as large as they are in a wider copy of the model.

        Args:
            x: the tensor.
            is_bent: whether that is because a function f with f(kx) != k f(x) reads it.
        """
        if x.node is not None:
            self._builder.pin(x.node, is_bent)
        elif x.parameter is not None:
            self._builder.pinned_parameters.add(x.parameter)

    def _node(self, x: Value) -> str | None:
        """Return the name of the DAG node that computes a tensor; None for a constant.

        For a parameter that has no node yet, make one: it is then read as a bias or a gain is.
        """
        if x.parameter is None or x.node is not None:
            return x.node
        own = tuple(ParameterDim(x.parameter, i) for i in range(len(self._builder.shapes[x.parameter])))
        dims = own if x.dims is None else x.all_dims()  # a view may have regrouped them
        vector = self._builder.add_vector(Vector((), x.parameter, dims), self.at, self._path)
        if x.gains:
            return self._builder.add(
                DagNode(self.at.name, Merge((vector, *self._vectors_of(x.gains))), self.at, self._path)
            )
        return vector

    def _vectors_of(self, parameters: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the DAG nodes of some parameters (biases or gains); nodes that are missing are made."""
        return self._vectors(*(Value(parameter=name) for name in parameters))

    def _vectors(self, *values: Value | None) -> tuple[str, ...]:
        """Return the names of the DAG nodes of those of the given tensors (bias, gain) that are not constants."""
        return tuple(node for v in values if v is not None and (node := self._node(v)) is not None)

    def _layer_name(self, parameter: str) -> str:
        """Return a name for a layer: the path of the module that owns its parameter.

        At a second use of the parameter it is that of the module that uses it, as of a tied "head".
        """
        owner, taken = parameter.removesuffix(".weight"), self._builder
        return self._path if owner in taken and self._path and self._path not in taken else owner


def is_zero(constant: Value) -> bool:
    """Whether a constant is zero, empty or no number, so that adding it to a tensor sets no scale for the tensor."""
    if constant.at is None:
        return False
    if is_discrete(constant.at):  # an index: where to write, not what
        return True
    return 0 in (shape_of(constant.at) or ()) or plain_name(constant.at.target) in ("zeros", "zeros_like", "new_zeros")

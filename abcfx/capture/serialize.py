"""Turn graphs into plain data and back, so that an emitted module can be pickled.

Nodes refer to each other by position, so that a long chain of nodes does not recurse.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument, Target

from abcfx.capture.codegen import SignatureCodeGen, signature_of_graph
from abcfx.capture.signature import Signature

# Of a node's meta only these two, which say where it came from. Shapes are fake tensors, and notes of passes stand in
# the spec.
_META = ("stack_trace", "nn_module_stack")

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class _Position:
    """A stand-in for a node in a graph that is written as plain data: its position in the graph."""

    index: int


@dataclass(frozen=True)
class _Operator:
    """A stand-in for an overload of a torch operator in a graph that is written as plain data: its qualified name."""

    name: str


@dataclass(frozen=True)
class NodeData:
    """A node of an fx graph as plain data that can be pickled.

    Attributes:
        op: kind of the node, such as "call_function".
        name: name of the node.
        target: the function or name that is called; an overload of a torch operator by its name.
        args: positional arguments, with positions in the place of nodes.
        kwargs: keyword arguments, with positions in the place of nodes.
        meta: source location and module path.
    """

    op: str
    name: str
    target: Target | _Operator
    args: object
    kwargs: object
    meta: dict[str, object]


@dataclass(frozen=True)
class GraphData:
    """An fx graph as plain data that can be pickled: its nodes in order, and how the model is called."""

    nodes: list[NodeData]
    signature: Signature | None


def graph_to_data(graph: fx.Graph) -> GraphData:
    """Return an fx graph as plain data that can be pickled.

    Raises:
        pickle.PicklingError: the graph checks sizes on each call (as every graph from torch.export does), by generated
            functions without a name to be found by.
    """
    signature = signature_of_graph(graph)
    if signature is not None and signature.guards is not None:
        raise pickle.PicklingError(
            "a graph with guards on sizes cannot be pickled.\n  To fix: save state_dict() and capture the model again."
        )
    positions = {node: index for index, node in enumerate(graph.nodes)}

    def position(node: fx.Node) -> _Position:
        """Return the stand-in for a node of an fx graph in plain data: its position in the graph."""
        return _Position(positions[node])

    nodes = []
    for node in graph.nodes:
        target = node.target
        if isinstance(target, OpOverload):
            target = _Operator(str(target.name()))
        args, kwargs = _replace(node.args, fx.Node, position), _replace(node.kwargs, fx.Node, position)
        nodes.append(NodeData(node.op, node.name, target, args, kwargs, _meta(node)))
    return GraphData(nodes, signature)


def graph_from_data(data: GraphData) -> fx.Graph:
    """Build an fx graph again from its plain data, with the same names, arguments and source locations."""
    graph = fx.Graph()
    made: list[fx.Node] = []

    def node_at(position: _Position) -> fx.Node:
        """Return the node of the graph that is being rebuilt which is at a position given in the plain data."""
        return made[position.index]

    for each in data.nodes:
        args = cast("tuple[Argument, ...]", _replace(each.args, _Position, node_at))
        kwargs = cast("dict[str, Argument]", _replace(each.kwargs, _Position, node_at))
        node = graph.create_node(each.op, _resolve(each.target), args, kwargs, each.name)
        node.meta.update(each.meta)
        made.append(node)
    if data.signature is not None:
        graph.set_codegen(SignatureCodeGen(data.signature))
    return graph


def _meta(node: fx.Node) -> dict[str, object]:
    """Return the part of a node's meta that is pickled: its source location and module path, with names of classes."""
    meta = {key: node.meta[key] for key in _META if key in node.meta}
    stack = meta.get("nn_module_stack")
    if stack is not None:
        # Class names, as torch.export has them: classes defined within functions cannot be pickled.
        meta["nn_module_stack"] = {key: (path, _class_name(kind)) for key, (path, kind) in stack.items()}
    return meta


def _class_name(kind: type | str) -> str:
    """Return the qualified name of a class; a name is returned as it is."""
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _resolve(target: Target | _Operator) -> Target:
    """Return the target of a node; an operator that is stored by its name is looked up in `torch.ops`."""
    if not isinstance(target, _Operator):
        return target
    namespace, _, name = target.name.partition("::")
    name, _, overload = name.partition(".")
    found: Target = getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
    return found


def _replace(value: object, kind: type[_Kind], function: Callable[[_Kind], object]) -> object:
    """Return an argument of a node in which every value of one type, also in containers, is replaced.

    Args:
        value: the argument, with nested containers.
        kind: the type.
        function: returns what takes the place of such a value.
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)):
        items = [_replace(each, kind, function) for each in value]
        if hasattr(value, "_fields"):
            named_tuple: Callable[..., object] = type(value)
            return named_tuple(*items)
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {key: _replace(each, kind, function) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_replace(each, kind, function) for each in (value.start, value.stop, value.step)))
    return value

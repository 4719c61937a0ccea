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
    """A node, by its position in the graph."""

    index: int


@dataclass(frozen=True)
class _Operator:
    """An overload of a torch operator, by its qualified name."""

    name: str


@dataclass(frozen=True)
class NodeData:
    """A node without objects that pickle cannot take."""

    op: str
    name: str
    target: Target | _Operator
    args: object
    kwargs: object
    meta: dict[str, object]


@dataclass(frozen=True)
class GraphData:
    """A graph without objects that pickle cannot take."""

    nodes: list[NodeData]
    signature: Signature | None


def graph_to_data(graph: fx.Graph) -> GraphData:
    """Return the graph as plain data.

    Raises:
        pickle.PicklingError: the graph has guards (as every graph from torch.export has), which are generated
            functions without a name to be found by.
    """
    signature = signature_of_graph(graph)
    if signature is not None and signature.guards is not None:
        raise pickle.PicklingError(
            "a graph with guards on sizes cannot be pickled.\n  To fix: save state_dict() and capture the model again."
        )
    positions = {node: index for index, node in enumerate(graph.nodes)}

    def position(node: fx.Node) -> _Position:
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
    """Build the graph again, with the same names, arguments and source locations."""
    graph = fx.Graph()
    made: list[fx.Node] = []

    def node_at(position: _Position) -> fx.Node:
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
    meta = {key: node.meta[key] for key in _META if key in node.meta}
    stack = meta.get("nn_module_stack")
    if stack is not None:
        # Class names, as torch.export has them: classes defined within functions cannot be pickled.
        meta["nn_module_stack"] = {key: (path, _class_name(kind)) for key, (path, kind) in stack.items()}
    return meta


def _class_name(kind: type | str) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _resolve(target: Target | _Operator) -> Target:
    if not isinstance(target, _Operator):
        return target
    namespace, _, name = target.name.partition("::")
    name, _, overload = name.partition(".")
    found: Target = getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
    return found


def _replace(value: object, kind: type[_Kind], function: Callable[[_Kind], object]) -> object:
    """Return a node's argument with everything of one kind in it replaced by what the function returns."""
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

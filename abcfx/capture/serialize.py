"""Graphs as plain data, so that an emitted module can be pickled and deep trees of nodes do not recurse."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from abcfx.capture.signature import Signature, SignatureCodeGen

# Shapes are fake tensors and pass results are kept in the JSON spec; these two say where a node came from.
_META = ("stack_trace", "nn_module_stack")


@dataclass(frozen=True)
class _Reference:
    """A node, by its position."""

    index: int


@dataclass(frozen=True)
class _Operator:
    """An overload of a torch operator, by its qualified name."""

    name: str


@dataclass(frozen=True)
class GraphData:
    """A graph without objects that pickle cannot take."""

    nodes: list[tuple[str, str, Any, Any, Any, dict[str, Any]]]
    signature: Signature | None


def graph_to_data(graph: fx.Graph) -> GraphData:
    """The graph's nodes in order, arguments by position.

    Raises:
        pickle.PicklingError: a graph from torch.export or with a custom autograd.Function holds functions that have
            no name to be found by.
    """
    codegen = graph._codegen  # fx has `set_codegen` and no way to ask for it
    signature = codegen.signature if isinstance(codegen, SignatureCodeGen) else None
    if signature is not None and signature.guards is not None:
        raise pickle.PicklingError(
            "a graph with guards on sizes cannot be pickled: save state_dict() and capture the model again"
        )
    positions = {node: index for index, node in enumerate(graph.nodes)}
    nodes = []
    for node in graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            target = _Operator(str(target.name()))  # type: ignore[no-untyped-call]
        args, kwargs = (_replace(value, lambda n: _Reference(positions[n])) for value in (node.args, node.kwargs))
        nodes.append((node.op, node.name, target, args, kwargs, _meta(node)))
    return GraphData(nodes, signature)


def graph_from_data(data: GraphData) -> fx.Graph:
    """The graph again, with the same names, arguments and source locations."""
    graph = fx.Graph()
    made: list[fx.Node] = []
    for op, name, target, args, kwargs, meta in data.nodes:
        args, kwargs = (_replace(value, lambda r: made[r.index], _Reference) for value in (args, kwargs))
        node = graph.create_node(op, _resolve(target), args, kwargs, name)
        node.meta.update(meta)
        made.append(node)
    if data.signature is not None:
        graph.set_codegen(SignatureCodeGen(data.signature))
    return graph


def _meta(node: fx.Node) -> dict[str, Any]:
    meta = {key: node.meta[key] for key in _META if key in node.meta}
    stack = meta.get("nn_module_stack")
    if stack is not None:
        # Class names, as torch.export has them: classes defined within functions cannot be pickled.
        meta["nn_module_stack"] = {key: (path, _class_name(kind)) for key, (path, kind) in stack.items()}
    return meta


def _class_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _resolve(target: Any) -> Any:
    if not isinstance(target, _Operator):
        return target
    namespace, _, name = target.name.partition("::")
    name, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")


def _replace(value: Any, function: Callable[[Any], Any], kind: type = fx.Node) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)):
        items = [_replace(each, function, kind) for each in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {key: _replace(each, function, kind) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_replace(each, function, kind) for each in (value.start, value.stop, value.step)))
    return value

"""Make the graphs of both modes of a model, compare them, and keep their constants apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import torch
from torch import fx, nn
from torch.fx.node import Argument

from abcfx.support.running import both_modes_restored, set_mode

Held = TypeVar("Held")


def graphs_of_modes(
    model: nn.Module, modes: Iterable[bool], graph_now: Callable[[], fx.Graph]
) -> tuple[fx.Graph, fx.Graph | None]:
    """Make the fx graph of each mode (train, eval) of a model; one graph for both if they compute the same.

    Args:
        model: the model, which is back in its mode afterwards.
        modes: True for train mode, False for eval mode, in any order.
        graph_now: makes the graph of the mode that the model is in.

    Returns:
        The graph of train mode, or of the only mode; the graph of eval mode, or None when both compute the same.
    """
    graphs: dict[bool, fx.Graph] = {}
    with both_modes_restored(model):
        # The model's own mode comes first: it needs no call of `train`, in which a model may do work.
        for training in sorted(modes, key=lambda mode: mode != model.training):
            set_mode(model, training)
            graphs[training] = graph_now()
    if len(graphs) == 1:
        (only,) = graphs.values()
        return only, None
    return graphs[True], None if same_graph(graphs[True], graphs[False]) else graphs[False]


def same_graph(first: fx.Graph, second: fx.Graph) -> bool:
    """Whether two fx graphs compute the same, node by node; names of nodes do not count."""
    if len(first.nodes) != len(second.nodes):
        return False
    position: dict[fx.Node, int] = {}
    for index, (left, right) in enumerate(zip(first.nodes, second.nodes, strict=True)):
        position[left] = position[right] = index
        if (left.op, left.target) != (right.op, right.target):
            return False
        if not _equal((left.args, left.kwargs), (right.args, right.kwargs), position):
            return False
    return True


def _equal(left: object, right: object, position: Mapping[fx.Node, int]) -> bool:
    """Whether two arguments of nodes, of different graphs, are equal.

    Nodes among them are equal if `position` gives them the same number.
    """
    if isinstance(left, fx.Node) or isinstance(right, fx.Node):
        return isinstance(left, fx.Node) and isinstance(right, fx.Node) and position[left] == position[right]
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and _all_equal(left, right, position)
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and list(left) == list(right)
            and _all_equal(left.values(), right.values(), position)
        )
    if isinstance(left, slice) and isinstance(right, slice):
        return _equal((left.start, left.stop, left.step), (right.start, right.stop, right.step), position)
    if left is right:
        return True
    # repr tells -0.0 from 0.0; a nan is equal to itself here.
    return type(left) is type(right) and (bool(left == right) or left != left) and repr(left) == repr(right)


def _all_equal(left: Iterable[object], right: Iterable[object], position: Mapping[fx.Node, int]) -> bool:
    """Whether two sequences of arguments of nodes, of different graphs, are equal entry by entry.

    Nodes among them are equal if `position` gives them the same number.
    """
    left, right = list(left), list(right)
    return len(left) == len(right) and all(_equal(*pair, position) for pair in zip(left, right, strict=True))


def merge_constants(graph: fx.Graph, found: Mapping[str, Held], merged: MutableMapping[str, Held]) -> None:
    """Add the tensors and sub-graphs that one graph refers to by name to those of another mode's graph.

    A name that the other graph uses for something else is changed in this graph.

    Args:
        graph: the graph whose constants are added.
        found: what the graph refers to, by name.
        merged: what the other graphs refer to, by name; `found` is added.
    """
    for name, value in found.items():
        new = name
        while new in merged and not _identical(merged[new], value):
            new += "_"
        merged[new] = value
        for node in graph.nodes:
            if node.op == "get_attr" and node.target == name:
                node.target = new


def _identical(left: object, right: object) -> bool:
    """Whether two values are one object, or two tensors with the same values, dtype and device."""
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return left is right
    return left is right or (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.device == right.device
        and left.device.type != "meta"
        and torch.equal(left, right)
    )


def written_parameters(graphs: Iterable[fx.Graph]) -> set[str]:
    """Return the names of the parameters and buffers that some node of the graphs writes into, also through a view.

    Names of other nodes that are written into may be among them.
    """
    found: set[str] = set()
    for graph in graphs:
        for node in graph.nodes:
            source = node.args[0] if node.args and writes(node) else None
            while isinstance(source, fx.Node) and source.op != "get_attr":
                source = source.args[0] if source.args else None
            if isinstance(source, fx.Node):
                found.add(str(source.target))
    return found


def called_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, in any spelling of the op, such as "add_"."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def writes(node: fx.Node) -> bool:
    """Whether a node calls an op that writes into its first argument, such as `add_` or `x[i] = y`."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = called_name(node)
    return name in ("setitem", "setattr") or (name.endswith("_") and not name.endswith("__"))


def at_front(graph: fx.Graph) -> AbstractContextManager[object]:
    """Return a context in which new nodes are added right behind a graph's placeholders.

    There every later node can use them.
    """
    placeholders = graph.find_nodes(op="placeholder")
    if placeholders:
        return graph.inserting_after(placeholders[-1])
    first = next(iter(graph.nodes), None)
    return graph.inserting_before(first) if first is not None else nullcontext()


def as_argument(value: object) -> Argument:
    """Return a value unchanged, with the static type of a node's argument; fx takes any object as one."""
    return cast("Argument", value)

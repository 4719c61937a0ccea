"""Nodes that passes make: how they are made, and the note on each that says which pass made it and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx
from torch.fx.node import Argument

from abcfx.passes.result import PassError

_META = "abcfx"
_COPIED = ("val", "tensor_meta", "nn_module_stack", "stack_trace")


@dataclass(frozen=True)
class ScaleNode:
    """A note, kept in `node.meta["abcfx"]`, on a node that a pass made to multiply by a constant.

    Attributes:
        created_by: the pass that made the node.
        factor: the constant.
        label: the layer, product or branch that is scaled.
        formula: the constant as a formula, such as "m^-0.5" (m, the width ratio).
        on_result: True if the node multiplies the result of the op, False if it multiplies an operand.
    """

    created_by: str
    factor: float
    label: str
    formula: str
    on_result: bool = False


def scale_nodes(graph: fx.Graph) -> dict[fx.Node, ScaleNode]:
    """Return the nodes of a graph that a pass made to multiply by a constant, in order, each with its note.

    Raises:
        PassError: it is no graph.
    """
    if not isinstance(graph, fx.Graph):
        raise PassError(f"scale_nodes: expected an fx.Graph, such as module.graph, got {type(graph).__name__}.")
    return {node: note for node in graph.nodes if (note := scale_note(node)) is not None}


def scale_note(node: fx.Node) -> ScaleNode | None:
    """Return the note on a node that a pass made to multiply by a constant; None for every other node."""
    note = node.meta.get(_META)
    return note if isinstance(note, ScaleNode) else None


def set_scale_note(node: fx.Node, note: ScaleNode) -> None:
    """Write a note into a node's meta that says that a pass made the node to multiply by a constant, which, and why."""
    node.meta[_META] = note


def create_after(
    like: fx.Node, name: str, target: Callable[..., object], args: tuple[Argument, ...], note: ScaleNode
) -> fx.Node:
    """Make a call_function node right after the node `like`, with the shape, module path and source line of `like`.

    Args:
        like: the node in whose graph, and after which, the new node stands.
        name: name of the new node.
        target: the function that it calls.
        args: arguments of the call.
        note: says which pass made the node, and why.
    """
    with like.graph.inserting_after(like):
        node = like.graph.create_node("call_function", target, args, name=name)
    node.meta = {key: like.meta[key] for key in _COPIED if key in like.meta}
    set_scale_note(node, note)
    return node

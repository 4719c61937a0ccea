"""Comparing graphs of one model in two modes, and keeping their constants apart."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx


def same_graph(first: fx.Graph, second: fx.Graph) -> bool:
    """True when both graphs compute the same, node by node, names of nodes aside."""
    if len(first.nodes) != len(second.nodes):
        return False
    position: dict[fx.Node, int] = {}
    for index, (left, right) in enumerate(zip(first.nodes, second.nodes, strict=True)):
        position[left] = position[right] = index
        if (left.op, left.target) != (right.op, right.target):
            return False

        def numbered(value: Any) -> Any:
            return fx.map_arg(value, lambda node: ("node", position[node]))

        if not _equal((numbered(left.args), numbered(left.kwargs)), (numbered(right.args), numbered(right.kwargs))):
            return False
    return True


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and list(left) == list(right) and all(_equal(left[k], right[k]) for k in left)
    if left is right:
        return True
    # repr tells -0.0 from 0.0; a nan is equal to itself here.
    return type(left) is type(right) and (bool(left == right) or left != left) and repr(left) == repr(right)


def merge_constants(graph: fx.Graph, found: Mapping[str, Any], merged: MutableMapping[str, Any]) -> None:
    """Add what a graph refers to by name (constants, sub-graphs) to what the other one does; one name, one value."""
    for name, value in found.items():
        new = name
        while new in merged and not _identical(merged[new], value):
            new += "_"
        merged[new] = value
        for node in graph.nodes:
            if node.op == "get_attr" and node.target == name:
                node.target = new


def _identical(left: Any, right: Any) -> bool:
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return left is right
    return left is right or (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.device == right.device
        and left.device.type != "meta"
        and torch.equal(left, right)
    )


def at_front(graph: fx.Graph) -> AbstractContextManager[Any]:
    """Within the block, nodes are added right behind the placeholders, where any later place can use them."""
    placeholders = graph.find_nodes(op="placeholder")
    if placeholders:
        return graph.inserting_after(placeholders[-1])
    first = next(iter(graph.nodes), None)
    return graph.inserting_before(first) if first is not None else nullcontext()

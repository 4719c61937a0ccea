"""Settles what crosses the boundaries of calls of submodules in a captured graph, so that calls can stand there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import fx

from abcfx.capture.calls import ModuleCall, call_key, is_stop
from abcfx.capture.graphs import called_name

Frame: TypeAlias = tuple[tuple[str, str], ...]
"""Name of the call and path of the module, for each call that a node stands in, from the outermost on."""

# Ops that return the very tensor that they take where there is nothing to convert.
_CONVERSIONS = frozenset({"to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "cpu"})


def frame_of(node: fx.Node) -> Frame:
    """Return the calls that a node stood in when it was captured; () in the model's own forward.

    A layer that is one node of the graph stands in the calls of its caller.
    """
    frame: list[tuple[str, str]] = []
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        if path:
            again = re.search(r"@(\d+)$", key)
            earlier = int(again.group(1)) if again and not path.endswith(again.group(0)) else 0
            frame.append((call_key(path, earlier), path))
    if node.op == "call_module" and frame and frame[-1][1] == str(node.target):
        frame.pop()
    return tuple(frame)


def settled(graph: fx.Graph, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """Let nodes outside of a call read the tensor that went in, where they read a conversion within it.

    A conversion to the dtype that a tensor has, as norms begin with, returns the tensor itself. A capture cannot tell
    the two apart and lets all later ops, such as the addition of the residual stream, read the conversion's node.

    Args:
        graph: the captured graph, which is changed.
        calls: the records of calls of submodules in it.

    Returns:
        The records, with the same replacement.
    """
    by_key = {call.key: call for call in calls}
    frames = {node: frame_of(node) for node in graph.nodes}
    around = {key: frame[:depth] for frame in frames.values() for depth, (key, _) in enumerate(frame)}
    for node, frame in frames.items():
        source = _unconverted(node)
        innermost = by_key.get(frame[-1][0]) if frame else None
        if source is None or innermost is None or node in innermost.outputs:
            continue
        while is_stop(source) and frames[source][: len(frame)] == frame:
            (source,) = source.all_input_nodes
        for user in list(node.users):
            if frames[user][: len(frame)] != frame:
                user.replace_input_with(node, source)
        for key, call in by_key.items():
            if around.get(key, ())[: len(frame)] != frame:
                inputs, outputs = ([source if each is node else each for each in side] for side in _sides(call))
                by_key[key] = replace(call, inputs=tuple(inputs), outputs=tuple(outputs))
    return list(by_key.values())


def _sides(call: ModuleCall) -> tuple[tuple[fx.Node | None, ...], tuple[fx.Node | None, ...]]:
    """Return the values that go into a call, and those that come out."""
    return call.inputs, call.outputs


def _unconverted(node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor a conversion returns unchanged; None for a node that makes another tensor."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    copies = True in (*node.args, *node.kwargs.values()) or "memory_format" in node.kwargs
    if copies or called_name(node) not in _CONVERSIONS:
        return None
    given, made = source.meta.get("val"), node.meta.get("val")
    if not isinstance(given, torch.Tensor) or not isinstance(made, torch.Tensor):
        return None
    if called_name(node) == "contiguous" and not given.is_contiguous():
        return None
    is_same = (given.dtype, given.device, given.layout) == (made.dtype, made.device, made.layout)
    return source if is_same else None

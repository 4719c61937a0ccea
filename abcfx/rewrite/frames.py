"""Which call of a submodule each node of a flat graph belongs to, also for nodes that a rewrite has added."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import fx

from abcfx.capture.boundaries import frame_of
from abcfx.capture.calls import ModuleCall
from abcfx.capture.emitted import EmittedModule
from abcfx.capture.graphs import called_name, writes
from abcfx.capture.leaves import is_torch_module
from abcfx.passes import ScaleNode, scale_nodes

Frame: TypeAlias = tuple[str, ...]
"""Names of the calls that a node stands in, from the outermost to the innermost; () in the model's own forward."""

_NO_CALL = ("get_attr", "placeholder", "output")
_PLAIN = (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool, torch.device, torch.dtype)


class GraphBefore:
    """What the nodes of a graph were before a rewrite, so that the nodes which it changed can be told afterwards."""

    def __init__(self, graph: fx.Graph) -> None:
        """Keep target and arguments of every node, to compare them with those after the rewrite."""
        self._nodes = {node: (node.target, node.args, node.kwargs) for node in graph.nodes}

    def has(self, node: fx.Node) -> bool:
        """Whether a node was in the graph before the rewrite."""
        return node in self._nodes

    def changed(self, graph: fx.Graph, scales: Mapping[fx.Node, ScaleNode]) -> list[fx.Node]:
        """Return the nodes that a rewrite added or changed; to read a scaled value in place of the value is no change.

        Args:
            graph: the graph after the rewrite.
            scales: the nodes that multiply a value by a constant, with the note on each.
        """

        def unscaled(node: fx.Node) -> fx.Node:
            """Return the node whose value `node` multiplies by a constant; for any other node, the node itself."""
            while node in scales and node not in self._nodes and node.target is torch.mul:
                base = node.args[0]
                assert isinstance(base, fx.Node)
                node = base
            return node

        found = []
        for node in graph.nodes:
            now = (node.target, fx.map_arg(node.args, unscaled), fx.map_arg(node.kwargs, unscaled))
            if node not in self._nodes or now != self._nodes[node]:
                found.append(node)
        return found


class Frames:
    """The frame of every node of a graph: the names of the calls of submodules that the node runs in, outermost first.

    The graph has the operations of all submodules one by one, and a rewrite has added nodes that multiply by constants.

    Args:
        module: the module that owns the graph.
        graph: the graph, after the rewrite.
        before: what the graph was before.

    Attributes:
        of: the frame of each node that calls something; () in the model's own forward.
        calls: the record of each call of a submodule, with the values that it now takes and gives, by the call's name.
        nodes: the nodes within each call, in order.
        touched: the frames in which the rewrite added or changed nodes.
    """

    def __init__(self, module: EmittedModule, graph: fx.Graph, before: GraphBefore) -> None:
        """Find for every node the calls of submodules that it runs in, also for nodes that the rewrite added.

        `before` has the nodes and arguments from before the rewrite.
        """
        self._module = module
        self.graph = graph
        self.calls: dict[str, ModuleCall] = {call.key: call for call in module.calls_in(graph)}
        self._paths = {call.key: call.path for call in self.calls.values()}
        self.of: dict[fx.Node, Frame] = {node: self._recorded_frame(node) for node in graph.nodes}
        self._place_writes()
        scales = scale_nodes(graph)
        changed = [node for node in before.changed(graph, scales) if node.op not in _NO_CALL]
        added = [node for node in changed if node in scales and not before.has(node)]
        for node in added:
            self._place(node, scales[node])
        others = {self.of[node] for node in changed if node not in added or node.target is not torch.mul}
        for node in added:
            self._lift(node, scales[node], others)
        for node, note in scales.items():
            if note.on_result and node.target is torch.mul:
                self._follow(node)
        self.touched = {self.of[node] for node in changed}
        self.nodes: dict[str, list[fx.Node]] = {}
        for node, frame in self.of.items():
            for key in frame:
                self.nodes.setdefault(key, []).append(node)

    def path(self, key: str) -> str:
        """Return the path of the submodule that a call, given by its name, runs."""
        return self._paths[key]

    def _recorded_frame(self, node: fx.Node) -> Frame:
        """Return the names of the calls of submodules that a node ran in when it was captured, outermost first.

        A torch.nn layer that is one node counts as run by its caller.
        """
        frame = frame_of(node)
        self._paths.update(frame)
        return tuple(key for key, _ in frame)

    def _place(self, node: fx.Node, note: ScaleNode) -> None:
        """Set in `of` the calls of submodules that a node added by the rewrite runs in.

        They are those of the node that it multiplies, or of the op that reads it.

        Args:
            node: the node.
            note: says whether it multiplies the result of an op or an operand.
        """
        base = node.args[0]
        assert isinstance(base, fx.Node)
        users = [self.of[user] for user in node.users if user.op != "output"]
        frame = self.of[node]
        if node.target is torch.mul and note.on_result:
            frame = _common(users) if base.op == "get_attr" else self.of[base]
        elif node.target is torch.mul or not frame:
            frame = users[0] if users else ()
        elif base.op == "get_attr" and self.path(frame[-1]) == str(base.target):
            frame = frame[:-1]  # a function that runs an attention module, in place of the module's own call
        self.of[node] = frame

    def _lift(self, node: fx.Node, note: ScaleNode, graphed: Collection[Frame]) -> None:
        """Let a factor on what a torch.nn layer takes or gives stand outside of the layer's call.

        The layer then stays the user's own module. The factor stays within the call if the caller of the layer would
        have to become a graph for it alone.

        Args:
            node: the scale node, which multiplies by a constant.
            note: says whether it multiplies the result of an op or an operand.
            graphed: for calls whose module becomes a graph anyway, as the model itself does: the names of the calls
                around a node there.
        """
        frame = self.of[node]
        is_free = bool(frame) and node.target is torch.mul and (not frame[:-1] or frame[:-1] in graphed)
        if is_free and self._leaves_layer(node, note, frame[-1]):
            self.of[node] = frame[:-1]

    def _leaves_layer(self, node: fx.Node, note: ScaleNode, key: str) -> bool:
        """Whether a factor can stand outside of the call of a torch.nn layer; if so, the call takes the scaled value.

        Args:
            node: the scale node, which multiplies by a constant.
            note: says whether it multiplies the result of an op or an operand.
            key: name of the call.
        """
        call, base = self.calls.get(key), node.args[0]
        if call is None or not isinstance(base, fx.Node) or not is_torch_module(self._module.get_submodule(call.path)):
            return False
        if note.on_result:
            return base in call.outputs and all(user is node or key not in self.of[user] for user in base.users)
        if base not in call.inputs or any(user is not node and key in self.of[user] for user in base.users):
            return False
        inputs = tuple(node if each is base else each for each in call.inputs)
        self.calls[key] = replace(call, inputs=inputs)
        return True

    def _follow(self, node: fx.Node) -> None:
        """Replace a value by its scaled copy in the records of module calls, since the graph now reads the copy.

        Args:
            node: the scale node, which multiplies the value by a constant. Calls outside of which it stands get it as
                an argument; calls within which it stands return it.
        """
        base, frame = node.args[0], self.of[node]
        for key, call in self.calls.items():
            inside = key in frame
            swapped = [tuple(node if each is base else each for each in side) for side in (call.inputs, call.outputs)]
            if not inside and base in call.inputs:
                self.calls[key] = replace(call, inputs=swapped[0])
            if inside and base in call.outputs:
                self.calls[key] = replace(call, outputs=swapped[1])

    def _place_writes(self) -> None:
        """Let each write into a buffer at the end of the graph count as run by the call that computed the value."""
        for node in self.graph.nodes:
            target = node.args[0] if node.args else None
            if self.of[node] or called_name(node) != "copy_" or not isinstance(target, fx.Node):
                continue
            source = node.args[1]
            chain = [node]
            while isinstance(source, fx.Node) and not self.of[source] and called_name(source) == "detach":
                chain.append(source)
                source = source.args[0]
            if target.op == "get_attr" and isinstance(source, fx.Node):
                frame = self.of[source]
                while frame and not str(target.target).startswith(self.path(frame[-1]) + "."):
                    frame = frame[:-1]
                self.of.update(dict.fromkeys(chain, frame))


def is_plain(node: fx.Node) -> bool:
    """Whether the value of a node is a size, a device or the like and no tensor."""
    if "val" in node.meta:
        return isinstance(node.meta["val"], _PLAIN)
    # Operations on sizes alone that a capture has added.
    return node.op == "call_function" and bool(node.all_input_nodes) and all(map(is_plain, node.all_input_nodes))


def attribute_of(node: fx.Node) -> fx.Node | None:
    """Return the get_attr node whose tensor a node gives: itself, or what an op in place wrote into; else None."""
    while node.op in ("call_function", "call_method"):
        source = node.args[0] if node.args else None
        if not writes(node) or not isinstance(source, fx.Node):
            return None
        node = source
    return node if node.op == "get_attr" else None


def _common(frames: list[Frame]) -> Frame:
    """Return the calls that all of several nodes run in, from the outermost on.

    `frames` has for each node the names of the calls that it runs in.
    """
    shared: list[str] = []
    for keys in zip(*frames, strict=False):
        if len(set(keys)) > 1:
            break
        shared.append(keys[0])
    return tuple(shared)

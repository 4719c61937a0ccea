"""Copy an exported graph onto the model's own names.

Parameters are found by identity, torch.no_grad regions are written out in place, and the device is left open.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import fx, nn
from torch.fx.node import Argument

from abcfx.capture.calls import Place, is_mark, mark_stop, marked_values
from abcfx.errors import CaptureError

# torch.export called the model as the submodule with this name of a wrapper.
WRAPPED = "model"


class Rebuild:
    """A copy of an exported graph that refers to parameters and modules by the names that the model has for them.

    Args:
        model: the model that was exported.
        exported: the module that torch.export made of it.
        slots: names for the placeholders, in order.

    Attributes:
        graph: the new graph.
        found: by name, tensors and sub-graphs that the graph refers to and that the model does not hold.
        marked: the nodes whose values enter or leave a submodule, by (number of its call, whether it comes out, index).
    """

    def __init__(self, model: nn.Module, exported: fx.GraphModule, slots: Sequence[str]) -> None:
        """Copy the exported graph, with the model's own names for parameters and modules.

        `slots` are names for the placeholders, in order.
        """
        self.model = model
        self.names = {id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
        self.graph = fx.Graph()
        self.found: dict[str, object] = {}
        self.marked: dict[Place, fx.Node] = {}
        copies: dict[fx.Node, fx.Node] = {}
        for node, slot in zip(exported.graph.find_nodes(op="placeholder"), slots, strict=True):
            copies[node] = self.graph.placeholder(slot)
            copies[node].meta = dict(node.meta)
        results = self._transfer(exported, copies)
        self.graph.output(fx.map_arg(results, lambda node: copies[node]))
        self._free_the_device()
        self.graph.lint()

    def _transfer(self, owner: fx.GraphModule, copies: dict[fx.Node, fx.Node]) -> Argument:
        """Copy every node of a graph but placeholders and output, and return the argument of the output node.

        Args:
            owner: the exported module whose graph is copied.
            copies: the new node of each old one; those of the placeholders are given, the others are added.
        """
        for node in owner.graph.nodes:
            if node.op == "output":
                return cast("Argument", node.args[0])
            if is_mark(node):
                self.marked |= {place: copies[value] for place, value in marked_values(node).items()}
            if node in copies or is_mark(node) or _is_bookkeeping(node):
                continue
            if _is_grad_region(node):
                self._inline(owner, node, copies)
                continue
            copies[node] = self._copy(node, copies)
            if node.op == "get_attr":
                self._resolve(copies[node], owner)
        raise CaptureError("the exported graph has no output")

    def _copy(self, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """Return a copy of one node, with arguments mapped to new nodes by `copies`.

        Its module paths leave out the wrapper that is around the model for the export.
        """
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: copies[each])
        name = node.name.removeprefix(WRAPPED + "_")
        new = self.graph.create_node(node.op, node.target, args, kwargs, name, node.type)
        new.meta = dict(node.meta)
        stack = node.meta.get("nn_module_stack")
        if stack is not None:
            new.meta["nn_module_stack"] = own_stack(stack)
        return new

    def _resolve(self, node: fx.Node, owner: fx.GraphModule) -> None:
        """Point a get_attr node at the model's own name for its tensor, which is found by identity if it is tied.

        `owner` is the exported module whose graph has the node. A value that the model does not hold goes to `found`
        under a new name.
        """
        target = str(node.target)
        own = target.removeprefix(WRAPPED + ".")
        mine, given = _lookup(self.model, own), _lookup(owner, target)
        if isinstance(mine, torch.Tensor):
            node.target = self.names.get(id(mine), own)
        elif id(given) in self.names:
            node.target = self.names[id(given)]
        else:
            name = "_" + own.replace(".", "_")
            while name in self.found and self.found[name] is not given:
                name += "_"
            self.found[name] = given
            node.target = name

    def _inline(self, owner: fx.GraphModule, region: fx.Node, copies: dict[fx.Node, fx.Node]) -> None:
        """Write a torch.no_grad region out in place; its inputs are detached, which stops the same gradients.

        Args:
            owner: the exported module that holds the region's subgraph.
            region: the node that calls the subgraph.
            copies: the new node of each old one; those of the region's results are added.
        """
        enabled, body, *inputs = region.args
        assert isinstance(body, fx.Node)
        inside = _lookup(owner, str(body.target))
        assert isinstance(inside, fx.GraphModule)
        if enabled:
            raise CaptureError("forward turns gradients on where they were off, which an exported graph cannot keep")
        inner: dict[fx.Node, fx.Node] = {}
        outer: dict[fx.Node, fx.Node] = {}
        for placeholder, given in zip(inside.graph.find_nodes(op="placeholder"), inputs, strict=True):
            assert isinstance(given, fx.Node)
            outer[placeholder] = copies[given]
            inner[placeholder] = self._detached(copies[given], region)
        results = cast("Sequence[fx.Node]", self._transfer(inside, inner))
        for user in region.users:
            # Results leave a region through a getitem of its tuple. One that is an input is that input, not detached.
            result = results[cast("int", user.args[1])]
            copies[user] = outer.get(result, inner[result])

    def _detached(self, node: fx.Node, region: fx.Node) -> fx.Node:
        """Add a detach of a node that enters a torch.no_grad region; return the node itself if it has no gradient."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
            return node
        detached = self.graph.call_function(torch.ops.aten.detach.default, (node,))
        detached.meta = dict(node.meta)
        detached.meta["nn_module_stack"] = own_stack(region.meta.get("nn_module_stack", {}))
        detached.meta["stack_trace"] = region.meta.get("stack_trace", "")
        mark_stop(detached)
        return detached

    def _free_the_device(self) -> None:
        """Make the captured graph independent of the device on which the model was exported.

        In arguments of nodes, such as `.to(device)`, that device is replaced by the device of the first input.
        """
        placeholders = self.graph.find_nodes(op="placeholder")
        inputs = [node for node in placeholders if isinstance(node.meta.get("val"), torch.Tensor)]
        device = inputs[0].meta["val"].device if inputs else None
        uses = [node for node in self.graph.nodes if node.op == "call_function" and device in _devices(node)]
        if device is None or not uses:
            return
        with self.graph.inserting_after(placeholders[-1]):
            free = self.graph.call_function(getattr, (inputs[0], "device"))
        free.meta["val"] = device
        for node in uses:
            node.args = tuple(free if value == device else value for value in node.args)
            node.kwargs = {key: free if value == device else value for key, value in node.kwargs.items()}


def own_stack(stack: Mapping[str, tuple[str, object]]) -> dict[str, tuple[str, object]]:
    """Return an exported `nn_module_stack` with paths of the model instead of the wrapper around it."""
    return {
        key: (path.removeprefix(WRAPPED).removeprefix("."), kind)
        for key, (path, kind) in stack.items()
        if path.split(".")[0] == WRAPPED
    }


def _devices(node: fx.Node) -> list[torch.device]:
    """Return the torch devices among the arguments of a node."""
    return [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, torch.device)]


def _is_grad_region(node: fx.Node) -> bool:
    """Whether a node calls the subgraph of a torch.no_grad or torch.enable_grad region."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "wrap_with_set_grad_enabled"


def _is_bookkeeping(node: fx.Node) -> bool:
    """Whether a node of an exported graph is left out of the copy, since it computes no value of the model.

    These are guards (kept apart), parameters that nobody reads, bodies that get inlined, and checks that dtypes are as
    they were, which would refuse autocast although the model itself allows it.
    """
    if node.op == "get_attr":
        return all(_is_grad_region(user) and user.args[1] is node for user in node.users)
    return node.target in ("_guards_fn", torch.ops.aten._assert_tensor_metadata.default)


def _lookup(owner: object, path: str) -> object:
    """Return the attribute at a dotted path below an object; None if there is none."""
    try:
        found: object = operator.attrgetter(path)(owner)
    except AttributeError:
        return None
    return found

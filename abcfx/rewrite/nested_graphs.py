"""Splits a flat graph into one graph for each module that needs one, whose nodes call the model's other modules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import torch
from torch import fx, nn
from torch.fx.node import Argument

from abcfx.capture.calls import ModuleCall, expression_of, is_stop, without_gradients, without_stops
from abcfx.capture.codegen import SignatureCodeGen, call_signature
from abcfx.capture.graphs import as_argument, at_front, same_graph
from abcfx.capture.signature import call_signature_of
from abcfx.capture.structure import Value, is_native, put_together, steps_to_values
from abcfx.rewrite.frames import Frames, attribute_of, is_plain


class CannotCall(Exception):
    """The error that a graph cannot call some modules, so that their nodes belong into the graph of their caller.

    Attributes:
        reasons: why, by the path of the module.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(str(dict(reasons)))
        self.reasons = dict(reasons)


class NestedGraphs:
    """The graphs of some modules of a model in one mode, made of one flat graph, which has all operations one by one.

    Args:
        model: the model, whose modules the graphs call.
        frames: the flat graph, with the calls of submodules that each of its nodes runs in.
        graphed: paths of the modules that get a graph; the model itself always does.
        inlined: paths of the modules that no graph calls: their nodes stand in the graph of their caller.
    """

    def __init__(self, model: nn.Module, frames: Frames, graphed: Collection[str], inlined: Collection[str]) -> None:
        """Prepare to make graphs of the modules whose paths are in `graphed`; those in `inlined` are never called.

        `frames` has the flat graph (all operations one by one), with the calls of submodules that each node runs in.
        """
        self._model = model
        self.frames = frames
        self._graphed = graphed
        self._inlined = inlined
        self._names: dict[str, dict[int, str]] = {}  # names below each module, by the ids of what they name
        self._position = {node: index for index, node in enumerate(frames.graph.nodes)}

    def root(self) -> fx.Graph:
        """Return the graph of the model itself.

        Raises:
            CannotCall: modules that it would call cannot be called by a graph; says why.
        """
        old = self.frames.graph
        building = _Building(self, "", (), list(old.nodes))
        for node in old.find_nodes(op="placeholder"):
            building.values[node] = new = building.graph.placeholder(str(node.target))
            new.meta = dict(node.meta)
        building.run()
        output = old.output_node()
        building.graph.output(fx.map_arg(output.args[0], building.get))
        building.graph.set_codegen(SignatureCodeGen(call_signature(old)))
        return building.finished()

    def of_module(self, path: str) -> fx.Graph | None:
        """Return the graph of a module, which all its calls share; None if the flat graph never calls it.

        The flat graph has all operations of the model one by one.

        Raises:
            CannotCall: the graph of a caller cannot hold a call of this module or of one inside it; says why.
        """
        calls = [call for call in self.frames.calls.values() if call.path == path and call.key in self.frames.nodes]
        graphs = [self._of_call(call) for call in calls]
        for other in graphs[1:]:
            if not same_graph(graphs[0], other) or not _same_signature(graphs[0], other):
                raise CannotCall({path: "its calls differ from each other"})
        return graphs[0] if graphs else None

    def _of_call(self, call: ModuleCall) -> fx.Graph:
        """Return the graph of a module as one of its calls runs it, made of the whole model's nodes."""
        nodes = self.frames.nodes[call.key]
        depth = self.frames.of[nodes[0]].index(call.key) + 1
        building = _Building(self, call.path, self.frames.of[nodes[0]][:depth], nodes)
        module = self._model.get_submodule(call.path)
        values = _known(call.inputs, call.path)
        args, kwargs = _arguments(call, values)
        signature, slots = call_signature_of(module, args, kwargs, fx.Node)
        for name in signature.slots:
            old = slots[name]
            assert isinstance(old, fx.Node)
            new = building.graph.placeholder(name)
            new.meta = dict(old.meta)
            building.values.setdefault(building.seen(old), new)
        building.run()
        outputs = tuple(map(building.get, _known(call.outputs, call.path)))
        plain = call.result == Value(0)
        building.graph.output(outputs[0] if plain else outputs)
        building.graph.set_codegen(SignatureCodeGen(signature if plain else signature.with_output(call.result)))
        return building.finished()

    def called(self, node: fx.Node, frame: tuple[str, ...]) -> str | None:
        """Return the name of the call by which a module's graph runs a node; None for a node of the graph itself.

        Args:
            node: a node of the flat graph, which has all operations one by one.
            frame: names of the calls of submodules that the module itself runs in, outermost first.
        """
        inner = self.frames.of[node][len(frame) :]
        return next((key for key in inner if self.frames.path(key) not in self._inlined), None)

    def refusal(self, key: str, owner: str) -> str:
        """Return why the graph of a module cannot make a call; "" if it can.

        Args:
            key: name of the call.
            owner: path of the module whose graph would make it.
        """
        call = self.frames.calls.get(key)
        if call is None:
            return "what it takes and gives was not recorded"
        nodes = self.frames.nodes[key]
        inside = set(nodes)
        first = self._position[nodes[0]]
        seen = without_stops if self.is_silent(self.frames.of[nodes[0]]) else _itself
        given = {seen(value) for value in call.inputs if value is not None}
        for node in nodes:
            for source in map(seen, node.all_input_nodes):
                if source not in inside and not _reachable(source) and source not in given:
                    return f"it reads a value that is not among its arguments ({source.name})"
            is_result = node in call.outputs or _reachable(node)
            if not is_result and any(user not in inside for user in node.users):
                return f"a value from within it is used outside ({node.name})"
        for value in call.inputs:
            if value is None:
                return "one of its arguments is no value of the graph"
            if value.op not in ("get_attr", "placeholder") and self._position.get(value, -1) > first:
                return "one of its arguments is made after its first operation"
        if self.relative(call.path, owner) is None:
            return f"{owner} has no name for it"
        if any(not each.startswith(f"{call.path}.") for each in self._graphed_within(key)):
            return "a module that it calls is none of its own"
        return "" if is_native(call.given) else "it takes arguments that a graph cannot hold"

    def is_silent(self, frame: Sequence[str]) -> bool:
        """Whether one of the calls of a frame is made in a `torch.no_grad` block, so that no graph within need stop
        gradients.
        """
        return any(key in self.frames.calls and self.frames.calls[key].is_silent for key in frame)

    def _graphed_within(self, key: str) -> set[str]:
        """Return the paths of the modules with a graph of their own that run within the call of the name `key`."""
        found = set[str]()
        for node in self.frames.nodes[key]:
            frame = self.frames.of[node]
            found.update(self.frames.path(inner) for inner in frame[frame.index(key) + 1 :])
        return found & set(self._graphed)

    def relative(self, name: str, owner: str) -> str | None:
        """Return the name, below a module, of a tensor or submodule of the model; None if the module does not hold it.

        Args:
            name: its name in the model.
            owner: path of the module.
        """
        if not owner:
            return name
        if name.startswith(f"{owner}."):
            return name.removeprefix(f"{owner}.")
        if owner not in self._names:
            module = self._model.get_submodule(owner)
            named = (
                *module.named_modules(remove_duplicate=False),
                *module.named_parameters(remove_duplicate=False),
                *module.named_buffers(remove_duplicate=False),
            )
            self._names[owner] = {id(each): inner for inner, each in reversed(named)}
        try:
            held: object = operator.attrgetter(name)(self._model)
        except AttributeError:  # a constant of the flat graph, which each graph that reads it holds under that name
            return None if hasattr(self._model.get_submodule(owner), name) else name
        return self._names[owner].get(id(held))


class _Building:
    """The graph of one module while it is made of nodes of the flat graph, which has all operations one by one.

    Args:
        nested: knows the flat graph.
        owner: path of the module.
        frame: names of the calls of submodules that the module runs in, outermost first.
        nodes: the nodes of the flat graph that run within the module, in order.
    """

    def __init__(self, nested: NestedGraphs, owner: str, frame: tuple[str, ...], nodes: Sequence[fx.Node]) -> None:
        """Start with an empty graph for the module at the path `owner`, of the nodes that run within it.

        `frame` has the names of the calls of submodules that the module runs in; `nested` knows the whole model's
        graph.
        """
        self._nested = nested
        self._frames = nested.frames
        self._owner = owner
        self._frame = frame
        self._nodes = nodes
        self._is_silent = nested.is_silent(frame)
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self._results: dict[fx.Node, tuple[fx.Node, Sequence[tuple[Callable[..., object], object]]]] = {}

    def run(self) -> None:
        """Add a copy of each node of the module's own forward, and one node for each call of another module.

        Raises:
            CannotCall: some of these modules cannot be called; says why.
        """
        own = [node for node in self._nodes if node.op not in ("get_attr", "placeholder", "output")]
        own = [node for node in own if self.seen(node) is node]
        called = {node: self._nested.called(node, self._frame) for node in own}
        keys = dict.fromkeys(key for key in called.values() if key is not None)
        refused = {key: self._nested.refusal(key, self._owner) for key in keys}
        if any(refused.values()):
            raise CannotCall({self._frames.path(key): reason for key, reason in refused.items() if reason})
        done = set[str]()
        for node in own:
            key = called[node]
            if key is None:
                # A size made of others is computed where it is needed: some of the others the module may never see.
                if not (node.all_input_nodes and all(map(is_plain, (node, *node.all_input_nodes)))):
                    self.values[node] = self._copy(node)
            elif key not in done:
                done.add(key)
                self._call(self._frames.calls[key], node)

    def seen(self, node: fx.Node) -> fx.Node:
        """Return the node that is read here in the place of a node of the flat graph: stops of gradients are not
        needed in a graph that runs under `torch.no_grad`.
        """
        return without_stops(node) if self._is_silent else node

    def get(self, node: fx.Node) -> fx.Node:
        """Return the node of this module's graph that gives the value of a node of the whole model's graph.

        Raises:
            CannotCall: the value is neither computed within the module nor among its arguments.
        """
        node = self.seen(node)
        if node in self.values:
            return self.values[node]
        if (attribute := attribute_of(node)) is not None:
            new = self._attribute(attribute)
        elif node in self._results:
            new = self._taken(node)
        elif is_plain(node) and node.op in ("call_function", "call_method"):
            new = self._size(node)
        else:
            raise CannotCall({self._owner: f"it reads {node.name}, which is not among its arguments"})
        self.values[node] = new
        return new

    def finished(self) -> fx.Graph:
        """Drop what nothing reads of what `torch.no_grad` needed, check the finished graph, and return it."""
        for node in reversed(list(self.graph.nodes)):
            # Stops of gradients on weights of modules that are called under `torch.no_grad`.
            if not node.users and (node.op == "get_attr" or is_stop(node)):
                self.graph.erase_node(node)
        self.graph.lint()
        return self.graph

    def _copy(self, node: fx.Node) -> fx.Node:
        """Copy a node of the whole model's graph into this module's graph, and return the copy."""
        target = node.target if node.op != "call_module" else self._name(str(node.target))
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.get)
        new = self.graph.create_node(node.op, target, args, kwargs, node.name, node.type)
        new.meta = dict(node.meta)
        return new

    def _call(self, call: ModuleCall, first: fx.Node) -> None:
        """Add a node that calls a module, and keep for `_taken` where in the module's result each value is found.

        Args:
            call: the call.
            first: the first node of the whole model's graph within it, whose module path the call gets.
        """
        stops = call.is_silent and not self._is_silent
        inputs = [self.get(without_stops(value) if stops else value) for value in _known(call.inputs, self._owner)]
        args, kwargs = cast("tuple[tuple[Argument, ...], dict[str, Argument]]", _arguments(call, inputs))
        name = self._name(call.path)
        if stops:
            args = (self.graph.get_attr(name), *args)
            new = self.graph.call_function(without_gradients, args, kwargs)
        else:
            new = self.graph.call_module(name, args, kwargs)
        stack = first.meta.get("nn_module_stack") or {}
        depth = self._frames.of[first].index(call.key)
        new.meta["nn_module_stack"] = dict(list(stack.items())[: depth + (len(stack) > len(self._frames.of[first]))])
        inside = set(self._frames.nodes[call.key])
        for value, steps in zip(call.outputs, steps_to_values(call.result), strict=True):
            if value in inside and steps is not None:
                assert value is not None
                if not steps:
                    new.meta.update({key: value.meta[key] for key in ("val", "tensor_meta") if key in value.meta})
                self._results.setdefault(value, (new, steps))

    def _taken(self, node: fx.Node) -> fx.Node:
        """Return a node that takes a value out of what a called module returned.

        `node` gives that value in the graph of the whole model.
        """
        new, steps = self._results[node]
        for function, key in steps:
            new = self.graph.call_function(function, (new, as_argument(key)))
        if steps:
            new.meta = dict(node.meta)
        return new

    def _attribute(self, node: fx.Node) -> fx.Node:
        """Return a node that reads a tensor of the model, by its name below the module."""
        with at_front(self.graph):
            new = self.graph.get_attr(self._name(str(node.target)))
        new.meta = dict(node.meta)
        return new

    def _name(self, name: str) -> str:
        """Return the name, below the module, of a tensor or submodule of the model; constants of graphs keep theirs.

        Raises:
            CannotCall: the module does not hold it.
        """
        found = self._nested.relative(name, self._owner)
        if found is None:
            raise CannotCall({self._owner: f"it reads {name}, which it does not hold"})
        return found

    def _size(self, node: fx.Node) -> fx.Node:
        """Return a node that computes a size, or asks for a device, again, from values that the module has."""
        if node.target is getattr and node.args[1] == "device":
            for old, new in list(self.values.items()):
                if isinstance(held := old.meta.get("val"), torch.Tensor) and held.device == node.meta["val"]:
                    return self.graph.call_function(getattr, (new, "device"))
        wanted = expression_of(node.meta.get("val"))
        for old, new in list(self.values.items()):
            held = old.meta.get("val")
            shape = held.shape if isinstance(held, torch.Tensor) else ()
            for dim, size in enumerate(shape):
                if expression_of(size) == wanted:
                    found = self.graph.call_function(torch.ops.aten.sym_size.int, (new, dim))
                    found.meta = dict(node.meta)
                    return found
        return self._copy(node)


def _itself(node: fx.Node) -> fx.Node:
    """Return a node unchanged."""
    return node


def _arguments(call: ModuleCall, values: Sequence[object]) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the positional and keyword arguments of a call, with the given values in the place of the traced ones."""
    args, kwargs = cast("tuple[tuple[object, ...], dict[str, object]]", put_together(call.given, values))
    return args, kwargs


def _reachable(node: fx.Node) -> bool:
    """Whether any module can have the value of a node without an argument: tensors of the model, and sizes."""
    return attribute_of(node) is not None or is_plain(node)


def _known(values: Sequence[fx.Node | None], path: str) -> list[fx.Node]:
    """Return the graph nodes of the values that a call of the module at `path` takes or gives.

    Raises:
        CannotCall: the node of some value is not known, so that no graph can call the module.
    """
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        raise CannotCall({path: "one of its arguments or results is no value of the graph"})
    return found


def _same_signature(first: fx.Graph, second: fx.Graph) -> bool:
    """Whether two graphs of a module take and return the same kinds of values."""
    left, right = (call_signature(graph) for graph in (first, second))
    return left.arguments == right.arguments and left.output == right.output

"""Records how a captured model calls its submodules: what goes in and comes out, and which graph nodes give it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx, nn

from abcfx.capture.structure import Part, take_apart

# What a mark in an exported graph says of a tensor: the number of the call, whether the tensor comes out of it, and its
# index among the tensors that go in, or come out.
Place: TypeAlias = tuple[int, bool, int]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a submodule, as the captured graph has it.

    Attributes:
        key: name of the call: the path of the module, with "@1" for its second call, "@2" for the third.
        path: path of the module.
        given: how the arguments `(args, kwargs)` are built of the values in `inputs`.
        inputs: the graph node of each tensor or size among the arguments; None where it is not known.
        result: how the output is built of the values in `outputs`.
        outputs: the graph node of each tensor or size in the output; None where it is not known.
        is_silent: whether the call stood in a `torch.no_grad` block of its caller.
    """

    key: str
    path: str
    given: Part
    inputs: tuple[fx.Node | None, ...]
    result: Part
    outputs: tuple[fx.Node | None, ...]
    is_silent: bool = False


def call_key(path: str, earlier: int) -> str:
    """Return the name of a call of the module at a path, which was called so many times before."""
    return f"{path}@{earlier}" if earlier else path


def recorded(
    key: str,
    path: str,
    call: Callable[..., object],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    node_of: Callable[[object], fx.Node | None],
    calls: list[ModuleCall],
    *,
    is_silent: bool = False,
) -> object:
    """Run a call of a submodule during a capture, and add a record of it to `calls`; return what it returns.

    Args:
        key: name of the call.
        path: path of the module.
        call: runs the module.
        args: its positional arguments.
        kwargs: its keyword arguments.
        node_of: returns the graph node of a traced value.
        calls: the records so far; grows.
        is_silent: whether the call stands in a `torch.no_grad` block.
    """
    values, given = take_apart((args, dict(kwargs)))
    inputs = tuple(map(node_of, values))
    out = call(*args, **kwargs)
    results, result = take_apart(out)
    calls.append(ModuleCall(key, path, given, inputs, result, tuple(map(node_of, results)), is_silent))
    return out


# Mark, in the meta data of a node, of a detach that a capture adds in place of a `torch.no_grad` block.
_STOP = "abcfx_no_grad"


def mark_stop(node: fx.Node) -> None:
    """Note that a node, a detach, was added by a capture since the op that reads it runs under `torch.no_grad`."""
    node.meta[_STOP] = True


def is_stop(node: fx.Node) -> bool:
    """Whether a capture added a node, a detach, since the op that reads it runs under `torch.no_grad`."""
    return _STOP in node.meta


def without_stops(node: fx.Node) -> fx.Node:
    """Return the node whose value is detached, if captures added the node as a detach; else the node itself."""
    while is_stop(node):
        (node,) = node.all_input_nodes
    return node


def without_gradients(module: nn.Module, *args: object, **kwargs: object) -> object:
    """Call a module under `torch.no_grad`, as a graph does that has a call from such a block of the user's forward."""
    with torch.no_grad():
        result: object = module(*args, **kwargs)
        return result


_LIBRARY = torch.library.Library("abcfx", "DEF")
_LIBRARY.define("boundary(Tensor[] values, int call, bool comes_out) -> ()")


def _nothing(values: Sequence[torch.Tensor], call: int, comes_out: bool) -> None:
    """Do nothing: this is the op whose calls stand in exported graphs only to mark tensors.

    Args:
        values: the tensors.
        call: number of the call of a submodule that they belong to.
        comes_out: True if they are its output, False if they are its arguments.
    """


_LIBRARY.impl("boundary", _nothing, "CompositeExplicitAutograd")
_BOUNDARY = torch.ops.abcfx.boundary.default
fx.node.has_side_effect(_BOUNDARY)


def is_mark(node: fx.Node) -> bool:
    """Whether a node of an exported graph only marks values that enter or leave a submodule."""
    return node.target is _BOUNDARY


def marked_values(node: fx.Node) -> dict[Place, fx.Node]:
    """Return the nodes whose values a mark in an exported graph names as entering or leaving a submodule.

    The keys are (number of the submodule's call, True for its output and False for its arguments, index of the tensor).
    """
    values, call, comes_out = node.args
    assert isinstance(values, list | tuple) and isinstance(call, int) and isinstance(comes_out, bool)
    return {(call, comes_out, index): value for index, value in enumerate(values) if isinstance(value, fx.Node)}


class MarkedCalls:
    """Marks, in a graph that torch.export makes, every tensor that enters or leaves a submodule.

    Args:
        model: the model whose submodules are watched.

    Attributes:
        failed: whether an error came out of a mark, so that an export without marks may succeed.
    """

    def __init__(self, model: nn.Module) -> None:
        """Prepare to watch calls of the model's submodules, from the next `start` on."""
        self._model = model
        self.failed = False
        self.start()

    def start(self) -> None:
        """Forget the calls so far: the model's forward starts anew."""
        self._counts: Counter[str] = Counter()
        self._calls: list[tuple[str, str, Part, Sequence[object], bool]] = []
        self._with_gradients = torch.is_grad_enabled()
        self._results: dict[int, tuple[Part, Sequence[object]]] = {}
        self._open: list[int] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Mark values within the block, by hooks on the submodules that come before and after all of the user's."""
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                if not path:
                    continue
                before = module.register_forward_pre_hook(self._entering(path), with_kwargs=True, prepend=True)
                after = module.register_forward_hook(self._leaving(path), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _entering(self, path: str) -> Callable[..., None]:
        """Return a hook for the module at a path, run before forward, that marks the start of its call in the graph."""

        def hook(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            """Mark in the graph the tensors among the arguments of a submodule, whose call begins."""
            values, given = take_apart((args, dict(kwargs)))
            number = len(self._calls)
            is_silent = self._with_gradients and not torch.is_grad_enabled()
            self._calls.append((call_key(path, self._counts[path]), path, given, _sizes(values), is_silent))
            self._counts[path] += 1
            self._open.append(number)
            self._mark(values, number, comes_out=False)

        return hook

    def _leaving(self, path: str) -> Callable[..., None]:
        """Return a hook for the module at a path, run after forward, that marks the end of its call in the graph."""

        def hook(module: nn.Module, args: object, kwargs: object, output: object) -> None:
            """Mark in the graph the tensors in the output of a submodule, whose call ends."""
            values, result = take_apart(output)
            number = self._open.pop()
            self._results[number] = result, _sizes(values)
            self._mark(values, number, comes_out=True)

        return hook

    def _mark(self, values: Sequence[object], call: int, *, comes_out: bool) -> None:
        """Call, on the tensors among these values, the op that marks them in the graph which torch.export makes.

        Args:
            values: the arguments or the output of a submodule, flattened.
            call: number of the submodule's call.
            comes_out: True for the output, False for the arguments.
        """
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if not tensors:
            return
        try:
            _BOUNDARY(tensors, call, comes_out)
        except Exception:  # torch.export may refuse the op anywhere, with any error; it is noted and goes on
            self.failed = True
            raise

    def calls(self, graph: fx.Graph, marked: Mapping[Place, fx.Node]) -> tuple[ModuleCall, ...]:
        """Return a record of each call of a submodule that has ended, with the graph nodes of inputs and output.

        Args:
            graph: the exported graph, in which nodes that give sizes are looked up.
            marked: what `marked_values` found on all marks of the graph.
        """
        sizes = {expression_of(node.meta.get("val")): node for node in graph.nodes}

        def nodes(number: int, values: Sequence[object], *, comes_out: bool) -> tuple[fx.Node | None, ...]:
            """Return the graph node of each value that enters or leaves a submodule's call; None where it is unknown.

            Args:
                number: number of the call.
                values: the sizes among these values, with None in the place of tensors.
                comes_out: True for the output of the call, False for its arguments.
            """
            tensors = itertools.count()
            return tuple(
                marked.get((number, comes_out, next(tensors))) if value is None else sizes.get(expression_of(value))
                for value in values
            )

        found = []
        for number, (key, path, given, values, is_silent) in enumerate(self._calls):
            if number in self._results:
                result, results = self._results[number]
                inputs, outputs = nodes(number, values, comes_out=False), nodes(number, results, comes_out=True)
                found.append(ModuleCall(key, path, given, inputs, result, outputs, is_silent))
        return tuple(found)


def expression_of(size: object) -> object:
    """Return the symbolic expression of a traced size, which can be compared without a guard.

    An object that equals nothing stands for other values.
    """
    return size.node.expr if isinstance(size, torch.SymInt) else object()


def _sizes(values: Sequence[object]) -> Sequence[object]:
    """Return the values that enter or leave a submodule, with None in the place of tensors, which marks name.

    A mark is an op in the exported graph that only names the tensors that enter or leave a submodule.
    """
    return [None if isinstance(value, torch.Tensor) else value for value in values]

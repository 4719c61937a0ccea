"""Write down a run of a model as the list of its aten calls, each with the module that made it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from abcfx.capture.codegen import signature_of_graph
from abcfx.capture.dispatch import AtenOp, CallWatcher
from abcfx.capture.emitted import EmittedModule
from abcfx.capture.fake import off_meta, replace_weights
from abcfx.capture.patches import as_if_exporting, conversions_that_change_nothing
from abcfx.capture.state import contents_preserved, preserved, quiet_torch
from abcfx.support import trees
from abcfx.support.location import module_path
from abcfx.support.running import preserved_rng
from abcfx.support.undo import one_at_a_time

_aten = torch.ops.aten
_COPIES = frozenset({_aten.clone.default, _aten.detach.default, _aten.alias.default, _aten.lift_fresh.default})


@dataclass(frozen=True)
class Ref:
    """A stand-in for a tensor of a run: its number in the order in which the run's tensors were first seen."""

    index: int


@dataclass(frozen=True)
class Call:
    """One call of an aten op during a run of a model, without its tensors.

    Attributes:
        op: the overload that was called, such as `aten.add.Tensor`.
        args: positional arguments, with a Ref in the place of each tensor.
        kwargs: keyword arguments, with a Ref in the place of each tensor.
        results: the result of the call, with a Ref in the place of each tensor.
        path: path of the module whose forward made the call; "" is the model itself.
    """

    op: AtenOp
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    results: object
    path: str

    @property
    def name(self) -> str:
        """The name of the called op without namespace and overload: "add_" for `aten.add_.Tensor`."""
        return str(self.op._schema.name.split("::")[-1])

    @property
    def inputs(self) -> list[Ref]:
        """The tensors among the arguments of the call, in order, as `Ref`s (their numbers in the run)."""
        return trees.leaves_of(Ref, (self.args, dict(self.kwargs)))

    @property
    def outs(self) -> list[Ref]:
        """The tensors among the results of the call, in order, as `Ref`s (their numbers in the run)."""
        return trees.leaves_of(Ref, self.results)

    def argument(self, name: str, default: object = None) -> Any:
        """Return the call's argument that the op's schema calls `name`, or `default` where that argument is None.

        Raises:
            KeyError: the schema has no such argument.
        """
        for index, declared in enumerate(self.op._schema.arguments):
            if declared.name == name:
                given = self.args[index] if index < len(self.args) else self.kwargs.get(name, declared.default_value)
                return default if given is None else given
        raise KeyError(name)


@dataclass
class Trace:
    """The aten calls of one run of a model, in which a `Ref` (the number of a tensor) stands for each tensor.

    Attributes:
        calls: the calls in order.
        shapes: shape of every tensor, by the index of its Ref.
        dtypes: dtype of every tensor, by the index of its Ref.
        parameters: Ref of each parameter, by the parameter's name.
        buffers: Ref of each buffer, by the buffer's name.
        outputs: Refs of the tensors that the model returned.
        values: for every call a list of copies of the tensors that it returned, with None for those computed from
            weights alone; None in place of all if no values were asked for.
    """

    calls: list[Call] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    parameters: dict[str, Ref] = field(default_factory=dict)
    buffers: dict[str, Ref] = field(default_factory=dict)
    outputs: list[Ref] = field(default_factory=list)
    values: list[list[torch.Tensor | None]] | None = None


class CallLogger(CallWatcher):
    """A torch mode that writes every aten call within its `with` block into a `Trace`.

    Args:
        model: the model that will run; its parameters and buffers are the first tensors of the trace.
        values: keep copies of the tensors that calls return.
        copies: write copies (clone, detach, alias) down as calls. Otherwise a copy counts as the tensor that was
            copied: whether a view has to copy depends on sizes, so that traces of a model in two sizes would differ.

    Attributes:
        trace: the calls so far.
        paths: a stack of module paths, whose last one is the module that runs now.
    """

    def __init__(self, model: nn.Module, *, values: bool = False, copies: bool = False) -> None:
        """Start an empty trace whose first tensors are the model's parameters and buffers.

        Args:
            model: the model that will run.
            values: keep copies of the tensors that calls return.
            copies: write copies (clone, detach) down as calls, and not as the tensor that is copied.
        """
        super().__init__()
        self.trace = Trace(values=[] if values else None)
        self.paths = [""]
        self._copies = frozenset() if copies else _COPIES
        # The tensors are kept, so that no id comes twice.
        self._seen: dict[int, tuple[Ref, torch.Tensor]] = {}
        self.trace.parameters = {name: self.ref(parameter) for name, parameter in model.named_parameters()}
        self.trace.buffers = {name: self.ref(buffer) for name, buffer in model.named_buffers()}
        self._of_weights = set(range(len(self.trace.shapes)))

    def ref(self, tensor: torch.Tensor) -> Ref:
        """Return the number of a tensor as a `Ref`; a tensor that was not seen before gets the next number."""
        known = self._seen.get(id(tensor))
        if known is None:
            known = self._seen[id(tensor)] = Ref(len(self.trace.shapes)), tensor
            self.trace.shapes.append(tuple(tensor.shape))
            self.trace.dtypes.append(tensor.dtype)
        return known[0]

    def refs(self, value: object) -> object:
        """Return an argument or a result of an aten call with a `Ref` (a number) in the place of each tensor.

        Such values hold tuples, lists and dicts only, for which this recursion is several times as fast as a map of a
        pytree.
        """
        if isinstance(value, torch.Tensor):
            return self.ref(value)
        if isinstance(value, tuple):
            return tuple(map(self.refs, value))
        if isinstance(value, list):
            return list(map(self.refs, value))
        return {key: self.refs(each) for key, each in value.items()} if isinstance(value, dict) else value

    def watch(self, op: AtenOp, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run an aten call, write it into the trace (a copy only if copies are wanted), and return its result."""
        call_args = tuple(map(self.refs, args))
        call_kwargs = {name: self.refs(value) for name, value in kwargs.items()}
        out: object = op(*args, **kwargs)
        original = call_args[0] if op in self._copies else None
        if isinstance(original, Ref) and isinstance(out, torch.Tensor):
            self._seen.setdefault(id(out), (original, out))
        elif op.namespace != "prim":  # a prim call asks something about a tensor and computes nothing
            call = Call(op, call_args, call_kwargs, self.refs(out), self.paths[-1])
            self.trace.calls.append(call)
            if self.trace.values is not None:
                self.trace.values.append(self._copied_results(call, out))
        return out

    def _copied_results(self, call: Call, out: object) -> list[torch.Tensor | None]:
        """Return a copy of each tensor that a call returned, since later calls may write into it.

        None takes the place of each result of a call that reads nothing but weights.
        """
        tensors = trees.tensors(out)
        inputs = {ref.index for ref in call.inputs}
        if inputs and inputs <= self._of_weights:
            self._of_weights |= {ref.index for ref in call.outs}
            return [None] * len(tensors)
        return [tensor.detach().clone() for tensor in tensors]


@one_at_a_time
def trace(
    model: nn.Module,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    values: bool = False,
    fake: bool = True,
) -> Trace:
    """Run a model once without gradients and return its aten calls as a `Trace`; the model is left as it was.

    Args:
        model: any module; a captured graph may stand for it, and then says which module each call belongs to.
        args: positional inputs.
        kwargs: keyword inputs.
        values: run on the real weights and inputs, and keep every tensor that a call returned.
        fake: where no values are kept, whether to run on fake tensors (shapes without values), which costs almost
            nothing.

    Raises:
        Exception: whatever the model raises; on fake tensors also where the model asks for a value in a tensor.
    """
    mode = None if values or not fake else FakeTensorMode(allow_non_fake_inputs=True)
    given_args, given_kwargs = trees.map_tensors(
        lambda tensor: tensor if mode is None else mode.from_tensor(tensor.detach(), static_shapes=True),
        off_meta((tuple(args), dict(kwargs or {}))),
    )
    with ExitStack() as stack:
        stack.enter_context(preserved(model))
        stack.enter_context(preserved_rng())
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(quiet_torch())
        # Without mkldnn a recurrent layer runs as the ops that it is made of.
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if mode is not None:
            replace_weights(model, mode)
            stack.enter_context(as_if_exporting())
            stack.enter_context(conversions_that_change_nothing())
            stack.enter_context(mode)
        else:
            stack.enter_context(contents_preserved(model.buffers()))
        logger = CallLogger(model, values=values)
        stack.enter_context(logger)
        logger.paths = stack.enter_context(_module_paths(model))
        output = _run(model, logger.paths, given_args, given_kwargs)
        logger.trace.outputs = [logger.ref(tensor) for tensor in trees.tensors(output)]
    return logger.trace


def _run(model: nn.Module, paths: list[str], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """Call a model, or run its captured graph node by node, and return its output (flat tensors for a graph).

    `paths` is a stack of module paths, which a captured graph extends by the path of the node that runs.
    """
    signature = signature_of_graph(model.graph) if isinstance(model, EmittedModule) else None
    if not isinstance(model, EmittedModule) or signature is None:
        return model(*args, **kwargs)
    flat = signature.flatten(signature.bind(*args, **kwargs))
    return _PathInterpreter(model, paths).run(*flat, enable_io_processing=False)


class _PathInterpreter(fx.Interpreter):
    """An interpreter that runs a captured graph and keeps the path of the module that each node came from.

    The path of the node that runs is the last entry of `paths`. A module whose ops were captured one by one no longer
    runs itself, so that hooks on it would not be called.
    """

    def __init__(self, module: EmittedModule, paths: list[str]) -> None:
        """Prepare to run the graph of a captured module; the last entry of `paths` will name the module that runs."""
        super().__init__(module)
        self.paths = paths

    def run_node(self, n: fx.Node) -> object:
        """Run one node of the graph, with the path of its module as the last entry of `paths` meanwhile."""
        self.paths.append(module_path(n))
        try:
            return super().run_node(n)
        finally:
            self.paths.pop()


@contextmanager
def _module_paths(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list whose last entry, while the model runs within the block, is the path of the module that runs."""
    stack = [""]

    def entering(path: str) -> Callable[..., None]:
        """Return a forward pre-hook that appends a module's path to the list when the module's forward begins."""
        return lambda *_: stack.append(path)

    def leaving(*_: object) -> None:
        """Remove the last path from the list when the forward of a module has ended."""
        stack.pop()

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(entering(path)))
        hooks.append(module.register_forward_hook(leaving, always_call=True))
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()

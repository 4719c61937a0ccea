"""A run of a model as the list of aten calls that it makes, each with the module that made it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from abcfx.capture.emitted import EmittedModule
from abcfx.capture.fake import off_meta, replace_weights
from abcfx.capture.patches import as_if_exporting, conversions_that_change_nothing
from abcfx.capture.signature import SignatureCodeGen
from abcfx.capture.state import preserved, preserved_rng, quiet_torch
from abcfx.support import trees
from abcfx.support.location import module_path

_aten = torch.ops.aten
_COPIES = frozenset({_aten.clone.default, _aten.detach.default, _aten.alias.default, _aten.lift_fresh.default})
"""Whether a view has to copy depends on sizes: these are left out, and what they return is what they were given."""


@dataclass(frozen=True)
class Ref:
    """A tensor of a trace, by the order in which it was first seen."""

    index: int


@dataclass(frozen=True)
class Call:
    """One aten call. `args`, `kwargs` and `results` hold Refs in the place of tensors; `path`: the module it ran in."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: Any
    path: str

    @property
    def name(self) -> str:
        """The op without namespace and overload: `aten.add_.Tensor` is "add_"."""
        return str(self.op._schema.name.split("::")[-1])

    @property
    def inputs(self) -> list[Ref]:
        return trees.leaves_of(Ref, (self.args, dict(self.kwargs)))

    @property
    def outs(self) -> list[Ref]:
        return trees.leaves_of(Ref, self.results)

    def argument(self, name: str, default: Any = None) -> Any:
        """The argument that the op's schema calls `name`."""
        for index, declared in enumerate(self.op._schema.arguments):
            if declared.name == name:
                given = self.args[index] if index < len(self.args) else self.kwargs.get(name, declared.default_value)
                return default if given is None else given
        raise KeyError(name)


@dataclass
class Trace:
    """The calls of one run.

    `shapes`, `dtypes`: of every tensor. `parameters`, `buffers`: name -> the tensor. `outputs`: what it returned.
    `values`: for every call the tensors that it returned, None for those computed from weights alone; only where they
    were asked for.
    """

    calls: list[Call] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    parameters: dict[str, Ref] = field(default_factory=dict)
    buffers: dict[str, Ref] = field(default_factory=dict)
    outputs: list[Ref] = field(default_factory=list)
    values: list[list[torch.Tensor | None]] | None = None


def trace(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    values: bool = False,
    fake: bool = True,
) -> Trace:
    """Run the model once without gradients and write down what it does; the model is left as it was.

    Args:
        values: run on the real weights and inputs, and keep every tensor.
        fake: otherwise, whether to run on fake ones, at no cost.

    Raises whatever the model raises; on fake tensors also where it asks for a value in them.
    """
    mode = None if values or not fake else FakeTensorMode(allow_non_fake_inputs=True)
    given = trees.map_tensors(
        lambda t: t if mode is None else mode.from_tensor(t.detach(), static_shapes=True),
        off_meta((tuple(args), dict(kwargs or {}))),
    )
    with ExitStack() as stack:
        stack.enter_context(preserved(model))
        stack.enter_context(preserved_rng())
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(quiet_torch())
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))  # recurrent layers as the ops they are made of
        if mode is not None:
            replace_weights(model, mode)
            stack.enter_context(as_if_exporting())
            stack.enter_context(conversions_that_change_nothing())
            stack.enter_context(mode)
        log = _Log(values)
        stack.enter_context(log)
        log.paths = stack.enter_context(_module_paths(model))
        log.trace.parameters = {name: log.ref(p) for name, p in model.named_parameters()}
        log.trace.buffers = {name: log.ref(b) for name, b in model.named_buffers()}
        log.start()
        results = trees.tensors(_run(model, log.paths, *given[0], **given[1]))
        log.trace.outputs = [log.ref(tensor) for tensor in results]
    return log.trace


def _run(model: nn.Module, paths: list[str], *args: Any, **kwargs: Any) -> Any:
    code = model.graph._codegen if isinstance(model, EmittedModule) else None
    if not isinstance(model, EmittedModule) or not isinstance(code, SignatureCodeGen):
        return model(*args, **kwargs)
    flat = code.signature.flatten(code.signature.bind(*args, **kwargs))
    return _WithPaths(model, paths).run(*flat, enable_io_processing=False)


class _WithPaths(fx.Interpreter):
    """Runs a captured graph; exported nodes know the module that they came from, which no longer runs itself."""

    def __init__(self, module: EmittedModule, paths: list[str]) -> None:
        super().__init__(module)
        self.paths = paths

    def run_node(self, n: fx.Node) -> Any:
        self.paths.append(module_path(n))
        try:
            return super().run_node(n)
        finally:
            self.paths.pop()


@contextmanager
def _module_paths(model: nn.Module) -> Iterator[list[str]]:
    """A list whose last entry is the path of the module that runs."""
    stack = [""]

    def entering(path: str) -> Callable[..., None]:
        return lambda *_: stack.append(path)

    def leaving(*_: Any) -> None:
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


class _Log(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, values: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace(values=[] if values else None)
        self.paths = [""]
        self._of_weights = set[int]()
        self._seen: dict[int, tuple[Ref, torch.Tensor]] = {}  # tensors are kept, so that no id comes twice

    def ref(self, value: torch.Tensor) -> Ref:
        known = self._seen.get(id(value))
        if known is None:
            known = self._seen[id(value)] = Ref(len(self.trace.shapes)), value
            self.trace.shapes.append(tuple(value.shape))
            self.trace.dtypes.append(value.dtype)
        return known[0]

    def _refs(self, tree: Any) -> Any:
        return trees.map_tensors(self.ref, tree)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = self._refs((args, kwargs))
        out = func(*args, **kwargs)
        if func in _COPIES:
            self._seen.setdefault(id(out), (given[0][0], out))
        elif func.namespace != "prim":
            call = Call(func, given[0], given[1], self._refs(out), self.paths[-1])
            self.trace.calls.append(call)
            if self.trace.values is not None:
                self.trace.values.append(self._kept(call, out))
        return out

    def start(self) -> None:
        """What has been seen by now are weights."""
        self._of_weights = set(range(len(self.trace.shapes)))

    def _kept(self, call: Call, out: Any) -> list[torch.Tensor | None]:
        """Copies of the results, which later calls may write into; of weights there is no need of any."""
        tensors = trees.tensors(out)
        inputs = {ref.index for ref in call.inputs}
        if inputs and inputs <= self._of_weights:
            self._of_weights |= {ref.index for ref in call.outs}
            return [None] * len(tensors)
        return [tensor.detach().clone() for tensor in tensors]

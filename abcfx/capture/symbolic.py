"""Symbolic capture: torch.fx tracing without running the model, torch.nn modules kept as call_module nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from abcfx.capture.emitted import ROOT_LEAF, EmittedModule
from abcfx.capture.graphs import merge_constants, same_graph
from abcfx.capture.leaves import stays_whole
from abcfx.capture.signature import Signature, SignatureCodeGen, signature_of
from abcfx.capture.state import both_modes_restored, no_hidden_randomness, preserved, preserved_rng, set_mode
from abcfx.errors import CaptureError
from abcfx.support.location import format_frames, user_line

# Calls that make a tensor out of no tensor. Executed while tracing they would become constants: frozen noise, or a
# buffer that in-place writes carry over from call to call. As nodes they run on every call, as in the model.
_FACTORIES = frozenset(
    (
        *(torch.arange, torch.as_tensor, torch.complex, torch.empty, torch.empty_strided, torch.eye, torch.full),
        *(torch.linspace, torch.logspace, torch.ones, torch.scalar_tensor, torch.tensor, torch.zeros),
        *(torch.normal, torch.rand, torch.randint, torch.randn, torch.randperm),
        *(torch.bartlett_window, torch.blackman_window, torch.hamming_window, torch.hann_window, torch.kaiser_window),
        *(torch.tril_indices, torch.triu_indices),
    )
)


class _FactoryMode(TorchFunctionMode):
    """Records factory calls; torch.fx alone neither records them nor lets them take traced sizes."""

    def __init__(self, tracer: SymbolicTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and not self.tracer.in_init:
            return self.tracer.create_proxy("call_function", func, args, kwargs)
        return func(*args, **kwargs)


class SymbolicTracer(fx.Tracer):
    """`torch.fx.Tracer` with the model's own signature, source locations, buffers as nodes and refusals.

    What torch.fx would silently drop (no_grad and autocast regions, random draws) is refused instead.
    """

    proxy_buffer_attributes = True

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.signature = signature
        self.in_init = True
        self._names: dict[int, str] = {}
        self._context = _ambient_context()
        self._bottom: FrameType | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return stays_whole(m)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders by the model's signature; arguments bound to constants are handed over as they are."""
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in self.signature.slots}
        values = self.signature.rebuild(proxies)
        for tensor_name, tensor in [*self.root.named_buffers(), *self.root.named_parameters()]:
            self._names.setdefault(id(tensor), tensor_name)

        # No return annotation: torch.fx would copy it onto the generated forward.
        def run():  # type: ignore[no-untyped-def]
            self._bottom = inspect.currentframe()
            self.in_init = False
            return self.signature.call(self.root.forward, values)

        return run, []

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if not isinstance(attr_val, torch.Tensor) or id(attr_val) not in self._names:
            return attr_val
        name = self._names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> fx.Node:
        if not self.in_init and kind.startswith("call_") and _ambient_context() != self._context:
            raise CaptureError(
                "forward changes the grad mode or autocast (torch.no_grad, torch.autocast, a reentrant checkpoint or "
                "a custom autograd.Function), which symbolic tracing cannot record"
            )
        node = super().create_node(kind, target, args, kwargs, *more, **named)
        trace = format_frames(self._frames())
        if trace:
            node.meta["stack_trace"] = trace
        return node

    def _frames(self) -> list[FrameType]:
        frames: list[FrameType] = []
        frame = inspect.currentframe()
        while frame is not None and frame is not self._bottom:
            frames.append(frame)
            frame = frame.f_back
        return frames[::-1] if frame is not None else []

    def current_module(self) -> str:
        """Path and class of the module whose forward was running when tracing stopped."""
        if not self.module_stack:
            return f"{type(self.root).__name__} (the model itself)"
        path, kind = next(reversed(self.module_stack.values()))
        return f"{path} ({kind.__name__})"


def _ambient_context() -> tuple[Any, ...]:
    kinds = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in kinds),
    )


def capture_symbolic(
    model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None
) -> tuple[EmittedModule, Signature, dict[str, Any], tuple[str, ...]]:
    """Trace the model in train and in eval mode.

    Returns:
        The emitted module, its signature, the example value of every placeholder, and what the report must say.

    Raises:
        CaptureError: the model cannot be traced symbolically; names the line of its source.
    """
    signature, examples = signature_of(model, args, kwargs, opaque=True)
    if stays_whole(model):
        return _whole(model, signature), signature, examples, ()
    graphs: dict[bool, fx.Graph] = {}
    constants: dict[str, torch.Tensor] = {}
    with both_modes_restored(model):
        for training in (model.training, not model.training):
            set_mode(model, training)
            graphs[training], found = _trace(model, signature)
            merge_constants(graphs[training], found, constants)
    notes = [f"hooks on the model itself are not part of the graph: {kind}" for kind in _root_hooks(model)]
    if args is None and kwargs is None:
        notes += [
            f"no example inputs: argument {name} was taken as {parameter.default!r}, its default"
            for name, parameter in signature.parameters.parameters.items()
            if parameter.default is not inspect.Parameter.empty
        ]
    eval_graph = None if same_graph(graphs[True], graphs[False]) else graphs[False]
    module = EmittedModule(model, graphs[True], eval_graph, constants=constants)
    return module, signature, examples, tuple(notes)


def _root_hooks(model: nn.Module) -> list[str]:
    return [kind for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks") if getattr(model, kind, None)]


def _trace(model: nn.Module, signature: Signature) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """The model's graph in its current mode, and the tensors that tracing stored as new attributes of the model."""
    tracer = SymbolicTracer(signature)
    known = set(model.__dict__)
    with preserved(model), preserved_rng():
        try:
            with no_hidden_randomness(torch_too=True), _FactoryMode(tracer):
                graph = tracer.trace(model)
        except Exception as error:
            raise _explain(model, tracer, error) from error
        constants = {k: v for k, v in model.__dict__.items() if k not in known and isinstance(v, torch.Tensor)}
    graph.set_codegen(SignatureCodeGen(signature))
    return graph, constants


def _explain(model: nn.Module, tracer: SymbolicTracer, error: Exception) -> CaptureError:
    line = user_line(error.__traceback__)
    where = f"in {tracer.current_module()}" + (f"\n    {line}" if line else "")
    return CaptureError(
        f"{type(model).__name__} cannot be traced symbolically: {where}\n    {type(error).__name__}: {error}"
    )


def _whole(model: nn.Module, signature: Signature) -> EmittedModule:
    """The graph of a model that is itself one torch.nn layer: a single call of it."""
    graph = fx.Graph()
    values = signature.rebuild({name: graph.placeholder(name) for name in signature.slots})
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in signature.parameters.parameters.items():
        if parameter.default is inspect.Parameter.empty:
            args.append(values[name])
        elif values[name] is not parameter.default:
            kwargs[name] = values[name]
    node = graph.call_module(ROOT_LEAF, tuple(args), kwargs)
    node.meta["nn_module_stack"] = {"": ("", type(model))}
    graph.output(node)
    graph.set_codegen(SignatureCodeGen(signature))
    module = EmittedModule(model, graph)
    module.hold_root_leaf(model)
    return module

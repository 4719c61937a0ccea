"""Capture by torch.fx tracing: the model runs on symbols and not on tensors, and torch.nn modules stay whole."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import cast

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target
from torch.overrides import TorchFunctionMode

from abcfx.capture.calls import ModuleCall, recorded
from abcfx.capture.codegen import SignatureCodeGen
from abcfx.capture.emitted import ROOT_LEAF, Emitted, EmittedModule
from abcfx.capture.graphs import as_argument, graphs_of_modes, merge_constants
from abcfx.capture.leaves import stays_whole
from abcfx.capture.patches import buffer_assignments
from abcfx.capture.randomness import no_hidden_randomness, refuse_own_generators
from abcfx.capture.signature import Signature, opaque_signature_of
from abcfx.capture.state import preserved
from abcfx.capture.state_spaces import Change
from abcfx.capture.structure import Part, Value, take_apart
from abcfx.capture.torch_calls import graph_call
from abcfx.errors import CaptureError, UncapturableError
from abcfx.support import trees
from abcfx.support.location import format_frames, frames_above, user_line
from abcfx.support.running import preserved_rng

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


def capture_symbolic(
    model: nn.Module, args: tuple[object, ...] | None, kwargs: dict[str, object] | None
) -> tuple[Emitted, Signature, dict[str, object]]:
    """Trace a model with torch.fx in train and in eval mode.

    Args:
        model: the model.
        args: positional example inputs, if any; they decide which arguments are tensors.
        kwargs: keyword example inputs, if any.

    Returns:
        The module with the graphs, with notes for the report and with what forward changed in Python; its call
        signature; the example value of every placeholder.

    Raises:
        CaptureError: the model cannot be traced symbolically; names the line of its source.
    """
    signature, examples = opaque_signature_of(model, args, kwargs)
    if stays_whole(model):
        return (_whole(model, signature), (), []), signature, examples
    changes: list[Change] = []
    constants: dict[str, torch.Tensor] = {}
    calls: dict[fx.Graph, list[ModuleCall]] = {}

    def trace() -> fx.Graph:
        """Trace the model in its present mode (train or eval), and keep constants and calls of submodules."""
        tracer = SymbolicTracer(signature)
        graph, found, changed = _trace(model, tracer)
        calls[graph] = tracer.calls
        changes.extend(changed)
        merge_constants(graph, found, constants)
        return graph

    train, evaluate = graphs_of_modes(model, (True, False), trace)
    notes = [f"hooks on the model itself are not part of the graph: {kind}" for kind in _root_hooks(model)]
    if args is None and kwargs is None:
        notes += [
            f"no example inputs: argument {name} was taken as {parameter.default!r}, its default"
            for name, parameter in signature.parameters.parameters.items()
            if parameter.default is not inspect.Parameter.empty
        ]
    module = EmittedModule(model, train, evaluate, constants=constants)
    module.note_calls(calls)
    return (module, tuple(notes), changes), signature, examples


def _root_hooks(model: nn.Module) -> list[str]:
    """Return the names of the attributes of the model that hold hooks, such as "_forward_hooks"."""
    return [kind for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks") if getattr(model, kind, None)]


def _whole(model: nn.Module, signature: Signature) -> EmittedModule:
    """Return a captured module whose graph is a single call, for a model that is itself one torch.nn layer.

    `signature` says which arguments of the call are placeholders of the graph.
    """
    graph = fx.Graph()
    placeholders: dict[str, object] = {name: graph.placeholder(name) for name in signature.slots}
    values = signature.rebuild(placeholders)
    args: list[Argument] = []
    kwargs: dict[str, Argument] = {}
    for name, parameter in signature.parameters.parameters.items():
        if parameter.default is inspect.Parameter.empty:
            args.append(as_argument(values[name]))
        elif values[name] is not parameter.default:
            kwargs[name] = as_argument(values[name])
    node = graph.call_module(ROOT_LEAF, tuple(args), kwargs)
    node.meta["nn_module_stack"] = {"": ("", type(model))}
    graph.output(node)
    graph.set_codegen(SignatureCodeGen(signature))
    module = EmittedModule(model, graph)
    module.hold_root_leaf(model)
    return module


def _trace(model: nn.Module, tracer: SymbolicTracer) -> tuple[fx.Graph, dict[str, torch.Tensor], list[Change]]:
    """Trace the model in its current mode with torch.fx.

    Args:
        model: the model.
        tracer: traces it, by the signature of its forward.

    Returns:
        The graph; the tensors that tracing stored as attributes of the model, by name; what forward changed in Python.
    """
    signature = tracer.signature
    known = set(model.__dict__)
    with preserved(model) as before, preserved_rng():
        try:
            with (
                no_hidden_randomness(before.generators, torch_too=True),
                _TensorMode(tracer),
                buffer_assignments(tracer.assign),
            ):
                graph = tracer.trace(model)
        except UncapturableError:
            raise
        except Exception as error:  # the user's forward runs here on symbols, and may raise anything
            raise _explained(model, tracer, error) from error
        made = {name: value for name, value in model.__dict__.items() if name not in known}
        constants = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    graph.set_codegen(SignatureCodeGen(signature if tracer.output is None else signature.with_output(tracer.output)))
    return graph, constants, before.undone


def _explained(model: nn.Module, tracer: SymbolicTracer, error: Exception) -> CaptureError:
    """Return the error that a model cannot be traced, with the module that ran and the line of its source."""
    line = user_line(error.__traceback__)
    where = f"in {tracer.current_module()}" + (f"\n    {line}" if line else "")
    return CaptureError(
        f"{type(model).__name__} cannot be traced symbolically: {where}\n    {type(error).__name__}: {error}", line
    )


class SymbolicTracer(fx.Tracer):
    """A `torch.fx.Tracer` that keeps the model's own signature, source locations, and buffers as nodes.

    It refuses what torch.fx would silently drop: no_grad and autocast regions, random draws.
    """

    proxy_buffer_attributes = True

    def __init__(self, signature: Signature) -> None:
        """Prepare a trace, and keep the grad mode and autocast state, which must not change during it.

        `signature` says which arguments of the model become placeholders.
        """
        super().__init__()
        self.signature = signature
        self.calls: list[ModuleCall] = []
        self.output: Part | None = None  # how the model's output is built, unless it is a single tensor
        # True while torch.fx still prepares the trace and the model's forward does not run yet.
        self.in_init = True
        self._names: dict[int, str] = {}
        self._proxies: dict[str, fx.Proxy] = {}
        self._assigned: dict[str, fx.Proxy] = {}
        self._context = _ambient_context()
        self._bottom: FrameType | None = None
        self._thread = threading.get_ident()

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """Trace the call of a module; if another thread makes the call meanwhile, run it as if nothing were traced."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)

        def noted(*given: object, **named: object) -> object:
            """Run the forward of a module whose operations go into the graph; add inputs and output to `self.calls`."""
            key, (path, _) = next(reversed(self.module_stack.items()))
            return recorded(key, path, forward, given, named, _node_of, self.calls)

        result: object = super().call_module(m, noted, args, kwargs)
        return result

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one node of the graph: torch's own layers, and types with a registered rule."""
        return stays_whole(m)

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[object]]:
        """Make the model's placeholders; return the function that runs forward on them, and no arguments for it.

        Arguments that are constants in the signature are handed to forward as they are.
        """
        proxies: dict[str, object] = {
            name: self.create_proxy("placeholder", name, (), {}) for name in self.signature.slots
        }
        values = self.signature.rebuild(proxies)
        for tensor_name, tensor in [*self.root.named_buffers(), *self.root.named_parameters()]:
            self._names.setdefault(id(tensor), tensor_name)

        # No return annotation: torch.fx would copy it onto the generated forward.
        def run():  # type: ignore[no-untyped-def]
            self._bottom = inspect.currentframe()
            self.in_init = False
            flat, recipe = take_apart(self.signature.call(self.root.forward, values))
            self._write_assigned()
            if recipe == Value(0):
                return flat[0]
            self.output = recipe
            return tuple(flat)

        return run, []

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        """Return the value of a module's attribute; for a parameter or buffer, a proxy of its get_attr node.

        Args:
            attr: name of the attribute.
            attr_val: its value.
            parameter_proxy_cache: torch.fx's own cache of proxies; not used.
        """
        return self.proxy_of(attr_val) if threading.get_ident() == self._thread else attr_val

    def proxy_of(self, value: object) -> object:
        """Return the proxy (traced stand-in) of a parameter or buffer of the model; any other value as it is."""
        if not isinstance(value, torch.Tensor) or id(value) not in self._names:
            return value
        name = self._names[id(value)]
        if name in self._assigned:
            return self._assigned[name]
        if name not in self._proxies:
            own = vars(value)
            self._proxies[name] = self.create_proxy(
                "get_attr", name, (), {}, proxy_factory_fn=lambda node: _OwnTensor(node, self, own)
            )
        return self._proxies[name]

    def assign(self, buffer: torch.Tensor, value: fx.Proxy) -> None:
        """Let later reads of a buffer, while the model is traced, give the value that forward assigned to it."""
        self._assigned[self._names[id(buffer)]] = value

    def _write_assigned(self) -> None:
        """Add nodes that write the last value which forward assigned to each buffer into the buffer."""
        for name, value in self._assigned.items():
            target = self.create_proxy("get_attr", name, (), {})
            self.create_proxy("call_method", "copy_", (target, value.detach()), {})

    def create_arg(self, a: object) -> Argument:
        """Return a value as an argument of a graph node; raise an error for a random generator."""
        refuse_own_generators(a)
        return super().create_arg(a)

    def create_node(
        self,
        kind: str,
        target: Target,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        name: str | None = None,
        type_expr: object = None,
    ) -> fx.Node:
        """Add a node with the lines of the user's source that led to it; the arguments are those of fx.Tracer.

        Raises:
            CaptureError: forward has changed the grad mode or autocast, which a traced graph would lose.
        """
        if not self.in_init and kind.startswith("call_") and _ambient_context() != self._context:
            raise CaptureError(
                "forward changes the grad mode or autocast (torch.no_grad, torch.autocast, a reentrant checkpoint or "
                "a custom autograd.Function), which symbolic tracing cannot record"
            )
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        trace = format_frames(frames_above(self._bottom))
        if trace:
            node.meta["stack_trace"] = trace
        return node

    def current_module(self) -> str:
        """Return, as text, path and class of the module whose forward was running when tracing stopped."""
        if not self.module_stack:
            return f"{type(self.root).__name__} (the model itself)"
        path, kind = next(reversed(self.module_stack.values()))
        return f"{path} ({kind.__name__})"


class _OwnTensor(fx.Proxy):
    """A traced stand-in of a parameter or buffer that has what its user wrote onto the tensor, such as `mup.infshape`.

    torch.fx would make nodes of such attributes, so that a number in one of them would be unknown until the model runs.
    """

    def __init__(self, node: fx.Node, tracer: fx.Tracer, own: Mapping[str, object]) -> None:
        """Keep the attributes that the tensor has beside those of its class."""
        super().__init__(node, tracer)
        self._own = own

    def __getattr__(self, k: str) -> object:  # type: ignore[override]
        """Return an attribute that a user gave to the tensor; of any other a traced stand-in."""
        own = self.__dict__.get("_own", {})
        return own[k] if k in own else super().__getattr__(k)


def _node_of(value: object) -> fx.Node | None:
    """Return the graph node of a traced value; None for a tensor that is not traced."""
    return value.node if isinstance(value, fx.Proxy) else None


class _TensorMode(TorchFunctionMode):
    """A torch mode that records calls that make a tensor of no tensor (torch.zeros, torch.arange) as nodes.

    torch.fx alone neither records them nor lets them take traced sizes. The mode also records calls on the model's own
    tensors that torch.fx does not see, since forward got them from `named_parameters()`, `_parameters` or the like:
    torch.fx would compute once with them and keep the result.
    """

    def __init__(self, tracer: SymbolicTracer) -> None:
        """Make a mode that records calls of torch into the graph of the tracer that is given."""
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Record a call that makes a tensor of no tensor as a node and return its proxy; run any other call."""
        kwargs = kwargs or {}
        if func in _FACTORIES and not self.tracer.in_init:
            return self.tracer.create_proxy("call_function", func, args, kwargs)
        if not self.tracer.in_init and self._computes_with_own(func, args, kwargs):
            traced = trees.map_leaves(self.tracer.proxy_of, (args, kwargs))
            op, target, given, named = graph_call(
                func, *cast("tuple[tuple[Argument, ...], dict[str, Argument]]", traced)
            )
            return self.tracer.create_proxy(op, target, given, named)
        return func(*args, **kwargs)

    def _computes_with_own(
        self, func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> bool:
        """Whether a call computes with parameters or buffers, with nothing traced, and makes or changes a tensor."""
        leaves = trees.leaves((args, kwargs))
        if any(isinstance(leaf, fx.Proxy) for leaf in leaves):
            return False  # torch.fx records the call
        if not any(self.tracer.proxy_of(leaf) is not leaf for leaf in leaves if isinstance(leaf, torch.Tensor)):
            return False
        copies = trees.map_tensors(lambda tensor: torch.empty_like(tensor, device="meta"), (args, kwargs))
        versions = [tensor._version for tensor in trees.tensors(copies)]
        try:
            out = func(*copies[0], **copies[1])
        except Exception:  # it asks for a value, which a traced tensor refuses to give
            return True
        return bool(trees.tensors(out)) or versions != [tensor._version for tensor in trees.tensors(copies)]


def _ambient_context() -> tuple[object, ...]:
    """Return grad mode, inference mode and autocast state, which a graph cannot change."""
    kinds = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in kinds),
    )

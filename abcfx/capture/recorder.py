"""Write torch calls down as graph nodes while a model runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import TypeVar

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target
from torch.overrides import TorchFunctionMode

from abcfx.capture.calls import ModuleCall, call_key, mark_stop, recorded
from abcfx.capture.fake import VALUE_ERRORS, constant_of, recurrent_output
from abcfx.capture.graphs import as_argument, at_front
from abcfx.capture.leaves import is_composite, stays_whole
from abcfx.capture.patches import is_backward_hook, is_torchs_own, plain_call_of_checkpoint
from abcfx.capture.randomness import refuse_own_generators
from abcfx.capture.state_spaces import Change
from abcfx.capture.torch_calls import graph_call
from abcfx.capture.traced_sizes import SYMBOLIC, SizeNodes
from abcfx.errors import CaptureError
from abcfx.support import trees
from abcfx.support.location import format_frames, frames_above, source_line

# More truth values of tensors than this in one forward are not checks but a loop.
MAX_CHECKS = 16
# Calls that change nothing that a graph computes.
_IGNORED = {"requires_grad_", "register_hook", "retain_grad", "_set_grad_enabled", "__torch_function__"}

_Result = TypeVar("_Result")


class Recorder(TorchFunctionMode):
    """A torch mode that records every call of torch on tensors that depend on the model's inputs or weights.

    Args:
        model: the model that will run.
        names: names of its parameters and buffers by the ids of their tensors, if the model runs on other tensors in
            their place.
        stand_in: the number that `float(tensor)` gives, since a fake tensor has no value; None to let it raise.
        decisions: the truth values that `bool(tensor)` gives, in order, as far as they go; True after them. None to let
            it raise where sizes do not decide it.

    Attributes:
        graph: the fx graph of the calls so far.
        constants: tensors that the model does not hold, by the names the graph uses for them.
        bottom: the Python frame that calls the model; stack traces stop there.
        taken: the truth values that `bool(tensor)` gave without knowing them, in order.
        places: the source line of each of these truth values.
        changes: what forward changed in Python around the model.
        used_stand_in: True if `float(tensor)` was called and gave the stand-in.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[int, str] | None = None,
        stand_in: float | None = None,
        decisions: Sequence[bool] | None = None,
    ) -> None:
        """Start a recording of the model's torch calls, with an empty graph.

        Args:
            model: the model that will run.
            names: names of its parameters and buffers by the ids of other tensors in their place.
            stand_in: the number that `float(tensor)` gives; None to let it raise.
            decisions: the truth values that `bool(tensor)` gives, in order; None to let it raise.
        """
        super().__init__()
        self.decisions = decisions
        self.taken: list[bool] = []
        self.places: list[str] = []
        self.stand_in = stand_in
        self.used_stand_in = False
        self.changes: list[Change] = []
        self.calls: list[ModuleCall] = []
        self.model = model
        self.graph = fx.Graph()
        self.constants: dict[str, torch.Tensor] = {}
        self.bottom: FrameType | None = None
        self.names = names or {id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
        self.buffers = dict(model.named_buffers())
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.sizes = SizeNodes(self.graph)
        self._nodes: dict[int, fx.Node] = {}
        self._detached: dict[tuple[fx.Node, str], fx.Node] = {}  # for each running module: no other reads its nodes
        self._kept: list[torch.Tensor] = []  # ids are only unique among objects that are alive
        # Of each running module: a key that tells its calls apart, its path, its class.
        self._stack: list[tuple[str, str, type]] = []
        self._failed: tuple[str, str, type] | None = None
        self._calls: dict[str, int] = {}
        self._inside = False  # within a call that is one node: its own calls are not written down
        self._grad = torch.is_grad_enabled()
        self._autocast = torch.is_autocast_enabled("cpu")

    def add_inputs(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Add one placeholder for each input tensor; symbols of sizes in its shape can then be read off it."""
        for name, tensor in inputs.items():
            node = self.graph.placeholder(name)
            self._bind(tensor, node)
            self.sizes.add_input(node, tensor)

    def finish(self, results: Sequence[object]) -> None:
        """Write the output node, and for every buffer that forward replaced by a new tensor a copy into the buffer.

        Args:
            results: the tensors, sizes and numbers that the model returned.

        Raises:
            CaptureError: forward replaced a buffer by one of another shape or dtype.
        """
        output = tuple(self._argument(value) for value in results)
        for name, before in self.buffers.items():
            after = self.model.get_buffer(name)
            if after is not before and isinstance(after, torch.Tensor):
                if (after.shape, after.dtype) != (before.shape, before.dtype):
                    raise CaptureError(f"forward replaces buffer {name} by one of another shape or dtype")
                source = self._node(after)
                target = self.graph.get_attr(self.names[id(before)])
                self.graph.call_method("copy_", (target, self.graph.call_method("detach", (source,))))
        self.graph.output(output)
        crossing = {value for call in self.calls for value in (*call.inputs, *call.outputs)}
        for node in reversed(list(self.graph.nodes)):
            if (
                not node.users
                and node not in crossing
                and (node.op == "get_attr" or node.target in (operator.getitem, getattr, "size"))
            ):
                self.graph.erase_node(node)
        self.graph.lint()

    def current_module(self) -> str:
        """Return, as text, path and class of the innermost module that runs, or that ran when recording stopped."""
        innermost = self._failed or (self._stack[-1] if self._stack else None)
        if innermost is None or not innermost[1]:
            return f"{type(self.model).__name__} (the model itself)"
        return f"{innermost[1]} ({innermost[2].__name__})"

    # Calls

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run a call of torch, write it down as a node if it makes or changes tensors, and return its result."""
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        inputs = trees.tensors((args, kwargs))
        versions = [tensor._version for tensor in inputs]
        name = getattr(func, "__name__", str(func))
        if name == "__float__" and self.stand_in is not None:
            self.used_stand_in = True
            return self.stand_in
        out = self._decide(func, args) if name == "__bool__" else func(*args, **kwargs)
        changed = name == "__set__" or any(
            tensor._version != before for tensor, before in zip(inputs, versions, strict=True)
        )
        leaves = trees.leaves(out)
        gives_tensors = any(isinstance(leaf, torch.Tensor) for leaf in leaves)
        if name in _IGNORED or not (gives_tensors or changed or self.sizes.are_new(leaves)):
            return out
        self._write(func, args, kwargs, out)
        return out

    def _decide(self, func: Callable[..., object], args: tuple[object, ...]) -> object:
        """Return the result of `bool(tensor)`: the real one if sizes give it, else the next in `decisions`, or True."""
        try:
            return func(*args)
        except VALUE_ERRORS:
            # A loop that runs until a value is reached would take every guess of True and go on for ever.
            if self.decisions is None or len(self.taken) == MAX_CHECKS:
                raise
            index = len(self.taken)
            self.taken.append(self.decisions[index] if index < len(self.decisions) else True)
            self.places.append(source_line(self._trace()))
            return self.taken[-1]

    def call_module(
        self, original: Callable[..., object], module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Call a module by `original`, nn.Module's own `__call__`, and return its output.

        A torch.nn layer becomes one node of the graph; other modules are recorded call by call.
        """
        path = self.paths.get(id(module))
        if self._inside or path is None:
            return original(module, *args, **kwargs)
        count = self._calls.get(path, 0)
        self._calls[path] = count + 1
        self._stack.append((call_key(path, count), path, type(module)))
        try:
            if not path:
                return original(module, *args, **kwargs)
            if not self._is_leaf(module):
                call = partial(original, module)
                key, is_silent = self._stack[-1][0], torch.is_grad_enabled() != self._grad
                return recorded(key, path, call, args, kwargs, self._known_node, self.calls, is_silent=is_silent)
            given, named = self._arguments(args), self._named_arguments(kwargs)
            out = self._whole(lambda: recurrent_output(module, args) or original(module, *args, **kwargs))
            node = self._create("call_module", path, given, named)
            self._bind(out, self._stopped(node, out))
            return out
        except Exception:  # the user's forward may raise anything: only the innermost module is noted here
            self._failed = self._failed or self._stack[-1]
            raise
        finally:
            self._stack.pop()

    def call_autograd_function(
        self, original: Callable[..., object], cls: type, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Apply an autograd.Function by `original` (its `apply`); a custom one becomes one node, with its backward."""
        if not self._inside and (call := plain_call_of_checkpoint(cls, args)) is not None:
            return call()
        if not self._inside and is_backward_hook(cls):
            copies = self._whole(lambda: original(*args))
            assert isinstance(copies, tuple)
            for given, copied in zip(args, copies, strict=True):
                assert isinstance(given, torch.Tensor)
                self._bind(copied, self._node(given))
            return copies
        if self._inside or is_torchs_own(cls):
            return original(*args, **kwargs)
        node_args = self._arguments(args), self._named_arguments(kwargs)
        out = self._whole(lambda: original(*args, **kwargs))
        self._bind(out, self._create("call_function", _apply_of(cls), *node_args))
        return out

    def _whole(self, call: Callable[[], _Result]) -> _Result:
        """Run a call that becomes one node, without writing down the calls within it, and return its result."""
        self._inside = True
        try:
            return call()
        finally:
            self._inside = False

    def _is_leaf(self, module: nn.Module) -> bool:
        """Whether a module is recorded as one node: it is one of torch's own layers and holds the model's own weights.

        `functional_call` puts other tensors in the weights' place, which a call of the layer would not know.
        """
        tensors = [*module.parameters(), *module.buffers()]
        return stays_whole(module) and not is_composite(module) and all(id(each) in self.names for each in tensors)

    # Nodes

    def _write(
        self,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        out: object,
    ) -> None:
        """Write a call of `func` with result `out` down as a node, and keep which node gives each tensor of it."""
        op, target, given, named = graph_call(func, self._arguments(args), self._named_arguments(kwargs))
        self._bind(out, self._create(op, target, given, named))

    def _create(self, op: str, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> fx.Node:
        """Add a node to the graph, with the modules that run and the source lines; refuse changes of autocast."""
        if torch.is_autocast_enabled("cpu") != self._autocast:
            raise CaptureError("forward turns autocast on or off, which cannot be recorded")
        refuse_own_generators((args, kwargs))
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in self._stack}
        node.meta["stack_trace"] = self._trace()
        return node

    def _trace(self) -> str:
        """Return the present stack of user code, from the call of the model on, as text for `node.meta`."""
        return format_frames(frames_above(self.bottom))

    def _stopped(self, node: fx.Node, out: object) -> fx.Node:
        """Return the node of a layer's output, followed by a detach where the layer was called without gradients."""
        if torch.is_grad_enabled() == self._grad or not isinstance(out, torch.Tensor) or not _carries_gradient(out):
            return node
        node.meta["val"] = out
        stop = self._stop(node)
        stop.meta["nn_module_stack"].popitem()  # it stands beside the layer, which is one node
        return stop

    def _stop(self, node: fx.Node) -> fx.Node:
        """Add a detach, which stops gradients as the `torch.no_grad` block does in which forward is."""
        detached = self._create("call_method", "detach", (node,), {})
        mark_stop(detached)
        return detached

    def _bind(self, out: object, node: fx.Node) -> None:
        """Keep, for later calls, that a node of the graph gives a result; tensors in a container get getitem nodes."""
        node.meta.setdefault("val", out)
        if isinstance(out, torch.Tensor):
            self._nodes[id(out)] = node
            self._kept.append(out)
        elif isinstance(out, (tuple, list, dict)):
            for key, value in out.items() if isinstance(out, dict) else enumerate(out):
                if isinstance(value, (torch.Tensor, tuple, list, dict)):
                    self._bind(value, self._create("call_function", operator.getitem, (node, key), {}))
        elif isinstance(out, SYMBOLIC):
            self.sizes.add_value(out, node)

    # Arguments

    def _arguments(self, args: tuple[object, ...]) -> tuple[Argument, ...]:
        """Return positional arguments of a recorded call with graph nodes in the place of tensors and traced sizes."""
        return tuple(self._argument(value) for value in args)

    def _named_arguments(self, kwargs: Mapping[str, object]) -> dict[str, Argument]:
        """Return the keyword arguments of a recorded call with graph nodes in the place of tensors and traced sizes."""
        return {key: self._argument(value) for key, value in kwargs.items()}

    def _argument(self, value: object) -> Argument:
        """Return an argument of a recorded call with graph nodes in the place of tensors and traced sizes."""
        if isinstance(value, torch.Tensor):
            return self._without_gradient(self._node(value), value)
        if isinstance(value, SYMBOLIC):
            return self.sizes.node_of(value)
        if isinstance(value, slice):
            return slice(*(self._argument(each) for each in (value.start, value.stop, value.step)))
        if isinstance(value, torch.Size) or type(value) is tuple:
            return self._arguments(tuple(value))
        if type(value) is list:
            return [self._argument(each) for each in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            named_tuple: Callable[..., Argument] = type(value)
            return named_tuple(*self._arguments(value))
        if isinstance(value, Mapping):
            return self._named_arguments(value)
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
            return as_argument(value.item())
        return as_argument(value)

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        """Return the node that gives a tensor; a weight or constant gets a get_attr node when it is first used."""
        if id(tensor) not in self._nodes:
            name = self.names.get(id(tensor)) or self._new_constant(tensor)
            with at_front(self.graph):
                node = self.graph.get_attr(name)
            self._bind(tensor, node)
        return self._nodes[id(tensor)]

    def _known_node(self, value: object) -> fx.Node | None:
        """Return the node that gives a tensor or a size of an input, if the graph has it; else None."""
        if isinstance(value, SYMBOLIC):
            return self.sizes.symbol_node(value)
        known = isinstance(value, torch.Tensor) and (id(value) in self._nodes or id(value) in self.names)
        return self._node(value) if isinstance(value, torch.Tensor) and known else None

    def _new_constant(self, tensor: torch.Tensor) -> str:
        """Store a tensor that no recorded call made and return its new name; refuse a fake one, which has no value."""
        value = constant_of(tensor)
        if value is None:
            raise CaptureError(
                f"in {self.current_module()}: a tensor of shape {tuple(tensor.shape)} came from a call that cannot be "
                "recorded (torch.vmap, torch.func, NumPy, or C++ code)"
            )
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = value
        return name

    def _without_gradient(self, node: fx.Node, tensor: torch.Tensor) -> fx.Node:
        """Return an argument's node, followed by a detach where torch.no_grad is on and the tensor has gradients."""
        if torch.is_grad_enabled() == self._grad or not _carries_gradient(tensor) or not tensor.requires_grad:
            return node
        if torch.is_grad_enabled():
            raise CaptureError(f"in {self.current_module()}: gradients are turned on where they were off")
        place = node, self._stack[-1][0] if self._stack else ""
        if place not in self._detached:
            self._detached[place] = self._stop(node)
            self._detached[place].meta["val"] = tensor
        return self._detached[place]


def _apply_of(cls: type) -> Callable[..., object]:
    """Return the `apply` of an autograd.Function as a function that a graph can call and print."""

    def apply(*inputs: object, **named: object) -> object:
        """Apply the autograd.Function; unlike its own `apply`, this function has a name that a graph can print."""
        return cls.apply(*inputs, **named)  # type: ignore[attr-defined]

    apply.__name__ = apply.__qualname__ = f"{cls.__name__}_apply"
    apply.__module__ = cls.__module__
    apply.__dict__["autograd_function"] = cls  # what rules are registered for
    return apply


def _carries_gradient(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a dtype (floating-point or complex) that can have gradients."""
    return tensor.is_floating_point() or tensor.is_complex()

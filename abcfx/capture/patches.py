"""Patch torch for the length of a capture: calls of modules and autograd Functions, and what models ask torch about.

No other module of this package patches anything. torch.fx patches `nn.Module.__call__` in the same way while it traces.
torch has no hook for `torch.autograd.Function.apply`, whose custom gradient every tracer would otherwise lose silently.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType, FunctionType, MethodType, ModuleType

import torch
import torch.utils.checkpoint
from torch import fx, nn

from abcfx.support.undo import Undo

# Called as handler(original, module, args, kwargs) in place of a module.
ModuleCall = Callable[[Callable[..., object], nn.Module, tuple[object, ...], dict[str, object]], object]
# Called as handler(original, cls, args, kwargs) in place of the `apply` of an autograd.Function.
FunctionApply = Callable[[Callable[..., object], type, tuple[object, ...], dict[str, object]], object]

_FUNCTIONS = (FunctionType, MethodType, partial, nn.Module)
# What a non-reentrant checkpoint calls: the second from torch 2.14 on, where the first is still there.
_NON_REENTRANT = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")


def _replaced(owner: type | ModuleType, **attributes: object) -> Undo:
    """Set attributes of a class or module of torch within the block; afterwards they are the same objects as before."""

    def put(values: dict[str, object]) -> None:
        """Set attributes of the patched class or module of torch, given by name and value."""
        for name, value in values.items():
            setattr(owner, name, value)

    return Undo(partial(put, {name: vars(owner)[name] for name in attributes}), partial(put, attributes))


def _here(function: Callable[..., object], elsewhere: Callable[..., object]) -> Callable[..., object]:
    """Return a stand-in for a function of torch that acts in this thread only.

    In the thread that calls this it calls `function`, in all others the original, `elsewhere`.

    Args:
        function: the replacement.
        elsewhere: the function of torch that it stands in for.
    """
    thread = threading.get_ident()

    def choose(*args: object, **kwargs: object) -> object:
        """Call the stand-in in the thread that patched a function of torch, and torch's own function in all others."""
        return (function if threading.get_ident() == thread else elsewhere)(*args, **kwargs)

    return choose


class _TrueHere:
    """A flag that is true in the thread that made it and false in all others, to set in place of a flag of torch."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def __bool__(self) -> bool:
        """Whether the code that reads this flag of torch runs in the thread that set it."""
        return threading.get_ident() == self._thread

    def __or__(self, other: object) -> bool:
        """Whether the code that reads this flag of torch runs in the thread that set it, or `other` is true."""
        return bool(self) or bool(other)

    def __and__(self, other: object) -> bool:
        """Whether the code that reads this flag of torch runs in the thread that set it, and `other` is true."""
        return bool(self) and bool(other)

    __ror__, __rand__ = __or__, __and__


@contextmanager
def module_calls(handler: ModuleCall) -> Iterator[None]:
    """Run `handler(original, module, args, kwargs)` in place of every call of an nn.Module within the block."""
    original: Callable[..., object] = nn.Module.__call__

    def call(module: nn.Module, *args: object, **kwargs: object) -> object:
        """Hand a call of a module to the handler; stands in for `nn.Module.__call__`."""
        return handler(original, module, args, kwargs)

    with _replaced(nn.Module, __call__=_here(call, original)):
        yield


@contextmanager
def buffer_assignments(handler: Callable[[torch.Tensor, fx.Proxy], None]) -> Iterator[None]:
    """Hand a traced value that forward assigns to a buffer to the handler within the block, with that buffer.

    `nn.Module` itself takes nothing but tensors as buffers.
    """
    original: Callable[..., None] = nn.Module.__setattr__

    def assign(module: nn.Module, name: str, value: object) -> None:
        """Stand in for `nn.Module.__setattr__`: hand a traced value for a buffer to the handler, set anything else."""
        buffer = module.__dict__.get("_buffers", {}).get(name)
        if isinstance(value, fx.Proxy) and isinstance(buffer, torch.Tensor):
            handler(buffer, value)
        else:
            original(module, name, value)

    with _replaced(nn.Module, __setattr__=_here(assign, original)):
        yield


@contextmanager
def function_applies(handler: FunctionApply) -> Iterator[None]:
    """Run `handler(original, cls, args, kwargs)` in place of every `apply` of an autograd.Function in the block."""
    original = vars(torch.autograd.Function)["apply"]

    def apply(cls: type[torch.autograd.Function], /, *args: object, **kwargs: object) -> object:
        """Hand the `apply` of an autograd.Function to the handler; stands in for torch's own `apply`."""
        return handler(original.__get__(None, cls), cls, args, kwargs)

    def unchanged(cls: type[torch.autograd.Function], /, *args: object, **kwargs: object) -> object:
        """Call the `apply` of an autograd.Function as it was; from torch 2.14 on it is written in C."""
        return original.__get__(None, cls)(*args, **kwargs)

    with _replaced(torch.autograd.Function, apply=classmethod(_here(apply, unchanged))):
        yield


def plain_call_of_checkpoint(cls: type, args: tuple[object, ...]) -> Callable[[], object] | None:
    """Return the call that a reentrant checkpoint makes, so that a capture can make it without the checkpoint.

    None for every other autograd.Function. One that is given a function is taken for a checkpoint, of the user's own
    making: its forward runs with gradients in that function, and whether its backward gives the same is for the check
    of gradients to find out.

    Args:
        cls: the autograd.Function that is applied.
        args: the arguments of its `apply`.
    """
    if cls.__module__ != "torch.utils.checkpoint":
        if any(isinstance(value, _FUNCTIONS) for value in args):
            return lambda: _forward_with_gradients(cls, args)
        return None
    function, _preserve_rng_state, *inputs = args
    assert callable(function)
    return lambda: function(*inputs)


def _forward_with_gradients(cls: type, args: tuple[object, ...]) -> object:
    """Run the forward of an autograd.Function as plain code; functions among its arguments run with gradients on."""

    def with_gradients(function: Callable[..., object]) -> Callable[..., object]:
        """Return a function that calls `function` with gradients switched on."""

        def call(*args: object, **kwargs: object) -> object:
            """Call the function with gradients switched on."""
            with torch.enable_grad():
                return function(*args, **kwargs)

        return call

    given = [with_gradients(value) if isinstance(value, _FUNCTIONS) else value for value in args]
    forward: Callable[..., object] = cls.forward  # type: ignore[attr-defined]
    takes_context = cls.setup_context is torch.autograd.Function.setup_context  # type: ignore[attr-defined]
    return forward(_Context(), *given) if takes_context else forward(*given)


class _Context:
    """A stand-in for the context of an autograd.Function's forward, which drops what is kept for a backward."""

    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Drop the tensors that a forward saves for its backward, for nothing goes back through this forward."""

    mark_non_differentiable = mark_dirty = save_for_forward = save_for_backward

    def set_materialize_grads(self, value: bool) -> None:
        """Drop the setting, which only a backward would read."""


@contextmanager
def checkpoints_noticed() -> Iterator[list[str]]:
    """Yield a list that gets one entry for every use of torch.utils.checkpoint within the block.

    Models import `checkpoint` under names of their own; what it calls is looked up in torch's module at every call.
    """
    module = torch.utils.checkpoint
    used: list[str] = []
    function = module.CheckpointFunction

    def noticed(generator: Callable[..., object]) -> Callable[..., object]:
        """Return a stand-in for torch's maker of a non-reentrant checkpoint that adds each use to the list.

        `generator` is torch's own.
        """

        def non_reentrant(*args: object, **kwargs: object) -> object:
            """Add to the list that a non-reentrant checkpoint was used, and make it."""
            used.append("non-reentrant")
            return generator(*args, **kwargs)

        return _here(non_reentrant, generator)

    def reentrant(*args: object) -> object:
        """Add to the list that a reentrant checkpoint was used, and make it."""
        used.append("reentrant")
        return function.apply(*args)

    note_reentrant = _here(reentrant, function.apply)

    class Reentrant:
        """A stand-in for torch's autograd.Function of reentrant checkpoints, which adds each use to the list."""

        @staticmethod
        def apply(*args: object) -> object:
            """Add a reentrant checkpoint that this thread uses to the list, and make it."""
            return note_reentrant(*args)

    with ExitStack() as stack:
        stack.enter_context(_replaced(module, CheckpointFunction=Reentrant))
        for name in _NON_REENTRANT:
            if (generator := getattr(module, name, None)) is not None:
                stack.enter_context(_replaced(module, **{name: noticed(generator)}))
        yield used


def is_torchs_own(cls: type) -> bool:
    """Whether an autograd.Function is torch's own, by which a custom op gets its gradient; a graph keeps the op."""
    return cls.__module__.startswith("torch.")


def is_backward_hook(cls: type) -> bool:
    """Whether an autograd.Function is the identity by which torch lets a module's backward hooks see gradients."""
    return cls.__module__ == "torch.nn.modules._functions" and cls.__name__ == "BackwardHookFunction"


@contextmanager
def as_if_exporting() -> Iterator[None]:
    """Make `torch.compiler.is_exporting()` true within the block, so that models avoid looking at tensor values.

    torch offers no way to say so from outside an export.
    """
    with _replaced(torch.compiler, _is_compiling_flag=_TrueHere(), _is_exporting_flag=_TrueHere()):
        yield


@contextmanager
def answers_as_eager(told: Container[str] | None) -> Iterator[list[str]]:
    """Answer no within the block to a model that asks `torch.compiler` whether it is being compiled, as in training.

    Some models choose another algorithm when they are compiled. torch itself gets the true answer.

    Args:
        told: places in the model's code that get the true answer as well; None for all of them.

    Yields:
        A list of the places that got another answer, in the order in which they asked.
    """
    originals = {"is_compiling": torch.compiler.is_compiling, "is_exporting": torch.compiler.is_exporting}
    asked: list[str] = []

    def answering(name: str) -> Callable[[], bool]:
        """Return a stand-in for `torch.compiler.is_compiling` or `is_exporting`, given by its name."""

        def answer() -> bool:
            """Return False to a model's code that asks; to torch and the places in `told`, torch's own answer.

            A place that got False although torch says True is added to the list that the context yields.
            """
            truth = originals[name]()
            place = _place(sys._getframe(2))  # above `_here`
            if not truth or not place or told is None or place in told:
                return truth
            asked.append(place)
            return False

        return answer

    with _replaced(torch.compiler, **{name: _here(answering(name), originals[name]) for name in originals}):
        yield asked


def _place(frame: FrameType) -> str:
    """Return file and line of the code that asks whether it is compiled, and of its caller; "" if torch itself asks.

    `frame` runs that code. A helper may ask for several callers, so that its own line does not tell them apart.
    """
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] == "torch":
        return ""
    frames = [frame, *([frame.f_back] if frame.f_back is not None else [])]
    return " < ".join(f"{each.f_code.co_filename}:{each.f_lineno}" for each in frames)


@contextmanager
def conversions_that_change_nothing() -> Iterator[None]:
    """Let `module.to(...)` return at once within the block where it has nothing to convert.

    Models call it in forward to be sure of a dtype; on fake weights torch refuses even when there is nothing to do.
    """
    original: Callable[..., object] = nn.Module.to

    def to(module: nn.Module, *args: object, **kwargs: object) -> object:
        """Return the module at once if its dtypes and devices are already as asked for, else convert it."""
        asked = (*args, *kwargs.values())
        dtypes = {value for value in asked if isinstance(value, torch.dtype)}
        devices = {torch.device(value) for value in asked if isinstance(value, (str, torch.device))}
        tensors = [*module.parameters(), *module.buffers()]
        floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if (not dtypes or floats <= dtypes) and (not devices or {tensor.device for tensor in tensors} <= devices):
            return module
        return original(module, *args, **kwargs)

    with _replaced(nn.Module, to=_here(to, original)):
        yield


def open_lengths(model: nn.Module) -> Undo:
    """Let `len(tensor)` in the model's own forward be the size that is traced, where Python's `len` makes it a number.

    Python takes plain numbers only from `len`, which would fix the batch of a traced graph. So the name `len` stands
    for another function within the block, in the modules in which the model's classes are written, torch's left out.

    Args:
        model: the model whose forward is going to be traced.
    """

    def length(value: Sized) -> object:
        """Return the size of the first dim of a tensor, or the length of anything else."""
        return value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else len(value)

    written = (getattr(type(module).forward, "__globals__", {}) for module in model.modules())
    spaces = {id(space): space for space in written if "len" not in space and not _is_of_torch(space)}

    def put() -> None:
        """Give the name `len` its other meaning in the modules of the model's classes."""
        for space in spaces.values():
            space["len"] = length

    def take_back() -> None:
        """Give the name `len` Python's own meaning again in the modules of the model's classes."""
        for space in spaces.values():
            space.pop("len", None)

    return Undo(take_back, put)


def _is_of_torch(space: Mapping[str, object]) -> bool:
    """Whether the global names of a Python module, by name, are those of a module of torch."""
    return str(space.get("__name__", "")).partition(".")[0] == "torch"

"""The only place that patches torch, for the length of one capture: calls of modules and of autograd Functions.

torch.fx patches `nn.Module.__call__` in the same way while it traces. torch has no hook for
`torch.autograd.Function.apply`, whose custom gradient every tracer would otherwise lose silently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

ModuleCall = Callable[[Callable[..., Any], nn.Module, tuple[Any, ...], dict[str, Any]], Any]
_NON_REENTRANT = "_checkpoint_without_reentrant_generator"
FunctionApply = Callable[[Callable[..., Any], type, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def module_calls(handler: ModuleCall) -> Iterator[None]:
    """Within the block, `handler(original, module, args, kwargs)` runs in place of every module call."""
    original: Any = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return handler(original, module, args, kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def function_applies(handler: FunctionApply) -> Iterator[None]:
    """Within the block, `handler(original, cls, args, kwargs)` runs in place of every `autograd.Function.apply`."""
    function: Any = torch.autograd.Function
    original = function.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        return handler(original.__get__(None, cls), cls, args, kwargs)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original


def plain_call_of_checkpoint(cls: type, args: tuple[Any, ...]) -> Callable[[], Any] | None:
    """The call that torch's reentrant checkpoint makes, to be recorded without it; None for any other Function."""
    if cls.__module__ != "torch.utils.checkpoint":
        return None
    function, _preserve_rng_state, *inputs = args
    return lambda: function(*inputs)


@contextmanager
def checkpoints_noticed() -> Iterator[list[str]]:
    """Within the block, every use of torch.utils.checkpoint, of either kind, adds to the list.

    Models import `checkpoint` under names of their own; what it goes through is looked up in its own module.
    """
    module: Any = torch.utils.checkpoint
    used: list[str] = []
    generator, function = getattr(module, _NON_REENTRANT, None), module.CheckpointFunction

    def non_reentrant(*args: Any, **kwargs: Any) -> Any:
        used.append("non-reentrant")
        assert generator is not None
        return generator(*args, **kwargs)

    class Reentrant:
        @staticmethod
        def apply(*args: Any) -> Any:
            used.append("reentrant")
            return function.apply(*args)

    module.CheckpointFunction = Reentrant
    if generator is not None:
        setattr(module, _NON_REENTRANT, non_reentrant)
    try:
        yield used
    finally:
        module.CheckpointFunction = function
        if generator is not None:
            setattr(module, _NON_REENTRANT, generator)


def is_torchs_own(cls: type) -> bool:
    """True for a Function by which torch itself gives a custom op its gradient; the op is what a graph keeps."""
    return cls.__module__.startswith("torch.")


def is_backward_hook(cls: type) -> bool:
    """True for the identity by which torch lets a module's backward hooks see gradients."""
    return cls.__module__ == "torch.nn.modules._functions" and cls.__name__ == "BackwardHookFunction"


@contextmanager
def as_if_exporting() -> Iterator[None]:
    """Within the block `torch.compiler.is_exporting()` is true, so that models avoid looking at tensor values.

    torch offers no way to say so from outside an export.
    """
    compiler: Any = torch.compiler
    flags = {name: getattr(compiler, name) for name in ("_is_compiling_flag", "_is_exporting_flag")}
    for name in flags:
        setattr(compiler, name, True)
    try:
        yield
    finally:
        for name, flag in flags.items():
            setattr(compiler, name, flag)


@contextmanager
def answers_as_eager(told: Container[str] | None) -> Iterator[list[str]]:
    """Within the block a model that asks `torch.compiler` whether it is compiled hears no, as it does in training.

    Some choose another algorithm when they hear yes. torch itself is told the truth.

    Args:
        told: places in the model's code that hear the truth; None for all of them.

    Yields:
        The places that heard something else, in the order in which they asked.
    """
    compiler: Any = torch.compiler
    originals = {name: getattr(compiler, name) for name in ("is_compiling", "is_exporting")}
    asked: list[str] = []

    def answer(name: str) -> bool:
        truth = bool(originals[name]())
        place = _place(sys._getframe(2))
        if not truth or not place or told is None or place in told:
            return truth
        asked.append(place)
        return False

    for name in originals:
        setattr(compiler, name, lambda name=name: answer(name))
    try:
        yield asked
    finally:
        for name, original in originals.items():
            setattr(compiler, name, original)


def _place(frame: FrameType) -> str:
    """Where a question comes from, helpers between included; "" for torch itself."""
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] == "torch":
        return ""
    frames = [frame, *([frame.f_back] if frame.f_back is not None else [])]
    return " < ".join(f"{each.f_code.co_filename}:{each.f_lineno}" for each in frames)


@contextmanager
def conversions_that_change_nothing() -> Iterator[None]:
    """Within the block `module.to(...)` of a module that is so already returns at once.

    Models call it in forward to be sure of a dtype; on fake weights torch refuses even when there is nothing to do.
    """
    cls: Any = nn.Module
    original = cls.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        asked = (*args, *kwargs.values())
        dtypes = {value for value in asked if isinstance(value, torch.dtype)}
        devices = {torch.device(value) for value in asked if isinstance(value, (str, torch.device))}
        tensors = [*module.parameters(), *module.buffers()]
        floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if (not dtypes or floats <= dtypes) and (not devices or {tensor.device for tensor in tensors} <= devices):
            return module
        return original(module, *args, **kwargs)

    cls.to = to
    try:
        yield
    finally:
        cls.to = original

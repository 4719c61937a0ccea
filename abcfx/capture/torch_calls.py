"""Say how a call that torch hands to a mode stands in a graph: as an operator, a method, an attribute or a function."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch.fx.node import Argument, Target

GraphCall = tuple[str, Target, tuple[Argument, ...], dict[str, Argument]]


def graph_call(func: Callable[..., object], args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> GraphCall:
    """Return op, target and arguments of the graph node that stands for a call of torch.

    Args:
        func: what torch calls: a function, or a method, getter or setter of Tensor.
        args: positional arguments, with graph nodes in the place of tensors.
        kwargs: keyword arguments, with graph nodes in the place of tensors.
    """
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return "call_function", getattr, (args[0], _attribute(func)), {}
    if name == "__set__":
        return "call_function", setattr, (args[0], _attribute(func), args[1]), {}
    if (python := _python_operator(name)) is not None and not kwargs:
        function, swapped = python
        return "call_function", function, args[::-1] if swapped else args, {}
    return ("call_method", name, args, kwargs) if _is_method(func) else ("call_function", func, args, kwargs)


def _attribute(func: Callable[..., object]) -> str:
    """Return the name of the attribute that a getter or setter of torch.Tensor belongs to."""
    return str(func.__self__.__name__)  # type: ignore[attr-defined]


def _is_method(func: Callable[..., object]) -> bool:
    """Whether a callable is a method of torch.Tensor, which a graph calls by name."""
    owner = getattr(func, "__objclass__", None)
    if owner is not None:
        return issubclass(torch.Tensor, owner)
    return getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase."))


def _python_operator(name: str) -> tuple[Callable[..., object], bool] | None:
    """Return `operator`'s function for a special method, if any, and whether operands are swapped (`__radd__`)."""
    if not (name.startswith("__") and name.endswith("__")):
        return None
    word = name[2:-2]
    if hasattr(operator, name):
        return getattr(operator, word, None) or getattr(operator, name), False
    if word.startswith("r") and hasattr(operator, f"__{word[1:]}__"):
        return getattr(operator, word[1:]), True
    return None

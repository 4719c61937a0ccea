"""Let functions that a copied model holds reach the copy's modules: `copy.deepcopy` shares functions as they are."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import nn

_EMPTY = object()
_CONTAINERS = (list, dict, set, tuple)
_ATOMS = (str, bytes, int, float, complex, type(None), type, types.ModuleType, types.BuiltinFunctionType)


class Rebinder:
    """Rewrites functions that a copied model holds, such as lambdas in attributes, so that they use the copy's modules.

    `copy.deepcopy` shares functions, so that they would go on to use the modules and tensors of the original.

    Args:
        memo: the dict that `copy.deepcopy` filled: the copies by the ids of their originals.
    """

    def __init__(self, memo: dict[int, object]) -> None:
        self._memo = memo
        self._functions: dict[int, types.FunctionType] = {}
        self._done: dict[int, object] = {}  # the objects are kept, so that no id comes twice

    def rebind(self, model: nn.Module) -> None:
        """Rebind every function that a copied model keeps in an attribute, a container or a hook."""
        for module in model.modules():
            for name, value in list(module.__dict__.items()):
                module.__dict__[name] = self._bound(value)

    def _bound(self, value: object) -> object:
        """Return a value of the copied model with every function in it that reaches the original model replaced.

        Without such a function it is the value itself.
        """
        if isinstance(value, (*_ATOMS, torch.Tensor, nn.Module)):
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            if self._reaches(value.func):
                function = cast("Callable[..., object]", self._bound(value.func))
                return functools.partial(function, *value.args, **value.keywords)
            return value
        if isinstance(value, types.MethodType):
            method, owner = cast("Callable[..., object]", self._bound(value.__func__)), self._twin(value.__self__)
            return value if method is value.__func__ and owner is value.__self__ else types.MethodType(method, owner)
        if type(value) is tuple:
            new = tuple(map(self._bound, value))
            return value if all(map(_is, new, value)) else new
        if id(value) in self._done:
            return value
        self._done[id(value)] = value
        if isinstance(value, list):
            value[:] = map(self._bound, value)
        elif isinstance(value, dict):
            for key, each in list(value.items()):
                value[key] = self._bound(each)
        elif not _is_library(type(value)):
            self._bound(getattr(value, "__dict__", None))
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """Return a function that uses the copied model in place of one whose closure or defaults use the original."""
        if id(function) in self._functions:
            return self._functions[id(function)]
        if not self._reaches(function):
            return function
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        new = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        functools.update_wrapper(new, function)
        del new.__dict__["__wrapped__"]
        new.__dict__.update(function.__dict__)
        self._functions[id(function)] = new
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            if not _is_empty(old):
                cell.cell_contents = self._twin(old.cell_contents)
        new.__defaults__ = None if function.__defaults__ is None else tuple(map(self._twin, function.__defaults__))
        defaults = function.__kwdefaults__
        new.__kwdefaults__ = None if defaults is None else {key: self._twin(each) for key, each in defaults.items()}
        return new

    def _twin(self, value: object) -> object:
        """Return a copy of a value that refers to parts of the original model, made to refer to the copied model's.

        Any other value is returned itself, and stays shared.
        """
        if not self._reaches(value):
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return self._bound(copy.deepcopy(value, self._memo))

    def _reaches(self, value: object) -> bool:
        """Whether a value is a module or tensor of the model that was copied (the original), or holds one."""
        return any(id(part) in self._memo for part in reachable(value))


def reachable(value: object, seen: set[int] | None = None) -> Iterator[torch.Tensor | nn.Module]:
    """Yield the tensors and modules that a value is or holds, also in closures and defaults of functions.

    Modules are not looked into. `seen` has the ids of objects that were visited already.
    """
    seen = set() if seen is None else seen
    if isinstance(value, _ATOMS) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor | nn.Module):
        yield value
        return
    for part in _parts(value):
        yield from reachable(part, seen)


def _parts(value: object) -> list[object]:
    """Return what a function (closure, defaults), a bound method, a container or a plain object holds."""
    if isinstance(value, types.FunctionType):
        return [*_contents(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, _CONTAINERS):
        return list(value.values() if isinstance(value, dict) else value)
    return [] if _is_library(type(value)) else list(getattr(value, "__dict__", {}).values())


def _is_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("torch", "numpy", "builtins", "logging")


def _contents(function: types.FunctionType) -> list[object]:
    return [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]


def _is_empty(cell: types.CellType) -> bool:
    """Whether a closure variable of a function has no value yet."""
    try:
        return cell.cell_contents is _EMPTY
    except ValueError:
        return True


def _is(left: object, right: object) -> bool:
    return left is right

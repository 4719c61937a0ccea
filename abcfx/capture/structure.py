"""Outputs of any shape: nested containers, registered dataclasses, and plain objects that hold tensors (caches)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from abcfx.support import trees

_VALUES = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Value:
    """The graph's output of this index."""

    index: int


@dataclass(frozen=True)
class Fixed:
    """A part of the output that is no tensor and is the same on every call."""

    value: Any


@dataclass(frozen=True)
class Container:
    """A container that pytree knows, over its leaves."""

    spec: trees.TreeSpec
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Instance:
    """An object of a class that pytree does not know, made again from its attributes."""

    cls: type
    attributes: Container


Part = Value | Fixed | Container | Instance


def take_apart(output: Any) -> tuple[list[Any], Part]:
    """The tensors (and traced sizes) in a model's output, and the recipe to build that output from others."""
    values: list[Any] = []
    return values, _part(output, values, ())


def put_together(part: Part, values: Sequence[Any]) -> Any:
    """A model's output made of the given values."""
    if isinstance(part, Value):
        return values[part.index]
    if isinstance(part, Fixed):
        return part.value
    if isinstance(part, Instance):
        new: Any = object.__new__(part.cls)
        new.__dict__.update(put_together(part.attributes, values))
        return new
    return trees.unflatten([put_together(each, values) for each in part.parts], part.spec)


def _part(output: Any, values: list[Any], above: tuple[int, ...]) -> Part:
    if isinstance(output, _VALUES):
        values.append(output)
        return Value(len(values) - 1)
    leaves, spec = trees.flatten(output)
    if not spec.is_leaf():
        return Container(spec, tuple(_part(leaf, values, above) for leaf in leaves))
    attributes = getattr(output, "__dict__", None)
    if attributes is None or isinstance(output, (nn.Module, type)) or id(output) in above or callable(output):
        return Fixed(output)
    before = len(values)
    inner = _part(dict(attributes), values, (*above, id(output)))
    if len(values) == before or not isinstance(inner, Container):
        return Fixed(output)
    return Instance(type(output), inner)

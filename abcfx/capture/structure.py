"""Take a model's output apart into tensors and a recipe, and build it again from other tensors.

Outputs may be nested containers, registered dataclasses, or plain objects that hold tensors, such as caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.support import trees

_VALUES = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Value:
    """A part of a model's output that is a tensor: its index among the graph's flat outputs."""

    index: int


@dataclass(frozen=True)
class Fixed:
    """A part of a model's output that is not a tensor and is the same on every call."""

    value: object


@dataclass(frozen=True)
class Container:
    """A part of a model's output that is a container which torch can flatten: how it is nested, and its leaves."""

    spec: trees.TreeSpec
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Instance:
    """A part of a model's output that is an object of any other class, made again from its attributes."""

    cls: type
    attributes: dict[str, Part]


Part = Value | Fixed | Container | Instance


def take_apart(output: object) -> tuple[list[object], Part]:
    """Return the tensors (and traced sizes) in a model's output, and a recipe that builds such an output of others."""
    values: list[object] = []
    return values, _part(output, values, ())


def put_together(part: Part, values: Sequence[object]) -> object:
    """Build a model's output from a recipe and tensors.

    Args:
        part: the recipe, which `take_apart` made from such an output.
        values: the tensors, in the order in which `take_apart` gives them.
    """
    if isinstance(part, Value):
        return values[part.index]
    if isinstance(part, Fixed):
        return part.value
    if isinstance(part, Container):
        return trees.unflatten([put_together(each, values) for each in part.parts], part.spec)
    instance: object = object.__new__(part.cls)
    vars(instance).update({name: put_together(each, values) for name, each in part.attributes.items()})
    return instance


def _part(output: object, values: list[object], above: tuple[int, ...]) -> Part:
    """Return the recipe of one part of a model's output, and append its tensors to `values`.

    Args:
        output: the part.
        values: the tensors so far; grows.
        above: ids of the objects that contain this part, so that an object that contains itself ends the descent.
    """
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
    parts = {name: _part(value, values, (*above, id(output))) for name, value in dict(attributes).items()}
    return Instance(type(output), parts) if len(values) > before else Fixed(output)

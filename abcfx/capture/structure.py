"""Take a model's output apart into tensors and a recipe, and build it again from other tensors.

Outputs may be nested containers, registered dataclasses, or plain objects that hold tensors, such as caches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import fx, nn

from abcfx.support import trees

_VALUES = (torch.Tensor, fx.Proxy, torch.SymInt, torch.SymFloat, torch.SymBool)


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
    """A part of a model's output that is a container which torch can flatten.

    Attributes:
        spec: the class of the container, and its keys.
        parts: the entries.
        names: key, field or index of each entry.
    """

    spec: trees.TreeSpec
    parts: tuple[Part, ...]
    names: tuple[str, ...]

    def __reduce__(self) -> tuple[object, ...]:
        # Pickled as an example of the container: torch's own description of one warns when it is unpickled.
        return _container_like, (trees.unflatten([0] * len(self.parts), self.spec), self.parts, self.names)


def _container_like(example: object, parts: tuple[Part, ...], names: tuple[str, ...]) -> Container:
    """Return a Container of the class and keys of `example`; pickle calls it."""
    return Container(trees.structure(example), parts, names)


@dataclass(frozen=True)
class Instance:
    """A part of a model's output that is an object of any other class, made again without a call of its `__init__`.

    Attributes:
        cls: the class.
        attributes: its attributes, in `__dict__` or in slots, by name.
        entries: keys and values of a subclass of dict, or indices and values of a subclass of list or tuple.
    """

    cls: type
    attributes: dict[str, Part]
    entries: dict[object, Part]


Part = Value | Fixed | Container | Instance


def take_apart(output: object) -> tuple[list[object], Part]:
    """Return the tensors (and traced sizes) in a model's output, and a recipe that builds such an output of others."""
    values: list[object] = []
    return values, _part(output, values, ())


def put_together(part: Part, values: Sequence[object]) -> object:
    """Build a model's output from a recipe (how it is nested) and tensors.

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
    entries = {key: put_together(each, values) for key, each in part.entries.items()}
    made_with = (entries.values(),) if issubclass(part.cls, tuple) else ()
    instance: object = part.cls.__new__(part.cls, *made_with)
    if isinstance(instance, dict):
        dict.update(instance, entries)
    elif isinstance(instance, list):
        list.extend(instance, entries.values())
    for name, each in part.attributes.items():
        object.__setattr__(instance, name, put_together(each, values))
    return instance


def output_paths(part: Part | None) -> list[str]:
    """Return the path of each tensor in a model's output, such as "logits" or "cache.0.1"; "" for a sole tensor.

    `part` is the recipe that builds such an output; None for outputs that are flat already.
    """
    return [""] if part is None else [path for _, path in sorted(_paths(part, ()))]


def tensors_by_path(output: object) -> dict[str, torch.Tensor]:
    """Return the tensors in a model's output by their paths in it, such as "logits"; "" for an output that is one."""
    values, part = take_apart(output)
    paths = output_paths(part)
    return {path: value for path, value in zip(paths, values, strict=True) if isinstance(value, torch.Tensor)}


def is_native(part: Part) -> bool:
    """Whether a graph can hold arguments of this form: values, plain constants, and tuples, lists and dicts of them."""
    if isinstance(part, Value):
        return True
    if isinstance(part, Fixed):
        return part.value is None or isinstance(
            part.value, bool | int | float | complex | str | torch.dtype | torch.device | torch.layout
        )
    if isinstance(part, Container):
        kind = part.spec.type
        return kind in (tuple, list, dict) and all(map(is_native, part.parts))
    return False


def steps_to_values(
    part: Part, above: tuple[tuple[Callable[..., object], object], ...] = ()
) -> Iterator[tuple[tuple[Callable[..., object], object], ...] | None]:
    """Yield, for each value of a result in order, the calls that take it out of the result; None where none can.

    Args:
        part: the recipe of the result, or of a part of it.
        above: the calls that take this part out of the result.
    """
    if isinstance(part, Value):
        yield above
    elif isinstance(part, Container):
        example = trees.unflatten(list(range(len(part.parts))), part.spec)
        is_sequence, is_mapping = isinstance(example, tuple | list), isinstance(example, Mapping)
        keys: Sequence[object] = range(len(part.parts)) if is_sequence else part.names
        for key, each in zip(list(example) if isinstance(example, Mapping) else keys, part.parts, strict=True):
            yield from steps_to_values(
                each, (*above, (operator.getitem if is_sequence or is_mapping else getattr, key))
            )
    elif isinstance(part, Instance):
        for key, each in part.entries.items():
            yield from steps_to_values(each, (*above, (operator.getitem, key)))
        for name, each in part.attributes.items():
            yield from steps_to_values(each, (*above, (getattr, name)))


def _paths(part: Part, above: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield index and path of each tensor in a part of a model's output; `above` are the names above the part."""
    if isinstance(part, Value):
        yield part.index, ".".join(above)
    elif isinstance(part, Container):
        for name, each in zip(part.names, part.parts, strict=True):
            yield from _paths(each, (*above, name))
    elif isinstance(part, Instance):
        for key, each in (part.attributes | part.entries).items():
            yield from _paths(each, (*above, str(key)))


def _part(output: object, values: list[object], above: tuple[int, ...]) -> Part:
    """Return the recipe of one part of a model's output, and append its tensors to `values`.

    Args:
        output: the part.
        values: the tensors so far, to which this adds.
        above: ids of the objects that contain this part, so that an object that contains itself ends the descent.
    """
    if isinstance(output, _VALUES):
        values.append(output)
        return Value(len(values) - 1)
    leaves, spec = trees.flatten_once(output)
    if not spec.is_leaf():
        parts = tuple(_part(leaf, values, above) for leaf in leaves)
        return Container(spec, parts, _names(output, len(parts)))
    attributes, entries = attributes_of(output), _entries(output)
    if isinstance(output, (nn.Module, type)) or id(output) in above or callable(output):
        return Fixed(output)
    before, above = len(values), (*above, id(output))
    inside = {key: _part(value, values, above) for key, value in entries.items()}
    around = {name: _part(value, values, above) for name, value in attributes.items()}
    return Instance(type(output), around, inside) if len(values) > before else Fixed(output)


def _names(container: object, count: int) -> tuple[str, ...]:
    """Return the names of the `count` entries of a container: keys, fields of its class, or else indices."""
    names: list[object] = []
    if isinstance(container, Mapping):
        names = list(container)
    elif isinstance(container, tuple):
        names = list(getattr(container, "_fields", ()))
    elif is_dataclass(container):
        names = [field.name for field in fields(container)]
    return tuple(map(str, names if len(names) == count else range(count)))


def attributes_of(value: object) -> dict[str, object]:
    """Return the attributes of an object, those in slots included."""
    slots = [name for cls in type(value).__mro__ for name in _as_tuple(cls.__dict__.get("__slots__", ()))]
    named = {name: getattr(value, name) for name in slots if name != "__dict__" and hasattr(value, name)}
    return named | dict(getattr(value, "__dict__", {}))


def _as_tuple(slots: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in a class's `__slots__`, which may be a single string."""
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _entries(value: object) -> dict[object, object]:
    """Return what an object of a subclass of dict, list or tuple holds, by key or position; {} for other objects."""
    if isinstance(value, dict):
        return dict(dict.items(value))
    return dict(enumerate(value)) if isinstance(value, (list, tuple)) else {}

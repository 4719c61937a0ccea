"""The arguments of an op as its rule takes them: values in place of nodes, keywords in their positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.fx as fx
from torch.fx.operator_schemas import get_signature_for_torch_op

from abcfx.capture.registered import ArgumentNames, registered_arguments
from abcfx.rules import Number, Sizes, Value
from abcfx.support import trees

Arguments = tuple[tuple[object, ...], dict[str, object]]


def load(argument: object, values: Mapping[fx.Node, object]) -> object:
    """Return an argument of an fx node with each fx node in it replaced by its value from `values`."""
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, tuple):
        return tuple(load(each, values) for each in argument)
    if isinstance(argument, list):
        return [load(each, values) for each in argument]
    if isinstance(argument, dict):
        return {key: load(each, values) for key, each in argument.items()}
    if isinstance(argument, slice):
        return slice(*(load(each, values) for each in (argument.start, argument.stop, argument.step)))
    return argument


def leaves(value: object) -> list[object]:
    """Return all leaves (abstract tensors, sizes, plain values) of nested arguments or results as a flat list."""
    return trees.leaves(value, is_leaf=lambda leaf: isinstance(leaf, Value | Sizes | Number))


def tensors(value: object) -> list[Value]:
    """Return the abstract tensors (`Value`) in nested arguments or results, as a flat list."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Value)]


def positional(target: object, args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
    """Return the arguments of a torch function with keywords at their positions.

    addmm(bias, mat1=x, mat2=w) becomes addmm(bias, x, w).

    Args:
        target: the function.
        args: positional arguments.
        kwargs: keyword arguments; those that have no position stay keywords.
    """
    if not kwargs:
        return tuple(args), {}
    registered = registered_arguments(target)
    known = [registered] if registered is not None else _torch_arguments(target)
    names = next((names.positional for names in known if names.all.issuperset(kwargs)), ())
    return _in_place(names, args, kwargs)


def forward_arguments(module: torch.nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
    """Return the arguments of a module call with keywords at their positions in the module's forward."""
    return _in_place(_positional_names(inspect.signature(module.forward)), args, kwargs)


def _torch_arguments(target: object) -> list[ArgumentNames]:
    """Return the argument names of each overload of a torch function or method; none for any other function."""
    function = target if callable(target) else getattr(torch, str(target), None)
    found = get_signature_for_torch_op(function) if function is not None else None
    return [ArgumentNames(frozenset(each.parameters), tuple(_positional_names(each))) for each in found or ()]


def _positional_names(signature: inspect.Signature) -> list[str]:
    """Return the names of the arguments of a signature that can be given by position, in order."""
    return [name for name, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]


def _in_place(names: Iterable[str], args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
    """Move keyword arguments to the positions that `names` gives them, up to the first that is missing."""
    moved, rest = list(args), dict(kwargs)
    for name in list(names)[len(args) :]:
        if name not in rest:
            break
        moved.append(rest.pop(name))
    return tuple(moved), rest

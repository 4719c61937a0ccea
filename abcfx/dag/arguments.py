"""The arguments of an op as its rule takes them: values in place of nodes, keywords in their positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
import torch.fx as fx
from torch.fx.operator_schemas import get_signature_for_torch_op

from abcfx.capture.registered import registered_name
from abcfx.rules import Number, Sizes, Value, plain_name
from abcfx.support import trees

Arguments = tuple[tuple[object, ...], dict[str, object]]
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x2": "other"}  # torch takes these too
_WITHOUT_EFFECT = frozenset({
    "dtype", "out_dtype", "layout", "device", "memory_format", "pin_memory", "requires_grad", "non_blocking", "copy",
    "generator", "keepdim", "stable", "sorted", "largest", "approximate", "decimals", "rounding_mode", "eps",
    "correction", "unbiased", "interpolation", "indexing", "edge_order", "driver", "check_errors", "upper", "left",
    "unitriangular", "right", "side", "rcond", "atol", "rtol", "hermitian", "include_self", "accumulate",
    "implicit", "sparse_grad", "descending", "path",
})  # fmt: skip
"""Keywords of torch that change neither how large a result is nor how it depends on what goes in."""


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
    """Return all leaves of nested arguments or results of an op as a flat list.

    Leaves are abstract tensors (records of where a tensor comes from), sizes and plain values.
    """
    return trees.leaves(value, is_leaf=lambda leaf: isinstance(leaf, Value | Sizes | Number))


def tensors(value: object) -> list[Value]:
    """Return the abstract tensors (`Value`: where a tensor comes from) in nested arguments, as a flat list."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Value)]


def positional(target: Callable[..., object] | str, args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
    """Return the arguments of a torch function with keywords moved to their positions.

    Those that do not matter to how large the result is are dropped.

    Defaults fill the gaps: F.batch_norm(x, mean, var, bias=b) becomes F.batch_norm(x, mean, var, None, b).
    """
    if not kwargs or plain_name(target) is None:
        return tuple(args), dict(kwargs)
    given = {_NUMPY_NAMES.get(key, key): value for key, value in kwargs.items()}
    fitting = (fit for each in _signatures(target) if (fit := _in_place(each, args, given)) is not None)
    moved, rest = next(fitting, (tuple(args), given))
    return moved, {key: value for key, value in rest.items() if key not in _WITHOUT_EFFECT}


def forward_arguments(module: torch.nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
    """Move keyword arguments of a module call to their positions in the signature of the module's forward."""
    return _in_place(inspect.signature(module.forward), args, kwargs) or (tuple(args), dict(kwargs))


@cache
def _signatures(target: Callable[..., object] | str) -> Sequence[inspect.Signature]:
    """Return the signature of each overload of a torch function, method or registered op."""
    name = plain_name(target)
    function = getattr(torch.Tensor, target, None) if isinstance(target, str) else target
    with_indices = getattr(torch.nn.functional, f"{name}_with_indices", None)  # F.max_pool2d itself tells no names
    if with_indices is not None and registered_name(target) is None:
        return [inspect.signature(with_indices)]
    if inspect.isfunction(function):
        return [inspect.signature(function)]
    found = None if isinstance(target, str) else get_signature_for_torch_op(target)
    packet = getattr(torch.ops.aten, str(name), None)  # the op that a method of tensors is called as
    return found or (packet and get_signature_for_torch_op(packet)) or ()


def _in_place(signature: inspect.Signature, args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments | None:
    """Return a call's arguments with keywords moved to their positions in a signature; None if they do not fit it."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return None
    moved, rest = list(args), dict(kwargs)
    names = [name for name, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    last = max((names.index(name) for name in kwargs if name in names), default=-1)
    for name in names[len(args) : last + 1]:
        moved.append(rest.pop(name) if name in rest else signature.parameters[name].default)
    return tuple(moved), rest

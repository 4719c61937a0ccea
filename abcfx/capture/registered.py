"""Name and arguments of ops that are registered with torch, such as aten.relu.default, whose types are private."""

from __future__ import annotations

from dataclasses import dataclass

from torch._ops import OpOverload, OpOverloadPacket


@dataclass(frozen=True)
class ArgumentNames:
    """The names of a torch op's arguments.

    Attributes:
        all: every name.
        positional: the names that may be given by position, in order.
    """

    all: frozenset[str]
    positional: tuple[str, ...]


def registered_name(target: object) -> tuple[str, str] | None:
    """Return (namespace, name without overload) of a registered op; None for any other function.

    Example:
        >>> import torch
        >>> registered_name(torch.ops.aten.relu.default), registered_name(torch.relu)
        (('aten', 'relu'), None)
    """
    if not isinstance(target, OpOverload | OpOverloadPacket):
        return None
    namespace, _, name = str(target).partition(".")
    return namespace, name.partition(".")[0]


def registered_arguments(target: object) -> ArgumentNames | None:
    """Return the names of a registered op's arguments; None for any other function."""
    if not isinstance(target, OpOverload):
        return None
    arguments = target._schema.arguments
    return ArgumentNames(
        frozenset(argument.name for argument in arguments),
        tuple(argument.name for argument in arguments if not argument.kwarg_only),
    )

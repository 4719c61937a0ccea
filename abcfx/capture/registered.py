"""Names of ops that are registered with torch, such as aten.relu.default, whose types are private."""

from __future__ import annotations

from torch._ops import OpOverload, OpOverloadPacket


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

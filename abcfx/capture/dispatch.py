"""Watch the aten calls of a run; the one use of torch's dispatch modes, which torch keeps in a private module."""

from __future__ import annotations

from typing import TypeAlias

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

# One overload of an op, such as `torch.ops.aten.add.Tensor`.
AtenOp: TypeAlias = OpOverload


class CallWatcher(TorchDispatchMode):
    """A base class of torch modes that see every aten call within their `with` block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def watch(self, op: AtenOp, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Make an aten call and return its result; each subclass does so in its own way."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: AtenOp, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        """Hand an aten call over to `watch`; torch calls this method for every aten call within the block."""
        return self.watch(func, args, kwargs or {})

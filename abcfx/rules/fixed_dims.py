"""The kind of DAG node in front of a function of whole matrices, whose size must not grow with the width."""

from __future__ import annotations

from dataclasses import dataclass

from abcfx.errors import UnknownOpError
from abcfx.rules.bounds import ExponentContext
from abcfx.rules.extents import Dim
from abcfx.rules.kinds import Unary


@dataclass(frozen=True)
class FixedDims(Unary):
    """A node of the layer DAG that passes its input on to a function of whole matrices, such as an inverse.

    How such a function depends on the size of the matrix is not known, so models in which it grows are refused.

    Attributes:
        dims: the dims of the input that must not grow with the width.
        op: name of the function, for the error.
        where: module path and source line of the function, for the error.
    """

    dims: tuple[Dim, ...]
    op: str
    where: str

    def size(self, node: str, context: ExponentContext) -> float:
        return context.size(self.input)

    def shift(self, context: ExponentContext) -> float:
        if context.growth(*self.dims):
            raise UnknownOpError(
                f"No rule for {self.op} of a matrix that grows with the width\n"
                f"  in {self.where}\n"
                f"  expected: matrices of one size in base and target; got ones that grow.\n"
                f"  To fix: keep their size, or register a rule that says how large the result is,\n"
                f"      @abcfx.rules.register_rule({self.op!r})"
            )
        return 0.0

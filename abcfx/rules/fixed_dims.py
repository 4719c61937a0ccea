"""The kind of DAG node in front of a function of whole matrices, whose size must not grow with the width."""

from __future__ import annotations

from dataclasses import dataclass

from abcfx.errors import UnknownOpError
from abcfx.rules.bounds import ExponentContext
from abcfx.rules.extents import Dim
from abcfx.rules.kinds import Unary


@dataclass(frozen=True)
class FixedDims(Unary):
    """The input itself, on its way into a function of whole matrices, such as an inverse, whose dims must not grow.

    Attributes:
        dims: the dims.
        op: name of the function.
        where: where it stands in the model.
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

"""Bounds on exponents, and the exponents that they are computed from."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from abcfx.lp.names import RowLabel
from abcfx.rules.extents import Extent, Number
from abcfx.theory.optimizers import OptimizerFamily


class Bound(NamedTuple):
    """One term of a minimum: `out <= sum(inputs) + constant - weight * alignment`.

    Attributes:
        label: name of the term among those of its node.
        inputs: variables: ("r", node), ("G", node), ("g", parameter) or ("c", parameter).
        constant: the part that is known before the linear program is solved.
        alignment: "alpha", "omega" or "u", where the term depends on one.
        weight: factor of the alignment.
    """

    label: RowLabel
    inputs: tuple[tuple[str, str], ...]
    constant: float
    alignment: str | None = None
    weight: float = 0.0


class ExponentContext(Protocol):
    """Everything that is fixed before the linear program is solved, and that a kind may ask for to write its bounds."""

    def growth(self, *dims: Extent) -> float:
        """Return x such that the product of the dims' sizes grows like m^x (m, the width ratio)."""

    def number(self, number: Number) -> float:
        """Return x for a number that grows like m^x (m, the width ratio)."""

    def size(self, node: str | None) -> float:
        """Return s for a node whose entries are of size m^-s at init; 0 for a constant."""

    def changes(self, node: str | None) -> bool:
        """Whether training changes the tensor of a node, so that it has an exponent r (change m^-r)."""

    def a(self, node: str) -> float:
        """Return a of the multiplier m^-a on a layer (one use of a weight) or on attention logits."""

    def b(self, parameter: str) -> float:
        """Return b of a parameter whose standard deviation at init is m^-b (m, the width ratio)."""

    def learns(self, parameter: str) -> bool:
        """Whether the linear program knows a parameter: False for a frozen one, and for one of the role "plain"."""

    def family(self, parameter: str) -> OptimizerFamily:
        """Return the optimizer that trains a parameter, as its `OptimizerFamily` (how large its updates are)."""

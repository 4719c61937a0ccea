"""The parts of a linear program: rows over named variables, and rates with their costs and bounds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Hashable, Mapping
from typing import NamedTuple, TypeAlias, TypeGuard

ALIGNMENTS = ("alpha", "omega", "u")

Alignment: TypeAlias = Mapping[Hashable, tuple[float, float, float]]


class Row(NamedTuple):
    """A row: the constraint `out <= sum(inputs) + constant - weight * alignment` of the linear program.

    A level, such as the exponent r of a node's change, is a variable that is the min of all rows that bound it.
    `alignment` is the exponent (1/2 to 1) that says how strongly an update lines up with inputs.

    Attributes:
        name: any hashable, unique among the rows; binding rows, shadow prices and conflicts are told by it.
        out: the level that the row bounds.
        inputs: rates and levels; a repeated one counts twice.
        constant: a number.
        alignment: "alpha", "omega" or "u", the alignment exponent that is subtracted; None if there is none.
        layer: the layer whose alignment it is.
        weight: growth exponent e of the layer's fan_in, which is ~ m^e (m, the width ratio).
    """

    name: Hashable
    out: Hashable
    inputs: tuple[Hashable, ...]
    constant: float
    alignment: str | None = None
    layer: Hashable = None
    weight: float = 1.0

    def problem(self, levels: Collection[Hashable], rates: Collection[Hashable]) -> str | None:
        """Return, as text, what is wrong with this row (inequality) of the linear program; None if nothing is.

        Args:
            levels: names of all levels (variables that are each the min of their rows).
            rates: names of all rates.
        """
        if self.out in rates:
            return f"it defines {written(self.out)} as a level, but that is a rate"
        for name in self.inputs:
            if name not in levels and name not in rates:
                return f"its input {written(name)} is no rate, and no row defines it"
        if not math.isfinite(self.constant + self.weight):
            return f"its constant and its weight must be finite, got {self.constant} and {self.weight}"
        if self.alignment is not None and self.alignment not in ALIGNMENTS:
            return f"its alignment must be None or one of {', '.join(ALIGNMENTS)}; got {self.alignment!r}"
        return None


class Rate(NamedTuple):
    """A variable c of the linear program: a weight's learning rate is ~ m^-c (m, the width ratio), and c is minimised.

    Attributes:
        cost: its weight in the objective.
        distance: number of layers to the outputs; of equal optima, the one with smaller c upstream is taken.
        fixed: the value that it must have; None if it is free.
        bounds: the least and the greatest value that it may have.
    """

    cost: float = 1.0
    distance: int = 0
    fixed: float | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the greatest value that this variable may have; both are the fixed value if there is one."""
        return self.bounds if self.fixed is None else (self.fixed, self.fixed)

    def problem(self) -> str | None:
        """Return, as text, what is wrong with the cost or bounds of this variable of the linear program, or None."""
        low, high = self.limits
        if self.fixed is not None and not math.isfinite(self.fixed):
            return f"its fixed value must be finite, got {self.fixed}"
        if not (low <= high and low < math.inf and high > -math.inf):
            return f"its bounds, {low} to {high}, leave no value"
        if not (0 <= self.cost < math.inf and 0 <= self.distance < math.inf):
            return f"its cost and its distance must be finite and not negative, got {self.cost} and {self.distance}"
        return None


def is_tagged(name: Hashable) -> TypeGuard[tuple[str, Hashable]]:
    """Whether a variable's name is a pair of a letter and the layer or node that it is about: ("r", "layer 1")."""
    return isinstance(name, tuple) and len(name) == 2


def written(name: Hashable) -> str:
    """Return a variable's name as text for a formula, such as r(layer 1)."""
    return f"{name[0]}({name[1]})" if is_tagged(name) else str(name)


def generic_weight(name: Hashable) -> float:
    """Return a number in [0, 1) from a name, the same in every process, to break ties between equal optima."""
    return int.from_bytes(hashlib.blake2b(repr(name).encode(), digest_size=6).digest(), "big") / 2**48

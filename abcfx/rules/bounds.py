"""Bounds on exponents, and the exponents that they are computed from."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from abcfx.lp.names import RowLabel
from abcfx.rules.extents import Extent, Number
from abcfx.theory.optimizers import OptimizerFamily


class Bound(NamedTuple):
    """An upper bound on an exponent of a node of the layer DAG (graph of layers and ops).

    The exponent is the least of its bounds. A bound says `out <= sum(inputs) + constant - weight * alignment`, where
    `out` is r of the node (change in training ~ m^-r; m, the width ratio) or G (gradient ~ m^-G).

    Attributes:
        label: name of the bound among those of its node.
        inputs: variables: r or G of another node, g of a parameter (its gradient ~ m^-g), or c of a parameter (its
            learning rate ~ m^-c), as ("r", node), ("G", node), ("g", parameter), ("c", parameter).
        constant: the part that is known before the linear program is solved.
        alignment: the alignment exponent in the bound, if any: "alpha" (change of the weight with input at init),
            "omega" (weight at init with change of the input) or "u" (change with change).
        weight: factor of the alignment.
    """

    label: RowLabel
    inputs: tuple[tuple[str, str], ...]
    constant: float
    alignment: str | None = None
    weight: float = 0.0


class ExponentContext(Protocol):
    """The exponents of width that are fixed before the linear program is solved, as DAG nodes ask for them."""

    def growth(self, *dims: Extent) -> float:
        """Return x such that the product of these dims' sizes grows like m^x (m, the width ratio)."""

    def number(self, number: Number) -> float:
        """Return x such that a number in the model's code, such as sqrt(d_model), grows like m^x, m the width ratio."""

    def size(self, node: str | None) -> float:
        """Return s for a DAG node whose output has entries ~ m^-s at init (m, the width ratio); 0 for a constant."""

    def trained_size(self, node: str | None) -> float:
        """Return s for a node as `size` does, but once layers that start smaller (readouts) make outputs of order 1."""

    def changes(self, node: str | None) -> bool:
        """Whether training changes the output of a DAG node; None stands for a constant, which does not change."""

    def a(self, node: str) -> float:
        """Return a of the multiplier m^-a (m, the width ratio) on a layer or on the logits of an attention product."""

    def b(self, parameter: str) -> float:
        """Return b of a parameter whose standard deviation at init is m^-b (m, the width ratio)."""

    def init(self, node: str) -> float:
        """Return b of the weight at a layer node, which is ~ m^-b at init (m, the width ratio).

        For a node that stands for some columns of a parameter it is the b of these columns.
        """

    def learns(self, parameter: str) -> bool:
        """Whether the linear program knows a parameter: False for a frozen one, and for one of the role "plain"."""

    def family(self, parameter: str) -> OptimizerFamily:
        """Return the optimizer that trains a parameter, as its `OptimizerFamily` (how large its updates are)."""

"""Names of the rows and bounds of a linear program, as values: text is made of them and never read back."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

Relation: TypeAlias = Literal["=", "<=", ">="]


class RowKind(str, Enum):  # str, because its hash is that of C: programs have many thousands of rows
    """The kinds of rows (inequalities) of the linear program; each bounds an exponent of a node by one term.

    The exponent is r (change of an output ~ m^-r), G (gradient ~ m^-G) or g of a weight (gradient ~ m^-g); m is
    the width ratio.
    """

    ALPHA = "alpha"
    U = "u"
    OMEGA = "omega"
    UPDATE = "update"
    SOURCE = "source"
    INPUT = "input"
    CHANGE = "change"
    BOTH_CHANGES = "both changes"
    LOSS = "loss"
    GRADIENT = "gradient"
    INITIAL_GRADIENT = "initial gradient"
    UPDATED_GRADIENT = "updated gradient"
    WEIGHT_GRADIENT = "gradient of the weight"

    @property
    def bounds_gradient(self) -> bool:
        """Whether an inequality of this kind bounds the exponent of a gradient: of a tensor (G) or parameter (g)."""
        return self in _OF_GRADIENTS

    @property
    def sentence(self) -> str:
        """The constraint that a row (inequality) of this kind states, in words, for messages about conflicts."""
        return _SENTENCES[self]


_OF_GRADIENTS = frozenset(
    (
        RowKind.LOSS,
        RowKind.GRADIENT,
        RowKind.INITIAL_GRADIENT,
        RowKind.UPDATED_GRADIENT,
        RowKind.WEIGHT_GRADIENT,
    )
)
_SENTENCES = {
    RowKind.ALPHA: "the update of its weight, times the input (dW x), changes its output",
    RowKind.U: "the update of its weight, times the change of the input (dW dx), changes its output",
    RowKind.OMEGA: "its initial weight carries on the change of the input (W dx)",
    RowKind.UPDATE: "the update of its weight changes its output",
    RowKind.SOURCE: "a source without a weight changes as its multiplier a says",
    RowKind.INPUT: "it passes on the change of its input",
    RowKind.CHANGE: "it passes on the change of one of its operands",
    RowKind.BOTH_CHANGES: "it multiplies the changes of both its operands",
    RowKind.LOSS: "it is an output of the model, where the gradient of the loss arrives",
    RowKind.GRADIENT: "it receives the gradient of a node that uses it",
    RowKind.INITIAL_GRADIENT: "it receives a gradient through the initial weight of a layer that uses it",
    RowKind.UPDATED_GRADIENT: "it receives a gradient through the update of the weight of a layer that uses it",
    RowKind.WEIGHT_GRADIENT: "the gradient of its weight is the gradient of its output times its input",
}


class RowLabel(NamedTuple):
    """The label of a row of the linear program among the rows of its node: its kind and, if need be, another node.

    Attributes:
        kind: the kind of the row.
        other: the other node that the row is about; "" if there is only one row of this kind.
    """

    kind: RowKind
    other: str = ""

    def __str__(self) -> str:
        """Return the label of a row (inequality) of the linear program as text, such as "change from add_1"."""
        return f"{self.kind.value} from {self.other}" if self.other else self.kind.value


class RowName(NamedTuple):
    """The name of a row (inequality) of the linear program.

    Attributes:
        node: the node whose change or gradient the row bounds.
        label: kind of the row, and what tells it from others of that kind.
    """

    node: str
    label: RowLabel

    @property
    def kind(self) -> RowKind:
        """The kind of the row (inequality) of the linear program, such as `RowKind.ALPHA`."""
        return self.label.kind

    def __str__(self) -> str:
        """Return the name of a row (inequality) of the linear program as text, such as "head: alpha"."""
        return f"{self.node}: {self.label}"


class BoundName(NamedTuple):
    """The name of a bound on one variable of the linear program, such as "c of head >= 0".

    Attributes:
        owner: the node or parameter that the variable belongs to.
        variable: "c" (rate), "r" (change) or "G" (gradient).
        relation: "=", "<=" or ">=".
        value: the number on the other side.
    """

    owner: Hashable
    variable: str
    relation: Relation
    value: float

    def __str__(self) -> str:
        """Return the name of a bound on a variable of the linear program as text, such as "head: c >= 0"."""
        return f"{self.owner}: {self.variable} {self.relation} {self.value:g}"

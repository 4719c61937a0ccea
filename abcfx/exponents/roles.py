"""Decides the role of a layer (embedding, hidden, readout) from which of its dims grow and from what it feeds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from abcfx.dag.generators import generators
from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.routing import is_router


class RoleReason(Enum):
    """A reason for a parameter's role ("hidden", ...). The values are the words that the report uses."""

    UNUSED = "not used by the traced graph"
    GIVEN = "as given in `roles`"
    GROWING_VECTOR = "added or multiplied entry by entry, along a dim that grows"
    FIXED_VECTOR = "added or multiplied entry by entry, and no dim of it grows"
    BOTH_SIDES = "fan_in and fan_out grow"
    FAN_OUT_ONLY = "fan_out grows, fan_in does not"
    NEITHER_SIDE = "neither fan_in nor fan_out grows"
    FEEDS_OUTPUT = "fan_in grows, fan_out does not, and it feeds an output of the model"
    GENERATOR = "fan_in grows, fan_out does not, and it weighs the streams that it is computed from (a generator)"
    FEEDS_SOFTMAX = "fan_in grows, fan_out does not, and it feeds a softmax (a router)"
    ROUTER = "fan_in grows, fan_out does not, and it weighs what other layers compute (a router)"
    BOTTLENECK = "fan_in grows, fan_out does not, and other layers follow (an inner bottleneck)"


@dataclass(frozen=True)
class WhyRole:
    """The reasons for a parameter's role (embedding, hidden, ...) and exponents; its `str` stands in reports.

    Attributes:
        reason: what decided the role.
        own: the model itself multiplies the layer by m^-own (m, the width ratio), in place of a multiplier.
        tied_roles: roles of the other uses of a tied parameter, where they differ.
        normalised: whether forward divides the parameter by a norm of itself.
        inside_op: whether the multiplier would be needed inside one op, where no node can multiply.
        beside: of a weight whose input is a concatenation, a sentence on the columns of each input that does not grow.
        narrowing: of an inner layer, fan_out / fan_in, at most 1, shrinks like m^-narrowing.
    """

    reason: RoleReason
    own: float = 0.0
    tied_roles: tuple[str, ...] = ()
    normalised: bool = False
    inside_op: bool = False
    beside: tuple[str, ...] = ()
    narrowing: float = 0.0

    def __str__(self) -> str:
        """Return in one sentence why the parameter has its role (embedding, hidden, ...), as the report says it."""
        parts = [self.reason.value]
        if self.narrowing:
            parts.append(f"it makes few outputs of many inputs, so it starts smaller by m^-{self.narrowing / 2:.3g}")
        if self.own:
            parts.append(f"the model's own factor m^{-self.own:g} takes the place of its multiplier")
        if self.tied_roles:
            parts.append(f"tied, also used as {' and '.join(self.tied_roles)}")
        if self.normalised:
            parts.append("forward divides it by a norm of itself, so it keeps its own init")
        if self.inside_op:
            parts.append("no scale node can be placed inside the op, so init and rate carry its multiplier")
        return "; ".join([*parts, *self.beside])


def role_of_layer(dag: LayerDag, node: str, e_in: float, e_out: float) -> tuple[str, RoleReason]:
    """Return the role of one use of a weight (embedding, hidden, readout), and what decided it.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        node: the layer node.
        e_in: fan_in, the dims that the layer sums over, grows like m^e_in (m, the width ratio).
        e_out: fan_out, the dims of the output, grows like m^e_out.
    """
    if e_in and e_out:
        return "hidden", RoleReason.BOTH_SIDES
    if e_out:
        return "embedding", RoleReason.FAN_OUT_ONLY
    if not e_in:
        return "scalar", RoleReason.NEITHER_SIDE
    if dag.feeds_output(node):
        return "readout", RoleReason.FEEDS_OUTPUT
    if node in generators(dag):
        return "readout", RoleReason.GENERATOR
    if dag.feeds_softmax(node):
        return "readout", RoleReason.FEEDS_SOFTMAX
    if is_router(dag, node):
        return "readout", RoleReason.ROUTER
    return "hidden", RoleReason.BOTTLENECK

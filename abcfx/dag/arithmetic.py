"""Arithmetic on Python numbers that may change with width, such as head_dim ** -0.5."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import torch.fx as fx

from abcfx.rules import Number, plain_name
from abcfx.rules.extents import ScalarArgument

_OF_TWO: dict[str, Callable[[Number, Number], Number]] = {
    "mul": lambda x, y: x.times(y),
    "div": lambda x, y: x.times(y.power(-1.0)),
    "floordiv": lambda x, y: x.times(y.power(-1.0)),
    "add": lambda x, y: x if x.powers else y,
    "sub": lambda x, y: x if x.powers else y,
}
_ROUNDS = (int, float, operator.neg, abs, math.floor, math.ceil, round)


def compute_number(node: fx.Node, args: Sequence[object]) -> Number | None:
    """Return the result of an fx node that computes with numbers, such as head_dim ** -0.5; None for any other op.

    Args:
        node: the fx node.
        args: the arguments of the node, at least one of them a Number (a number that may change with width).
    """
    name = plain_name(node.target)
    if name == "pow" and isinstance(exponent := args[1], int | float):
        return _operand(node, args, 0).power(float(exponent))
    if name in ("sqrt", "sym_sqrt"):
        return _operand(node, args, 0).power(0.5)
    if name in _OF_TWO and len(args) == 2:
        return _OF_TWO[name](_operand(node, args, 0), _operand(node, args, 1))
    return _operand(node, args, 0) if node.target in _ROUNDS else None


def _operand(node: fx.Node, args: Sequence[object], index: int) -> Number:
    """Return an argument of an arithmetic node as a number that may change with width."""
    value = args[index]
    if isinstance(value, Number):
        return value
    return Number(((ScalarArgument(node, index), 1.0),)) if isinstance(value, int | float) else Number()

"""Find or make the nodes of a recorded graph that compute sizes out of the sizes of inputs.

While a model runs on fake tensors a size is a `torch.SymInt`: an expression of sympy over the sizes of inputs, to which
torch has no public access.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Protocol, SupportsFloat, SupportsInt

import torch
from torch import fx
from torch.fx.node import Argument

from abcfx.capture.graphs import at_front
from abcfx.errors import CaptureError

Symbolic = torch.SymInt | torch.SymFloat | torch.SymBool
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


class _Expression(SupportsInt, SupportsFloat, Protocol):
    """The part of a sympy expression (torch's form of a traced size) that is needed to turn it into nodes."""

    args: tuple[_Expression, ...]
    func: type
    is_Boolean: bool
    is_Symbol: bool
    is_integer: bool
    is_number: bool


class SizeNodes:
    """The nodes that compute traced sizes (torch.SymInt) in a graph, made when a size is first needed.

    Args:
        graph: the graph to which new nodes are added.
    """

    def __init__(self, graph: fx.Graph) -> None:
        """Start with no node that computes a traced size; `graph` is where they are added."""
        self.graph = graph
        # A node, or the placeholder and the dim to read off it when the size is first needed.
        self._known: dict[_Expression, fx.Node | tuple[fx.Node, int]] = {}

    def add_input(self, node: fx.Node, tensor: torch.Tensor) -> None:
        """Let the symbols in the shape of an input tensor be read off its placeholder `node` from now on."""
        for dim, size in enumerate(tensor.shape):
            if isinstance(size, torch.SymInt):
                self._known.setdefault(_expression(size), (node, dim))

    def add_value(self, value: Symbolic, node: fx.Node) -> None:
        """Let `node` stand, from now on, for a number that a call read out of a tensor, as `.item()` does."""
        if _is_symbol(value):
            self._known.setdefault(_expression(value), node)

    def are_new(self, values: Iterable[object]) -> bool:
        """Whether one of the values is a symbolic number (a traced size) that no node of the graph computes yet."""
        return any(
            isinstance(value, SYMBOLIC) and _is_symbol(value) and _expression(value) not in self._known
            for value in values
        )

    def node_of(self, value: Symbolic) -> Argument:
        """Return the node that computes a traced size, or a plain number if the size turned out to be one.

        Raises:
            CaptureError: the size depends on something that no node gives.
        """
        return self._argument(_expression(value))

    def symbol_node(self, value: Symbolic) -> fx.Node | None:
        """Return the node that gives a traced size which is a size of an input; None for any other."""
        found = self._argument(_expression(value)) if _expression(value) in self._known else None
        return found if isinstance(found, fx.Node) else None

    def _argument(self, expression: _Expression) -> Argument:
        """Return the node, or plain number, of a sympy expression; nodes for its operations are added as needed.

        Raises:
            CaptureError: the expression has a symbol or an operation that cannot be recorded.
        """
        known = self._known.get(expression)
        if isinstance(known, fx.Node):
            return known
        if known is not None:
            placeholder, dim = known
            with at_front(self.graph):
                node = self.graph.call_method("size", (placeholder, dim))
            node.meta["val"] = placeholder.meta["val"].shape[dim]
            self._known[expression] = node
            return node
        if expression.is_Boolean and not expression.args:
            return bool(expression)
        if expression.is_number:
            return int(expression) if expression.is_integer else float(expression)
        name = expression.func.__name__
        if expression.is_Symbol or name not in _UNARY.keys() | _FUNCTIONS.keys():
            raise CaptureError(f"a size depends on {expression}, which cannot be recorded")
        first, *rest = [self._argument(argument) for argument in expression.args]
        if name in _UNARY:
            return self._call(_UNARY[name], first)
        for other in rest:
            first = self._call(_FUNCTIONS[name], first, other)
        return first

    def _call(self, function: Callable[..., Argument], *args: Argument) -> Argument:
        """Apply a function to sizes: at once if all are plain numbers, else by a new node of the graph."""
        if not any(isinstance(argument, fx.Node) for argument in args):
            return function(*args)
        node = self.graph.call_function(function, args)
        values = [each.meta.get("val") if isinstance(each, fx.Node) else each for each in args]
        if not any(value is None for value in values):
            node.meta["val"] = function(*values)
        return node


def _expression(value: Symbolic) -> _Expression:
    """Return the sympy expression behind a symbolic number of torch's."""
    expression: _Expression = value.node.expr
    return expression


def _is_symbol(value: Symbolic) -> bool:
    """Whether a symbolic number is a single symbol, not an expression of several."""
    return _expression(value).is_Symbol


# Python's functions for the operations in an expression, by sympy's and torch's names for these.
_FUNCTIONS: dict[str, Callable[..., Argument]] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "Pow": operator.pow,
    "PowByNatural": operator.pow,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "Max": torch.sym_max,
    "Min": torch.sym_min,
    "FloatPow": operator.pow,
}
_UNARY: dict[str, Callable[..., Argument]] = {
    "ToFloat": torch.sym_float,
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
    "TruncToInt": int,
    "RoundToInt": round,
    "OpaqueUnaryFn_sqrt": math.sqrt,
    "OpaqueUnaryFn_log": math.log,
    "OpaqueUnaryFn_log2": math.log2,
    "OpaqueUnaryFn_exp": math.exp,
    "Abs": abs,
}

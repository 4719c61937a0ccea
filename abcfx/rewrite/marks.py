"""`scaled`: marks a function or module in a forward for a multiplier m^-a that only a transformed model applies."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, overload

import torch
from torch import fx, nn

from abcfx.rules.extents import Number, WidthScale
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value
from abcfx.support import trees
from abcfx.support.arguments import wrong
from abcfx.support.numbers import check_number

NAME = "abcfx::scaled"


@torch.library.custom_op(NAME, mutates_args=())
def _mark(x: torch.Tensor, a: float) -> torch.Tensor:
    """Return a copy of x: a mark in a graph, which `transform` turns into a product with m^-a (m, the width ratio)."""
    return x.clone()


_mark.register_fake(lambda x, a: torch.empty_like(x))
_mark.register_autograd(lambda ctx, grad: (grad, None))


class Scaled(nn.Module):
    """A module around another one, whose outputs are multiplied by m^-a (m, the width ratio) in the transformed model.

    Args:
        module: the module inside.
        a: the exponent of width.
    """

    def __init__(self, module: nn.Module, a: float) -> None:
        """Wrap a module whose outputs are to be multiplied by m^-a, with m the width ratio."""
        super().__init__()
        self.module, self.a = module, a

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the module inside, and mark the tensors that it returns: they are to be multiplied by m^-a later.

        m is the width ratio; `transform` puts the multiplication in the place of the mark.
        """
        return _marked(self.module(*args, **kwargs), self.a)


P = ParamSpec("P")
R = TypeVar("R")


@overload
def scaled(function: nn.Module, a: float) -> Scaled: ...
@overload
def scaled(function: Callable[P, R], a: float) -> Callable[P, R]: ...
def scaled(function: nn.Module | Callable[P, R], a: float) -> Scaled | Callable[P, R]:
    """Mark a function or module: in the transformed model every tensor that it returns is multiplied by m^-a.

    m is the width ratio. The model as it is multiplies nothing, since m is 1 there. `transform(..., base=...)` puts a
    multiplication in the place of the mark, which takes part in the linear program like any number of the model that
    changes with width.

    Args:
        function: a callable, or a module (whose parameters are then called "module.<name>" below it).
        a: exponent of width, such as 0.5 for 1/sqrt(m).

    Returns:
        A callable of the same signature, or a module around the module.

    Raises:
        InvalidInputError: it is no function or module, or a is no finite number.
    """
    exponent = check_number("scaled: a", a)
    if isinstance(function, nn.Module):
        return Scaled(function, exponent)
    if isinstance(function, type) or not callable(function):
        raise wrong("scaled", function, "a function or a module (an instance)", "abcfx.scaled(nn.Linear(8, 8), 0.5)")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return _marked(function(*args, **kwargs), exponent)

    return call


def _marked(value: R, a: float) -> R:
    """Return a value whose tensors are marked, to be multiplied by m^-a (m, the width ratio) once transformed."""

    def mark(leaf: object) -> object:
        """Mark one leaf of the returned value, if it is a tensor, as to be multiplied by m^-a (m: width ratio)."""
        return torch.ops.abcfx.scaled(leaf, a) if isinstance(leaf, torch.Tensor | fx.Proxy) else leaf

    return trees.map_leaves(mark, value)


def marked_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes of a graph that `scaled` has marked to be multiplied by a power of the width ratio."""
    ops = (torch.ops.abcfx.scaled, torch.ops.abcfx.scaled.default)
    return [node for node in graph.nodes if node.op == "call_function" and node.target in ops]


@register_rule(NAME)
def _scaled_rule(op: Op, x: Value, a: float) -> Value:
    """Handle a mark of `abcfx.scaled` as a product of x with m^-a (m, the width ratio), and return the abstract tensor.

    An abstract tensor is a record of where a tensor of the graph comes from.
    """
    return op.scale(x, Number(((WidthScale(), -a),)))

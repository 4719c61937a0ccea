"""`scaled`: a multiplier m^-a on a function or module inside a forward: a trace sees it, a plain run ignores it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, overload

import torch
from torch import fx, nn

from abcfx.rules.extents import Number, WidthScale
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value
from abcfx.support import trees

NAME = "abcfx::scaled"


@torch.library.custom_op(NAME, mutates_args=())
def _mark(x: torch.Tensor, a: float) -> torch.Tensor:
    return x.clone()


_mark.register_fake(lambda x, a: torch.empty_like(x))
_mark.register_autograd(lambda ctx, grad: (grad, None))


class Scaled(nn.Module):
    """A module whose outputs are multiplied by m^-a in the transformed model."""

    def __init__(self, module: nn.Module, a: float) -> None:
        super().__init__()
        self.module, self.a = module, a

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _marked(self.module(*args, **kwargs), self.a)


@overload
def scaled(function: nn.Module, a: float) -> Scaled: ...
@overload
def scaled(function: Callable[..., Any], a: float) -> Callable[..., Any]: ...
def scaled(function: Any, a: float) -> Any:
    """The function or module with every tensor that it returns multiplied by m^-a, m being width over base width.

    In the model as it is nothing is multiplied: m is 1 there. `transform(..., base=...)` puts a scale node in its
    place, which takes part in the linear program like any number in the model that changes with width.

    Args:
        function: a callable, or a module (whose parameters are then called "module.<name>" below it).
        a: exponent of width, such as 0.5 for 1/sqrt(m).
    """
    if isinstance(function, nn.Module):
        return Scaled(function, float(a))

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _marked(function(*args, **kwargs), float(a))

    return call


def _marked(value: Any, a: float) -> Any:
    def mark(leaf: object) -> object:
        return torch.ops.abcfx.scaled(leaf, a) if isinstance(leaf, torch.Tensor | fx.Proxy) else leaf

    return trees.map_leaves(mark, value)


def marked_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The places in a graph that `scaled` marked."""
    ops = (torch.ops.abcfx.scaled, torch.ops.abcfx.scaled.default)
    return [node for node in graph.nodes if node.op == "call_function" and node.target in ops]


@register_rule(NAME)
def _scaled_rule(op: Op, x: Value, a: float) -> Value:
    return op.scale(x, Number(((WidthScale(), -a),)))

"""Replace marks, calls `mark(x, a)` that return x, by multiplications with a power of the width ratio."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from abcfx.passes.nodes import ScaleNode, set_scale_note
from abcfx.passes.result import PassError, PassResult, check_factor, check_module, checked_nodes, finish

NAME = "multiply_marks"


def multiply_marks(module: fx.GraphModule, marks: Sequence[fx.Node], width_ratio: float) -> PassResult:
    """Turn every mark `mark(x, a)` in a graph into the product `x * width_ratio**-a`.

    A mark is a call that returns x as it is; it says where a model wants a factor that depends on its width.

    Args:
        module: the module that owns the graphs of the marks.
        marks: the nodes to replace; each has a tensor and a number, the exponent, as its arguments.
        width_ratio: width of the model over width of its base.

    Returns:
        The module, and the names of the changed nodes.

    Raises:
        PassError: a node does not have these arguments. Nothing has been changed then.
    """
    check_module(NAME, module)
    check_factor(f"{NAME}: width_ratio", width_ratio)
    if width_ratio <= 0:
        raise PassError(f"{NAME}: width_ratio={width_ratio}: expected a positive number.")
    exponents = [_exponent(node) for node in checked_nodes(NAME, marks)]
    for node, a in zip(marks, exponents, strict=True):
        factor = float(width_ratio**-a)
        node.target, node.args = torch.mul, (node.args[0], factor)
        set_scale_note(node, ScaleNode("scaled", factor, f"{node.name} (abcfx.scaled)", f"m^{-a:g}"))
    return finish(module, marks, [node.name for node in marks])


def _exponent(node: fx.Node) -> float:
    """Return the exponent a of a node that calls `mark(x, a)`, which returns x and stands for a factor m^-a.

    m is the width of the model over a base width.

    Raises:
        PassError: the node has other arguments.
    """
    if len(node.args) == 2 and isinstance(a := node.args[1], int | float):
        return a
    raise PassError(f"{NAME}: {node.name} has the arguments {node.args}; expected a tensor and an exponent.")

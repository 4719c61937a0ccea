"""Values of the numbers in a graph: arguments of its nodes, attributes of modules, and tensors made of constants."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
import torch.fx as fx

from abcfx.rules.extents import ConstantTensor, ModuleAttribute, ScalarArgument
from abcfx.rules.registry import plain_name

CASTS = frozenset({"to", "type", "type_as", "float", "double", "half", "bfloat16", "to_copy"})


def value_of(
    module: torch.nn.Module, node: fx.Node, scalar: ScalarArgument | ModuleAttribute | ConstantTensor
) -> object:
    """Return the value of a number in a graph: a constant tensor, a module's attribute, or an argument of a node."""
    if isinstance(scalar, ConstantTensor):
        return _constant(module, node)
    if isinstance(scalar, ModuleAttribute):
        return attrgetter(scalar.key)(module.get_submodule(str(node.target)))
    return node.kwargs.get(scalar.key) if isinstance(scalar.key, str) else node.args[scalar.key]


def _constant(module: torch.nn.Module, node: fx.Node) -> float | None:
    """Return the value of a graph node that depends on no input and no parameter; None where it does.

    None also where it has no value yet, as on the meta device.
    """

    def run(at: fx.Node) -> Any:
        """Return the value of a graph node, computed from constants alone.

        Raises:
            LookupError: it depends on an input or a parameter.
        """
        if at.op == "get_attr":
            held = attrgetter(str(at.target))(module)
            if isinstance(held, torch.nn.Parameter) or not isinstance(held, torch.Tensor) or held.is_meta:
                raise LookupError
            return held
        if plain_name(at.target) in CASTS:  # perhaps to the dtype of a tensor that is not known yet
            (cast, *_) = at.all_input_nodes
            return run(cast)
        args, kwargs = fx.node.map_arg((at.args, at.kwargs), run)
        if at.op == "call_method":
            return getattr(args[0], str(at.target))(*args[1:], **kwargs)
        if at.op != "call_function" or not callable(at.target):
            raise LookupError
        return at.target(*args, **kwargs)

    try:
        with torch.no_grad():
            value = run(node)
            return float(value) if isinstance(value, int | float | torch.Tensor) else None
    except Exception:  # any op of the model may run here: it raises where it needs what is not there before a run
        return None

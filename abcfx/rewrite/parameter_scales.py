"""Where the multiplier of one parameter of a computed weight stands in the graph: at the parameter itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import fx, nn

from abcfx.errors import InvalidInputError
from abcfx.passes import ScaleInsertion
from abcfx.support.location import location


def parameter_scales(module: nn.Module, weight: fx.Node, parameter: str, scale: ScaleInsertion) -> list[ScaleInsertion]:
    """Return a scale node for each place where the computation of a weight reads one of its parameters.

    A scale node multiplies by a constant.

    Args:
        module: owns the parameters that the graph names.
        weight: the fx node that returns the computed weight.
        parameter: name of the parameter.
        scale: the factor, with its label and formula.

    Raises:
        InvalidInputError: the graph does not show where the parameter is read.
    """
    owned = module.get_parameter(parameter)
    found, waiting, seen = [], [weight], {weight}
    while waiting:
        node = waiting.pop()
        for source in node.all_input_nodes:
            if source.op == "get_attr" and _attribute(module, str(source.target)) is owned:
                found.append(replace(scale, node=node, operand=source, everywhere=True))
            elif source not in seen:
                seen.add(source)
                waiting.append(source)
    if not found:
        raise InvalidInputError(
            f"The weight at {location(weight)} is computed from {parameter}, which needs a multiplier of its own, and "
            f"the graph does not show where it is read.\n"
            f"  To fix: compute the weight in the model's forward from the parameter, or exponents={{{parameter!r}: "
            f"(0, b)}}."
        )
    return found


def _attribute(module: nn.Module, path: str) -> object:
    """Return the parameter, buffer or other attribute that a module holds at a dotted path."""
    owner, _, name = path.rpartition(".")
    held: object = getattr(module.get_submodule(owner), name)
    return held


def without_repeats(scales: Iterable[ScaleInsertion]) -> list[ScaleInsertion]:
    """Return scale nodes (multiplications by a constant) without repeats, as where two layers share a computed weight.

    Raises:
        InvalidInputError: two layers need different factors on a parameter at one place.
    """
    found: dict[object, ScaleInsertion] = {}
    for scale in scales:
        key = (scale.node, scale.operand) if scale.everywhere else scale
        first = found.setdefault(key, scale)
        if first.factor != scale.factor:
            raise InvalidInputError(
                f"{first.label} and {scale.label} share a computed weight and need different multipliers.\n"
                f"  in {location(scale.node)}\n"
                f"  To fix: compute the weight once for each of them, or give both the same role by `roles`."
            )
    return list(found.values())

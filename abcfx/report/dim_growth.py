"""Growth of the dims of one parameter between base and model, as data and in words."""

from __future__ import annotations

from typing import NamedTuple

from abcfx.outcome import Outcome
from abcfx.plan.spec import ParameterPlan
from abcfx.rules import Layer
from abcfx.rules.extents import Dim, ParameterDim, whole_dims


class DimGrowth(NamedTuple):
    """A dim of a parameter: its sizes in the smaller base model and in the model, and how it grows with the width.

    Attributes:
        dim: index of the dim.
        size: its size in the model.
        base_size: its size in the base; None without a base.
        growth: growth exponent: the dim is m to this power times as large as in the base (m, the width ratio).
        side: "fan_in" if the layer sums over it, "fan_out" if the layer's output has it, "" if neither.
        fixed: the columns, such as "0:60", that meet an input which does not grow, where others meet one that does.
    """

    dim: int
    size: int
    base_size: int | None
    growth: float
    side: str
    fixed: tuple[str, ...] = ()


def dims_of(outcome: Outcome, name: str) -> tuple[DimGrowth, ...]:
    """Return how each dim of a parameter grows with the width, and whether it is fan_in or fan_out of its layer."""
    widths, plan = outcome.fixed.widths, outcome.plan[name]
    shape = outcome.captured.model.get_parameter(name).shape
    base = widths.base_parameters[name].shape if widths.has_base else None
    sides = _sides(outcome, name)
    return tuple(
        DimGrowth(i, size, None if base is None else base[i], plan.growth[i], sides.get(i, ""), _fixed(plan, i))
        for i, size in enumerate(shape)
    )


def dim_lines(outcome: Outcome, dims: tuple[DimGrowth, ...]) -> list[str]:
    """Write one line in words for each dim of a parameter, and one line about what the sizes are."""
    if not dims:
        return ["It is a single number."]
    header = outcome.header
    side_width = max(len(each.side) for each in dims)
    lines = [_dim_line(each, side_width) for each in dims]
    if header.has_base and header.width_ratio == 1.0:
        lines.append("Base and model have the same sizes (m = 1); the exponents are those of a wider model.")
    elif header.has_base:
        lines.append(f"The sizes are those of base and model; exponents are powers of m = {header.width_ratio:.4g}.")
    else:
        lines.append("No base was given: a dim counts as growing if the graph has layers on both sides of it.")
    return lines


def _dim_line(each: DimGrowth, side_width: int) -> str:
    """Write one line about a parameter's dim: its side (padded to `side_width` columns), its sizes, and its growth."""
    side = f" {each.side:<{side_width}}" if side_width else ""
    size = f"{each.size}" if each.base_size is None else f"{each.base_size} -> {each.size}"
    if not each.growth:
        words = "does not grow"
    elif each.base_size is None or each.base_size == each.size:
        words = f"grows with the width, exponent {each.growth:.3g}"
    else:
        words = f"grows {each.size / each.base_size:.3g} times, exponent {each.growth:.3g}"
    if each.fixed:
        words = f"columns {', '.join(each.fixed)} stay, the others grow, exponent {each.growth:.3g}"
    return f"dim {each.dim}{side}  {size}: {words}"


def _fixed(plan: ParameterPlan, dim: int) -> tuple[str, ...]:
    """Return, as text such as "0:60", those columns along a dim of a weight that meet an input which does not grow.

    There are none unless other columns along the dim meet an input that grows.
    """
    return tuple(str(each.part) for each in plan.segments if each.part.index == dim and not each.part.grows)


def _sides(outcome: Outcome, name: str) -> dict[int, str]:
    """Return "fan_in" or "fan_out" by index for the dims of a parameter, as the first layer that uses it has them."""
    layers = [layer for _, layer in outcome.dag.layers() if layer.parameter == name]
    if not layers:
        return {}
    first: Layer = layers[0]

    def own(dims: tuple[Dim, ...]) -> list[int]:
        """Return the indices of those of some dims of a layer that are dims of the parameter that is described."""
        return [dim.index for dim in dims if isinstance(dim, ParameterDim) and dim.parameter == name]

    return dict.fromkeys(own(first.fan_out), "fan_out") | dict.fromkeys(own(whole_dims(first.fan_in)), "fan_in")

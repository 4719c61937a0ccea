"""Finds the rows of a weight that are layers of their own, as fused keys are, and how few rows it has."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from abcfx.pairing.factors import Dim, index_map
from abcfx.pairing.factors.index_maps import Segments
from abcfx.rules import extents
from abcfx.rules.extents import DimPart, ParameterDim

Sizes = Mapping[str, Sequence[tuple[int, int]]]


def row_parts(dim: ParameterDim, factors: Dim) -> tuple[DimPart, ...]:
    """Return the parts, one behind another, of a weight's dim, if some grow with the width and others do not; else ().

    Args:
        dim: the dim, such as the fan_out of fused queries, keys and values.
        factors: the same dim, split into factors that grow with the width or stay.
    """
    of_dim = index_map(factors)
    if len(of_dim.factors) != 1 or not isinstance(rows := of_dim.factors[0], Segments):
        return ()
    found: list[DimPart] = []
    start = base_start = 0
    for part in rows.parts:
        base_size, size = part.sizes
        found.append(DimPart(dim.parameter, dim.index, start, size, base_start, base_size))
        start, base_start = start + size, base_start + base_size
    return tuple(found) if len({part.grows for part in found}) == 2 else ()


def narrowing_ratio(fan_in: Sequence[extents.Dim], fan_out: Sequence[extents.Dim], sizes: Sizes) -> float | None:
    """Return fan_in / fan_out of a layer in the model over that in the base; what is less than 1 counts as 1.

    It is None where a dim is not one of a weight: a view has regrouped the weight's dims, perhaps with the batch's.

    Args:
        fan_in: the dims that the layer sums over.
        fan_out: the dims of its output.
        sizes: the sizes of each parameter's dims in the base and in the model.
    """
    columns, rows = _total_sizes(fan_in, sizes), _total_sizes(fan_out, sizes)
    if columns is None or rows is None:
        return None
    base, ours = (max(1.0, columns[i] / rows[i]) for i in (0, 1))
    return ours / base


def _total_sizes(dims: Sequence[extents.Dim], sizes: Sizes) -> tuple[int, int] | None:
    """Return the product of the sizes of dims of a weight, or of parts of them, in the base and in the model.

    It is None where a dim is not one of a weight.
    """
    found: list[tuple[int, int]] = []
    for dim in dims:
        if isinstance(dim, DimPart):
            found.append((dim.base_size, dim.size))
        elif isinstance(dim, ParameterDim):
            found.append(sizes[dim.parameter][dim.index])
        else:
            return None
    return math.prod(base for base, _ in found), math.prod(ours for _, ours in found)


def as_in_target(
    sizes: Mapping[str, tuple[tuple[int, int], ...]], fixed: Collection[tuple[int, int]]
) -> Mapping[str, tuple[tuple[int, int], ...]]:
    """Return sizes of dims in which those that do not grow with the width are, in the base, what the target has.

    Args:
        sizes: (size in the smaller base, size in the model) of every dim of every parameter.
        fixed: the pairs of sizes that differ without growing, such as (3, 5) of a kernel.
    """
    if not fixed:
        return sizes
    return {
        name: tuple((large, large) if (small, large) in fixed else (small, large) for small, large in of_dims)
        for name, of_dims in sizes.items()
    }

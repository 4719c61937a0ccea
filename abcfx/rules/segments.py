"""Concatenated inputs of layers: each of the tensors meets columns of the weight of its own.

Where some of these tensors grow with the width and others do not, as in `linear(cat([x, h]))`, the weight is several
layers side by side, one for each tensor, whose results are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch.fx as fx

from abcfx.rules.builder import DagBuilder, DagNode
from abcfx.rules.extents import DimPart, ParameterDim
from abcfx.rules.kinds import Layer
from abcfx.rules.values import UNKNOWN_SIZE, Concatenation, Value
from abcfx.rules.weights import ComputedWeight, dims_of


class Segment(NamedTuple):
    """One of several concatenated inputs of a layer.

    Attributes:
        x: the tensor.
        part: the columns of the weight that it meets.
        joined: the fx node that concatenates it with the others.
    """

    x: Value
    part: DimPart
    joined: fx.Node


def concatenation_of(at: fx.Node, tensors: Sequence[Value], dim: int) -> Concatenation | None:
    """Return a record of the tensors that an fx node concatenates along a dim; None if their sizes are not known."""
    shapes = [each.shape for each in tensors if each.shape is not None]
    if len(shapes) != len(tensors) or len({len(shape) for shape in shapes}) != 1:
        return None
    if any(each.at not in at.all_input_nodes for each in tensors):
        return None
    from_end = dim if dim < 0 else dim - len(shapes[0])
    return Concatenation(at, at, from_end, tuple(tensors), tuple(shape[from_end] for shape in shapes))


def segments_of(
    builder: DagBuilder,
    at: fx.Node,
    x: Value | None,
    weight: Value,
    read: ComputedWeight,
    fan_in: Sequence[int],
    features: int | None,
) -> tuple[Segment, ...]:
    """Return the segments of a layer whose input is a concatenation; none where they are no layers of their own.

    A segment is one of the concatenated tensors, with the columns of the weight that meet it.

    `builder.concatenated` gets an entry for a parameter that meets a concatenation. Segments are returned for those
    parameters alone that `builder.segments` has.

    Args:
        builder: collects the layer DAG.
        at: the fx node of the layer.
        x: the input.
        weight: the weight.
        read: the parameters behind it.
        fan_in: dims of the weight that are summed over.
        features: the dim of x that meets the first of them; None where no one dim does.
    """
    joined = None if x is None else x.concatenation
    if x is None or joined is None or features is None or not fan_in or not _is_plain(read):
        return ()
    (dim,) = dims_of(read.terms[0].chain[0], weight, fan_in[:1]) or (None,)
    is_direct = joined.at is x.at and joined.at in at.all_input_nodes
    if (
        not is_direct
        or (joined.at is not joined.joined and len(joined.at.users) > 1)
        or x.from_end(features) != joined.dim
        or not isinstance(dim, ParameterDim)
    ):
        return ()
    if (sizes := _sizes(joined, builder.shapes[dim.parameter][dim.index])) is None:
        return ()
    builder.concatenated.setdefault(dim.parameter, []).append((dim.index, *sizes))
    parts = builder.segments.get(dim.parameter, ())
    if tuple(part.size for part in parts) != sizes or any(part.whole != dim for part in parts):
        return ()
    found = [Segment(tensor, part, joined.joined) for tensor, part in zip(joined.parts, parts, strict=True)]
    return tuple(sorted(found, key=lambda each: not each.part.grows))  # what grows gives the layer its name and role


def _sizes(joined: Concatenation, total: int) -> tuple[int, ...] | None:
    """Return the sizes of concatenated tensors; None if they are not known or do not fit, as with groups of channels.

    A single size that is not known, as that of an input of an exported graph, is what is left of the whole.

    Args:
        joined: the tensors.
        total: the size of all together, along the dim of the concatenation.
    """
    unknown = joined.sizes.count(UNKNOWN_SIZE)
    rest = total - sum(size for size in joined.sizes if size != UNKNOWN_SIZE)
    if unknown > 1 or (rest <= 0 if unknown else rest != 0):
        return None
    return tuple(rest if size == UNKNOWN_SIZE else size for size in joined.sizes)


def passed_on(x: Value, result: Value, at: fx.Node) -> Value:
    """Return the result of an op such as relu or dropout, which commutes with factors, still as a concatenation.

    It is one no more if other ops read x, since a factor on a part of x would reach them.

    Args:
        x: what the op is applied to.
        result: the result.
        at: the fx node of the op.
    """
    joined = x.concatenation
    if joined is None or joined.at is not x.at or set(joined.at.users) != {at}:
        return replace(result, concatenation=None)
    return replace(result, concatenation=replace(joined, at=at))


def segment_nodes(node: DagNode, segments: Sequence[Segment], sources: Sequence[str | None]) -> Iterator[DagNode]:
    """Yield a layer node for each segment of a layer; the first has its name and its bias.

    Args:
        node: the layer as a whole.
        segments: the concatenated tensors, with the columns of the weight that each meets.
        sources: the DAG node of each of these tensors; None for a constant.
    """
    kind = node.kind
    assert isinstance(kind, Layer)
    for i, ((x, part, joined), source) in enumerate(zip(segments, sources, strict=True)):
        vectors = kind.vectors if i == 0 else ()
        own = replace(kind, inputs=(source,), fan_in=(part, *kind.fan_in[1:]), vectors=vectors)
        name = node.name if i == 0 else f"{node.name}[{part}]"
        yield replace(node, name=name, kind=own, operand=x.at, concatenation=joined)


def _is_plain(read: ComputedWeight) -> bool:
    """Whether a weight is a parameter as it is, which nothing multiplies or bends."""
    if len(read.terms) != 1 or read.is_composed or read.is_normalised:
        return False
    term = read.terms[0]
    is_alone = len(term.chain) == 1 and not term.gains and not term.cofactors and not term.factor.powers
    return is_alone and not term.is_curved and not term.chain[0].gains


def features_dim(fan_in: Sequence[int], over: Sequence[int] | None, paired: Mapping[int, int] | None) -> int | None:
    """Return the dim of a layer's input that meets its fan_in, by default the last one; None where several do.

    Args:
        fan_in: dims of the weight that are summed over.
        over: the dims of the input that are summed over, if not the last ones.
        paired: dims of the weight that count matrices.
    """
    if len(fan_in) != 1 or paired:
        return None
    return -1 if over is None else (over[0] if len(over) == 1 else None)

"""Finds weights whose input is a concatenation of tensors that grow with the width and of others that do not."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from abcfx.dag.layer_dag import LayerDag
from abcfx.pairing.blocks import Blocks
from abcfx.rules.extents import DimPart


def find_segments(target: LayerDag, base: LayerDag, blocks: Blocks) -> Mapping[str, tuple[DimPart, ...]]:
    """Find the weights that are several layers side by side, one for each of the tensors concatenated for them.

    All calls of such a weight concatenate tensors of the same sizes, some of which are equal in base and target.

    Args:
        target: the layer DAG of the model.
        base: the layer DAG of its base.
        blocks: which block of the base stands for each block of the target.

    Returns:
        For each such weight, by name, its columns for each of the tensors, in order.
    """
    uses, found = target.uses(), dict[str, tuple[DimPart, ...]]()
    for name, calls in target.concatenated.items():
        there = base.concatenated.get(blocks.twin(name), ())
        if len(calls) != len(uses.get(name, ())) or len({*calls}) != 1 or len({*there}) != 1:
            continue
        (index, *sizes), (base_index, *base_sizes) = calls[0], there[0]
        if index != base_index or len(sizes) != len(base_sizes):
            continue
        starts, base_starts = ([0, *accumulate(each)] for each in (sizes, base_sizes))
        columns = zip(starts, sizes, base_starts, base_sizes, strict=False)
        parts = tuple(DimPart(name, index, *each) for each in columns)
        if len({part.grows for part in parts}) == 2:
            found[name] = parts
    return found

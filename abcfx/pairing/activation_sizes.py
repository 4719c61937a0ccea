"""Lists the sizes of all activations in a model beside those in its smaller base."""

from __future__ import annotations

from collections.abc import Iterator

import torch.fx as fx

from abcfx.capture import CapturedGraph
from abcfx.pairing.graphs import PairedNodes
from abcfx.rules.values import UNKNOWN_SIZE, shape_of


def activation_sizes(target: CapturedGraph, nodes: PairedNodes) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield for each activation (size in the smaller base, size in the model) of its dims, where both are known.

    Tensors that are made of parameters alone are no activations.

    Args:
        target: the model with its graphs.
        nodes: for each node of its train graph the node of the base that does the same work.
    """
    from_inputs = set[fx.Node]()
    for node in target.module.graph.nodes:
        if node.op == "placeholder" or not from_inputs.isdisjoint(node.all_input_nodes):
            from_inputs.add(node)
    for node in from_inputs & nodes.twins.keys():
        sizes, base_sizes = shape_of(node), nodes.base_shape(node)
        if sizes is None or base_sizes is None or len(sizes) != len(base_sizes):
            continue
        if UNKNOWN_SIZE not in (*sizes, *base_sizes):
            yield tuple(zip(base_sizes, sizes, strict=True))

"""Finds generators: layers whose few outputs become gates or mixing weights of the tensors that they read.

Hyper-connections read several residual streams through gates, mix them, and write to them. All these weights come from
the streams, by layers with a finite fan-out. This loop identifies hyper-connections, whatever their modules are called.
"""

from __future__ import annotations

from collections.abc import Mapping

from abcfx.dag.layer_dag import LayerDag
from abcfx.rules import Layer
from abcfx.rules.kinds import Merge, Norm, NumberFactor, Pointwise, Power, Product, Reduce, Softmax


def generators(dag: LayerDag) -> Mapping[str, frozenset[str]]:
    """Find the generators: layers whose few outputs become weights (gates, a mix) of the tensors that they read.

    A layer is one if nodes that are computed from it and from parameters alone, and that a function such as sigmoid or
    softmax bounds, multiply the layer's own input (before or after a norm), or multiply a tensor that is then added to
    a product of that input (a write gate). Hyper-connections have such layers.

    Returns:
        Name of the layer -> names of the nodes that it alone decides: logits, gates and mixing weights.
    """
    found = {}
    for node, _ in dag.layers():
        own = _own_input(dag, node)
        decided = _decided_by(dag, node, own)
        if len(decided) > 1 and _weighs(dag, _bounded(dag, node, decided), own):
            found[node] = decided
    return found


def _decided_by(dag: LayerDag, layer: str, own: frozenset[str]) -> frozenset[str]:
    """Return a layer and the DAG nodes that it alone decides: they read nothing else but parameters and its input.

    The input counts also behind norms of it.

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        layer: name of the layer.
        own: the layer's input, and the nodes that are the same up to norms and factors.
    """
    decided, beside = {layer}, set(own)
    after = dag.descendants(layer)
    for node in dag.order:
        kind = dag.kind(node)
        if isinstance(kind, Power | Reduce | NumberFactor) and kind.input in beside:
            beside.add(node)
        if node in after and not isinstance(kind, Layer):
            sources = [n for n in kind.sources if not dag.node(n).is_parametric and n not in beside - own]
            if all(n in decided for n in sources):
                decided.add(node)
    return frozenset(decided)


def _bounded(dag: LayerDag, layer: str, decided: frozenset[str]) -> frozenset[str]:
    """Return those of the DAG nodes in `decided` that are computed from a layer through a nonlinear function."""
    bounded: set[str] = set()
    for node in dag.order:
        curved = isinstance(dag.kind(node), Pointwise | Softmax | Norm) or dag.node(node).is_pinned
        behind = node != layer and any(n in bounded for n in dag.kind(node).sources)
        if node in decided and (curved or behind):
            bounded.add(node)
    return frozenset(bounded)


def _own_input(dag: LayerDag, layer: str) -> frozenset[str]:
    """Return the DAG node that a layer reads and the nodes from which that comes by norms, gains and factors alone."""
    own: set[str] = set()
    node = dag.kind(layer).inputs[0]
    while node is not None and node not in own:
        own.add(node)
        kind = dag.kind(node)
        if not isinstance(kind, Norm | NumberFactor | Product | Merge):
            break
        sources = [n for n in kind.inputs if n is not None and not dag.node(n).is_parametric]
        node = sources[0] if len(sources) == 1 else None
    return frozenset(own)


def _weighs(dag: LayerDag, weights: frozenset[str], streams: frozenset[str]) -> bool:
    """Whether some of the weights multiply a stream, or a tensor that is then added to a product of a stream.

    Weights and streams are nodes of the layer DAG (graph of layers and ops).

    Args:
        dag: the layer DAG, a graph of the model's layers and other ops.
        weights: the nodes that may be weights.
        streams: the tensors that may be weighed.
    """

    def multiplies(node: str, others: frozenset[str]) -> bool:
        """Whether a DAG node is a product, or the sum of one, with one of `others` as a factor."""
        kind = dag.kind(node)
        if isinstance(kind, Reduce | NumberFactor):  # of a sum that is written out as product and sum
            return multiplies(kind.input, others)
        return isinstance(kind, Product) and any(n in others for n in kind.inputs)

    for node in dag.nodes_of(Product):
        if not multiplies(node, weights):
            continue
        if multiplies(node, streams):
            return True
        for total in dag.successors(node):  # a write gate's product is added to the streams' mix
            beside = dag.kind(total).inputs if isinstance(dag.kind(total), Merge) else ()
            if any(n is not None and n != node and multiplies(n, streams) for n in beside):
                return True
    return False

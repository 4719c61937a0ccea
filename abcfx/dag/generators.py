"""Generators: layers whose few outputs, made into gates or mixing weights, weigh what they are computed from.

Hyper-connections read several streams of the residual through gates, mix them and write to them; all weights come from
the streams by one layer (or several) with a finite fan-out. Whatever its modules are called, it is known by that loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from abcfx.dag.layer_dag import LayerDag
from abcfx.rules import Layer
from abcfx.rules.kinds import Merge, Norm, NumberFactor, Pointwise, Power, Product, Reduce, Softmax


def generators(dag: LayerDag) -> Mapping[str, frozenset[str]]:
    """Node of each generator -> the nodes that it decides alone: its logits, gates and mixing weights.

    A layer is one if what follows from it and from parameters alone, bounded on the way by a function such as sigmoid
    or softmax, multiplies its own input (before or after a norm), or multiplies what is then added to a product of that
    input (a write gate).
    """
    found = {}
    for node, _ in dag.layers():
        own = _own_input(dag, node)
        decided = _decided_by(dag, node, own)
        if len(decided) > 1 and _weighs(dag, _bounded(dag, node, decided), own):
            found[node] = decided
    return found


def _decided_by(dag: LayerDag, layer: str, own: frozenset[str]) -> frozenset[str]:
    """The layer, and the nodes after it whose other inputs are parameters, or norms of its own input."""
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
    """Those of the nodes that stand behind a function that is not linear."""
    bounded: set[str] = set()
    for node in dag.order:
        curved = isinstance(dag.kind(node), Pointwise | Softmax | Norm) or dag.node(node).is_pinned
        behind = node != layer and any(n in bounded for n in dag.kind(node).sources)
        if node in decided and (curved or behind):
            bounded.add(node)
    return frozenset(bounded)


def _own_input(dag: LayerDag, layer: str) -> frozenset[str]:
    """What the layer is given, and what that is made of by norms, gains and numbers alone."""
    own: set[str] = set()
    at = dag.kind(layer).inputs[0]
    while at is not None and at not in own:
        own.add(at)
        kind = dag.kind(at)
        if not isinstance(kind, Norm | NumberFactor | Product | Merge):
            break
        sources = [n for n in kind.inputs if n is not None and not dag.node(n).is_parametric]
        at = sources[0] if len(sources) == 1 else None
    return frozenset(own)


def _weighs(dag: LayerDag, weights: frozenset[str], streams: frozenset[str]) -> bool:
    def takes(node: str, others: frozenset[str]) -> bool:
        kind = dag.kind(node)
        if isinstance(kind, Reduce | NumberFactor):  # the sum of a product that is written out
            return takes(kind.input, others)
        return isinstance(kind, Product) and any(n in others for n in kind.inputs)

    for node in dag.nodes_of(Product):
        if not takes(node, weights):
            continue
        if takes(node, streams):
            return True
        for total in dag.successors(node):  # write gates: what they multiply is added to the streams' mix
            beside = dag.kind(total).inputs if isinstance(dag.kind(total), Merge) else ()
            if any(n is not None and n != node and takes(n, streams) for n in beside):
                return True
    return False

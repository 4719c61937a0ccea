"""Finds routers: layers with few outputs that weigh what other layers compute, and routers that get no gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch.fx as fx
import torch.nn as nn

from abcfx.dag.layer_dag import LayerDag
from abcfx.rules import Layer, plain_name
from abcfx.rules.kinds import Mix, Pointwise, Product, Softmax
from abcfx.rules.values import shape_of
from abcfx.support.location import location

_DECIDES = frozenset({"relu", "topk", "sort", "hardtanh", "clamp", "threshold"})
_DECIDING_LAYERS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold)
_ON_THE_WAY = frozenset({"add", "clamp", "clamp_min", "maximum", "to", "float", "type_as"})  # such as `+ eps`


def is_router(dag: LayerDag, layer: str) -> bool:
    """Whether a layer is a router: its outputs decide how much the results of other layers (experts) count.

    A function such as sigmoid, relu or top-k stands in between, and each output weighs a whole vector, which another
    layer has computed from what the router does not see alone.
    """
    kind = dag.kind(layer)
    has_one = isinstance(kind, Layer) and kind.fan_in and not kind.fan_out
    if has_one or (shape_of(dag.node(layer).fx_node) or (0,))[-1] == 1:  # a gate, which does not choose among several
        return False
    before, seen = {layer, *dag.ancestors(layer)}, set[tuple[str, bool]]()
    waiting = [(layer, after, False) for after in dag.successors(layer)]
    while waiting:
        source, node, decided = waiting.pop()
        kind = dag.kind(node)
        if (node, decided) in seen or isinstance(kind, Layer | Softmax):
            continue
        seen.add((node, decided))
        if isinstance(kind, Product) and not isinstance(kind, Mix):
            side = kind.inputs.index(source)
            other = kind.inputs[1 - side]
            weighs = other is not None and bool(kind.broadcast[side]) and not dag.node(other).is_parametric
            if weighs and (decided or _decides(dag.node(layer).fx_node, dag.node(node).fx_node)):
                above = {str(other), *dag.ancestors(str(other))} - before
                if any(isinstance(dag.kind(each), Layer) for each in above):
                    return True
        decided = decided or isinstance(kind, Pointwise)
        waiting += [(node, after, decided) for after in dag.successors(node)]
    return False


def _decides(start: fx.Node, end: fx.Node) -> bool:
    """Whether relu, top-k or another function that switches entries off stands between two nodes of a traced graph."""
    after, waiting = set[fx.Node](), list(start.users)
    while waiting:
        node = waiting.pop()
        if node not in after:
            after.add(node)
            waiting += node.users
    between, waiting = set[fx.Node](), list(end.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in after and node not in between:
            between.add(node)
            waiting += node.all_input_nodes
    return any(map(_switches_off, between))


def _switches_off(node: fx.Node) -> bool:
    """Whether an fx node is relu, top-k or another function that sets entries to zero or leaves them out."""
    if node.op == "call_module" and node.graph.owning_module is not None:
        return isinstance(node.graph.owning_module.get_submodule(str(node.target)), _DECIDING_LAYERS)
    return node.op in ("call_function", "call_method") and plain_name(node.target) in _DECIDES


def routing_notes(graph: fx.Graph) -> Iterator[str]:
    """Yield a note for each router to the single best expert whose weight is always 1, so that it gets no gradient.

    Such routers end in a softmax over one entry, or in a division of one entry by itself, to make the weights of the
    chosen experts sum to 1.
    """
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and _is_one(node) and _comes_from_choice(node):
            yield (
                f"the weights of the chosen experts are made to sum to 1, and there is one of them: it is always 1, so "
                f"that no gradient reaches the router through it  in {location(node)}"
            )


def _is_one(node: fx.Node) -> bool:
    """Whether an fx node makes a tensor sum to 1 over a dim of one entry, so that all entries become 1.

    It does so by a softmax, or by a division by the sum.
    """
    name = plain_name(node.target)
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return False
    if name == "softmax":
        return _has_one_entry(first, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim"))
    total = node.args[1] if name == "div" and len(node.args) > 1 else None
    while isinstance(total, fx.Node) and plain_name(total.target) in _ON_THE_WAY:
        total = next((each for each in total.args if isinstance(each, fx.Node)), None)
    if not isinstance(total, fx.Node) or plain_name(total.target) != "sum" or total.args[:1] != (first,):
        return False
    return _has_one_entry(first, total.args[1] if len(total.args) > 1 else total.kwargs.get("dim"))


def _has_one_entry(node: fx.Node, dim: object) -> bool:
    """Whether a dim of the tensor that an fx node returns has one entry; False where sizes are not known."""
    shape = shape_of(node)
    index = dim[0] if isinstance(dim, list | tuple) and len(dim) == 1 else dim
    return shape is not None and isinstance(index, int) and -len(shape) <= index < len(shape) and shape[index] == 1


def _comes_from_choice(node: fx.Node) -> bool:
    """Whether an fx node is computed from the result of a top-k or maximum, by views and functions of one tensor."""
    at: object = node
    while isinstance(at, fx.Node):
        if at.op in ("call_function", "call_method") and plain_name(at.target) in ("topk", "max", "gather", "amax"):
            return True
        at = next((each for each in at.args if isinstance(each, fx.Node)), None)
    return False

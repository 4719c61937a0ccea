"""Finds the weights that make the queries of attention, where no parameter makes queries alone, and scales them.

Queries come out of a fused layer or of an nn.MultiheadAttention, or several attentions share one layer. A factor goes
into weights only if it then multiplies queries everywhere, each by the factor that it needs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from abcfx.capture import CapturedGraph
from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.passes.attention_scaling import scaled_query_parameters
from abcfx.rewrite.factor_flow import FactorFlow, Reader, reader_of
from abcfx.rules import Layer
from abcfx.rules.extents import ParameterDim
from abcfx.rules.kinds import NumberFactor
from abcfx.support.location import location


@dataclass(frozen=True)
class FeatureScale:
    """A factor on some of the output features of a layer: those that become queries of attention.

    Attributes:
        owner: path of the module that holds the layer's weight.
        calls: the fx nodes that call the layer.
        features: (features,) the factor of each feature, 1 for those that are no queries.
        dims: for each parameter of the layer, by name, the dim that runs along the features.
    """

    owner: str
    calls: tuple[fx.Node, ...]
    features: torch.Tensor
    dims: dict[str, int]

    def apply_to(self, parameters: Mapping[str, torch.Tensor], done: set[str]) -> None:
        """Multiply the parts of the layer's parameters that make the scaled features by their factors, in place.

        Args:
            parameters: the model's parameters by name.
            done: names of parameters multiplied before, which are skipped; this adds its own.
        """
        for name in self.dims.keys() - done:
            parameter, dim = parameters[name], self.dims[name]
            shape = [-1 if i == dim else 1 for i in range(parameter.ndim)]
            parameter.mul_(self.features[: parameter.shape[dim]].to(parameter).view(shape))
            done.add(name)


def query_features(captured: CapturedGraph, dag: LayerDag, factors: Mapping[str, float]) -> list[FeatureScale]:
    """Find the output features of layers that become the queries of attention products, with their factors.

    Args:
        captured: the model with its graphs.
        dag: its layer DAG.
        factors: for each product of queries and keys, what its queries are to be multiplied by.

    Raises:
        InvalidInputError: no such layer, other uses of it that a factor would change, no example inputs, or weights on
            the meta device.
    """
    found: dict[str, FeatureScale] = {}
    layers: dict[str, list[str]] = {}
    for node, factor in factors.items():
        owner = _attention_module(captured, dag.node(node).fx_node)
        if owner is not None:
            found.setdefault(owner, _module_features(captured, dag, owner, node, factors))
        else:
            layers.setdefault(_query_layer(dag, node, factor), []).append(node)
    return [*found.values(), *(_layer_features(captured, dag, nodes, factors) for nodes in layers.values())]


# -- queries made inside an nn.MultiheadAttention


def _attention_module(captured: CapturedGraph, node: fx.Node) -> str | None:
    """Return the path of the nn.MultiheadAttention that a node calls; None if it calls none."""
    if node.op != "call_module":
        return None
    module = captured.module.get_submodule(str(node.target))
    return str(node.target) if isinstance(module, nn.MultiheadAttention) else None


def _module_features(
    captured: CapturedGraph, dag: LayerDag, owner: str, node: str, factors: Mapping[str, float]
) -> FeatureScale:
    """Return the factor on the rows of an attention module's parameters that make queries.

    All uses of these parameters must need the same factor.

    Args:
        captured: the model with its graphs.
        dag: its layer DAG.
        owner: path of the attention module.
        node: name of its attention product in the DAG.
        factors: for each product of queries and keys, what its queries are to be multiplied by.
    """
    module = captured.model.get_submodule(owner)
    assert isinstance(module, nn.MultiheadAttention)
    by_object = {parameter: name for name, parameter in captured.model.named_parameters()}
    held = {name: module.get_parameter(name) for name in scaled_query_parameters(module, 1.0)}
    if any(parameter not in by_object for parameter in held.values()):
        raise _refused(dag, node)
    names = [by_object[parameter] for parameter in held.values()]
    wanting = {dag.node(n).fx_node for n, factor in factors.items() if factor == factors[node]}
    uses = dag.uses()
    for user in {user for name in names for use in uses[name] for user in _readers_of(dag, use)}:
        call = dag.node(user).fx_node
        if call not in wanting or _attention_module(captured, call) is None:
            raise _refused(dag, node)
    features = torch.ones(max(parameter.shape[0] for parameter in held.values()), dtype=torch.float64)
    features[: module.embed_dim] = factors[node]
    return FeatureScale(owner, (dag.node(node).fx_node,), features, dict.fromkeys(names, 0))


def _readers_of(dag: LayerDag, use: str) -> Sequence[str]:
    """Return the DAG nodes that compute with the parameter at the node `use`: that layer, or the readers of a bias."""
    return [use] if isinstance(dag.kind(use), Layer) else dag.successors(use)


# -- queries made by a layer of the graph


def _query_layer(dag: LayerDag, node: str, factor: float) -> str:
    """Return a text that is the same for attention products whose queries come from one weight and need one factor."""
    layer = dag.kind(_layer_before(dag, node))
    assert isinstance(layer, Layer)
    return f"{layer.parameter} {factor}"


def _layer_before(dag: LayerDag, node: str) -> str:
    """Return the layer node of the DAG whose output, perhaps times numbers, is the queries of an attention product."""
    at = dag.kind(node).inputs[0]
    while at is not None and isinstance(kind := dag.kind(at), NumberFactor):
        at = kind.input
    if at is None or not isinstance(dag.kind(at), Layer):
        raise _refused(dag, node)
    return at


def _layer_features(
    captured: CapturedGraph, dag: LayerDag, nodes: Sequence[str], factors: Mapping[str, float]
) -> FeatureScale:
    """Return the factor on those output features of one layer that become queries of the attention products `nodes`.

    `factors` has what the queries of each product are to be multiplied by. The features are found by runs of the graph,
    so any order of heads and of q, k, v is right.
    """
    at = _layer_before(dag, nodes[0])
    layer, gains = dag.kind(at), dag.node(at).gains
    assert isinstance(layer, Layer)
    dims = [dim for dim in layer.fan_out if isinstance(dim, ParameterDim)]
    biases = [vector for vector in layer.vectors if vector not in gains]
    uses, calls = dag.uses(), set(dag.uses()[layer.parameter])
    readers = [_reader(dag, node) for node in nodes]
    own_biases = all(uses.get(bias) == [bias] and calls.issuperset(dag.successors(bias)) for bias in biases)
    if len(dims) != 1 or layer.normalised or dag.node(at).is_curved or not own_biases or captured.args is None:
        raise _refused(dag, nodes[0])
    if not all(isinstance(dag.kind(call), Layer) for call in calls):
        raise _refused(dag, nodes[0])
    called_at = tuple(dict.fromkeys(dag.node(n).fx_node for n in dag.order if n in calls))
    flow = FactorFlow(captured, called_at, readers)
    features = flow.query_features()
    size = captured.model.get_parameter(layer.parameter).shape[dims[0].index]
    if features is None or size != len(features) or not flow.reaches_queries_alone(features):
        raise _refused(dag, nodes[0])
    along = {layer.parameter: dims[0].index} | dict.fromkeys(biases, 0)
    owner = layer.parameter.rpartition(".")[0]
    return FeatureScale(owner, called_at, 1.0 + features.double() * (factors[nodes[0]] - 1.0), along)


def _reader(dag: LayerDag, node: str) -> Reader:
    """Return which fx node gives an attention product its queries, and which fx node reads them.

    Raises:
        InvalidInputError: the product reads the queries twice, or makes them inside its op.
    """
    product = dag.node(node)
    reader = None if product.operand is None else reader_of(product.fx_node, product.operand)
    if reader is None:
        raise _refused(dag, node)
    return reader


def _refused(dag: LayerDag, node: str) -> InvalidInputError:
    """Return the error that no parameter can take the factor on the logits of an attention product."""
    return InvalidInputError(
        f"Attention at {location(dag.node(node).fx_node)}: head_dim grows, so that its logits need a factor that no "
        f"parameter can take:\n"
        f"  expected: weights that make queries and nothing else; got a layer whose output, or whose weight, is also "
        f"used for something else, or whose queries could not be told from its other features.\n"
        f"  To fix: apply='insert' or 'absorb' and result.module without fold(), or let the number of heads grow and "
        f"head_dim stay."
    )

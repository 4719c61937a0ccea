"""Finds which output features of a fused q, k, v layer become queries, and multiplies their weights by a factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from abcfx.capture import CapturedGraph
from abcfx.capture.signature import signature_of
from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.passes.attention_scaling import scaled_query_parameters
from abcfx.rules import Layer
from abcfx.rules.extents import ParameterDim
from abcfx.rules.kinds import NumberFactor
from abcfx.support.location import location
from abcfx.support.running import preserved_rng


@dataclass(frozen=True)
class FeatureScale:
    """A factor on each of the output features of a module, which is 1 for all but the queries.

    Attributes:
        owner: path of the module.
        features: (features,) the factor of each feature.
        dims: for each parameter of the module, the dim that runs along the features.
    """

    owner: str
    features: torch.Tensor
    dims: dict[str, int]

    def apply_to(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Multiply the features of the module's parameters by their factors, in place."""
        for name, dim in self.dims.items():
            parameter = parameters[name]
            shape = [-1 if i == dim else 1 for i in range(parameter.ndim)]
            parameter.mul_(self.features[: parameter.shape[dim]].to(parameter).view(shape))


def query_features(captured: CapturedGraph, dag: LayerDag, node: str, factor: float) -> FeatureScale:
    """Find the output features of a fused layer that become the queries of an attention product.

    They are found by what the queries depend on in one run of the graph, so any order of heads and of q, k, v is right.

    Args:
        captured: the model with its graphs.
        dag: its layer DAG.
        node: the product of queries and keys.
        factor: what the queries are to be multiplied by.

    Returns:
        The factor of each output feature of that layer.

    Raises:
        InvalidInputError: there is no such layer, no example inputs, or weights on the meta device.
    """
    product = dag.node(node)
    owner = _attention_module(captured, product.fx_node)
    if owner is not None:
        module = captured.model.get_submodule(owner)
        assert isinstance(module, nn.MultiheadAttention)
        names = scaled_query_parameters(module, factor)
        features = torch.ones(max(tensor.shape[0] for tensor in names.values()))
        features[: module.embed_dim] = factor
        return FeatureScale(owner, features, {f"{owner}.{name}" if owner else name: 0 for name in names})
    at = dag.kind(node).inputs[0]
    while at is not None and isinstance(kind := dag.kind(at), NumberFactor):
        at = kind.input
    layer = dag.kind(at) if at is not None else None
    if at is None or not isinstance(layer, Layer) or product.operand is None or captured.args is None:
        raise _refused(product.fx_node)
    dims = [dim for dim in layer.fan_out if isinstance(dim, ParameterDim)]
    found = _features_of(captured, dag.node(at).fx_node, product.operand)
    weight_shape = captured.model.get_parameter(layer.parameter).shape
    if len(dims) != 1 or found is None or weight_shape[dims[0].index] != len(found):
        raise _refused(product.fx_node)
    along = {layer.parameter: dims[0].index} | dict.fromkeys(layer.vectors, 0)
    return FeatureScale(layer.parameter.rpartition(".")[0], torch.where(found, factor, 1.0), along)


def _attention_module(captured: CapturedGraph, node: fx.Node) -> str | None:
    """Return the path of the nn.MultiheadAttention that a node calls; None if it calls none."""
    if node.op != "call_module":
        return None
    module = captured.module.get_submodule(str(node.target))
    return str(node.target) if isinstance(module, nn.MultiheadAttention) else None


class _Dependence(fx.Interpreter):
    """An interpreter that runs a graph up to the node `end`, cutting gradients at the result of the node `start`.

    Attributes:
        source: the result of `start`, which requires a gradient.
        reached: the result of `end`.
    """

    def __init__(self, module: fx.GraphModule, start: fx.Node, end: fx.Node) -> None:
        """Prepare to run the graph from its beginning to `end`."""
        super().__init__(module, garbage_collect_values=False)
        self.start, self.end = start, end
        self.source: torch.Tensor | None = None
        self.reached: torch.Tensor | None = None

    def run_node(self, n: fx.Node) -> object:
        """Run one node; the result of `start` becomes a leaf of autograd, and nothing runs after `end`."""
        if self.reached is not None or n.op == "output":
            return None
        result = super().run_node(n)
        if n is self.start:
            self.source = result = result.detach().requires_grad_(True)
        if n is self.end:
            self.reached = result
        return result


def _features_of(captured: CapturedGraph, layer: fx.Node, query: fx.Node) -> torch.Tensor | None:
    """Return which entries along the last dim of the layer's output the query depends on; None if on none."""
    signature, examples = signature_of(captured.model, captured.args or (), captured.kwargs or {})
    run = _Dependence(captured.module, layer, query)
    buffers = [(buffer, buffer.clone()) for buffer in captured.model.buffers()]
    try:
        with preserved_rng(), torch.enable_grad():
            run.run(*(examples[slot] for slot in signature.slots), enable_io_processing=False)
            if run.source is None or run.reached is None or run.reached.is_meta:
                return None
            if run.reached is run.source:
                return torch.ones(run.source.shape[-1], dtype=torch.bool)
            (gradient,) = torch.autograd.grad((run.reached * torch.rand_like(run.reached)).sum(), run.source)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    depends = gradient.flatten(0, -2).ne(0).any(0)
    return depends if bool(depends.any()) else None


def _refused(node: fx.Node) -> InvalidInputError:
    """Return the error that the features of a fused layer that become queries could not be found."""
    return InvalidInputError(
        f"Attention at {location(node)}: head_dim grows, so that its logits need a factor that no parameter can take:\n"
        f"  queries and keys come out of one layer, and which of its features are queries could not be found.\n"
        f"  To fix: apply='insert', or let the number of heads grow and head_dim stay."
    )

"""Multipliers that weights take for good, for inference (`fold`), or that hooks on the model's own object apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from abcfx.capture import CapturedGraph
from abcfx.capture.signature import signature_of
from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError
from abcfx.passes.scale_attention import scaled_query_parameters
from abcfx.rules import Layer
from abcfx.rules.extents import ParameterDim
from abcfx.rules.kinds import NumberFactor
from abcfx.support.location import location
from abcfx.support.running import preserved_rng

# Model objects whose hooks multiply, so that none is transformed twice.
_HOOKED: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class FeatureScale:
    """A factor on some output features of the module `owner`; `features` is its vector of factors, 1 for the others.

    `dims`: the dim of each parameter that runs along these features.
    """

    owner: str
    features: torch.Tensor
    dims: dict[str, int]

    def apply_to(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Multiply the parameters in place."""
        for name, dim in self.dims.items():
            parameter = parameters[name]
            shape = [-1 if i == dim else 1 for i in range(parameter.ndim)]
            parameter.mul_(self.features[: parameter.shape[dim]].to(parameter).view(shape))


@dataclass
class Fold:
    """What turns the trained model into plain weights.

    `factors`: of each parameter. `features`: of parts of fused ones. `left`: what cannot be folded, in words.
    `hooks`: on the model's own object, until it is folded. `find_features`: gives `features` when they are needed.
    """

    factors: dict[str, float] = field(default_factory=dict)
    features: Sequence[FeatureScale] = ()
    left: Sequence[str] = ()
    hooks: list[RemovableHandle] = field(default_factory=list)
    find_features: Callable[[], Sequence[FeatureScale]] | None = None

    def apply_to(self, model: nn.Module) -> None:
        """Multiply the parameters of a model of the original class; hooks go. Raises before anything is changed."""
        if self.left:
            raise InvalidInputError(
                f"fold: {self.left[0]} cannot be put into weights: no parameter can take it, or one would need two.\n"
                f"  To fix: keep the transformed module for inference; untie a tied parameter before training."
            )
        parameters = dict(model.named_parameters())
        features = self.find_features() if self.find_features is not None else self.features
        with torch.no_grad():
            for name, factor in self.factors.items():
                if factor != 1.0:
                    parameters[name].mul_(factor)
            for each in features:
                each.apply_to(parameters)
        if self.hooks:  # the model's own object: a second call finds plain weights
            self.factors, self.features = {}, ()
        while self.hooks:
            self.hooks.pop().remove()
        _HOOKED.discard(model)


def query_features(captured: CapturedGraph, dag: LayerDag, node: str, factor: float) -> FeatureScale:
    """The output features of a fused layer that become the queries of the attention product `node`.

    Found by what the queries depend on in one run of the graph, so that any order of heads and of q, k, v is right.

    Raises:
        InvalidInputError: no such layer, no example inputs, or weights on the meta device.
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


def hook_features(model: nn.Module, scale: FeatureScale) -> RemovableHandle:
    """Multiply the output features of the module, until the handle is removed."""
    module = model.get_submodule(scale.owner)
    if isinstance(module, nn.MultiheadAttention):
        return _hook_attention_module(module, float(scale.features.min()))
    return module.register_forward_hook(lambda _, args, out: out * scale.features.to(out))


def has_hooks(model: nn.Module) -> bool:
    """Whether hooks of an earlier transform multiply in this model object."""
    return model in _HOOKED


def refuse_saving(model: nn.Module) -> RemovableHandle:
    """Make `state_dict()` raise: weights alone would not say what the hooks multiply."""

    def refuse(*_: Any, **__: Any) -> None:
        raise InvalidInputError(
            "This model computes with multipliers in hooks, which its weights do not hold: a model that loads them\n"
            "  would compute something else. To fix: result.fold() first, which puts them into the weights."
        )

    _HOOKED.add(model)
    handle: RemovableHandle = model.register_state_dict_pre_hook(refuse)
    return handle


def _hook_attention_module(module: nn.MultiheadAttention, factor: float) -> RemovableHandle:
    """Its projections are not modules: for the length of a call, scaled ones stand in their place."""
    kept: list[dict[str, Any]] = []

    def before(_: nn.Module, args: Any) -> None:
        scaled = scaled_query_parameters(module, factor)
        kept.append({name: module._parameters[name] for name in scaled})
        module._parameters.update(scaled)  # type: ignore[arg-type]

    def after(_: nn.Module, args: Any, out: Any) -> None:
        module._parameters.update(kept.pop())

    first = module.register_forward_pre_hook(before)
    second = module.register_forward_hook(after, always_call=True)
    return _Both(first, second)


class _Both(RemovableHandle):
    def __init__(self, first: RemovableHandle, second: RemovableHandle) -> None:
        self._handles = first, second

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _attention_module(captured: CapturedGraph, node: fx.Node) -> str | None:
    if node.op != "call_module":
        return None
    module = captured.module.get_submodule(str(node.target))
    return str(node.target) if isinstance(module, nn.MultiheadAttention) else None


class _Dependence(fx.Interpreter):
    """Runs a graph up to `end`, with what `start` returns cut off from what is before it."""

    def __init__(self, module: fx.GraphModule, start: fx.Node, end: fx.Node) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.start, self.end = start, end
        self.source: torch.Tensor | None = None
        self.reached: torch.Tensor | None = None

    def run_node(self, n: fx.Node) -> Any:
        if self.reached is not None or n.op == "output":
            return None
        result = super().run_node(n)
        if n is self.start:
            self.source = result = result.detach().requires_grad_(True)
        if n is self.end:
            self.reached = result
        return result


def _features_of(captured: CapturedGraph, layer: fx.Node, query: fx.Node) -> torch.Tensor | None:
    """Which entries along the last dim of the layer's output the query depends on; None if it does on none."""
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
    return InvalidInputError(
        f"Attention at {location(node)}: head_dim grows, so that its logits need a factor that no parameter can take:\n"
        f"  queries and keys come out of one layer, and which of its features are queries could not be found.\n"
        f"  To fix: apply='insert', or let the number of heads grow and head_dim stay."
    )

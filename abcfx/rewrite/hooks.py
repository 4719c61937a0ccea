"""Hooks on the model's own object that multiply the queries of fused layers until the model is folded."""

from __future__ import annotations

from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from abcfx.capture import CapturedGraph
from abcfx.errors import InvalidInputError
from abcfx.passes.attention_scaling import scaled_query_parameters
from abcfx.rewrite.query_features import FeatureScale
from abcfx.rules import plain_name
from abcfx.rules.op_properties import VIEWS
from abcfx.support.location import module_path


def hook_features(model: nn.Module, scale: FeatureScale) -> RemovableHandle:
    """Register a hook that multiplies output features of a module; return the handle that removes it.

    Args:
        model: the model that has the module.
        scale: the path of the module, and the factor of each feature.
    """
    module = model.get_submodule(scale.owner)
    if isinstance(module, nn.MultiheadAttention):
        return _hook_attention_module(module, float(scale.features.min()))
    return module.register_forward_hook(lambda _, args, out: out * scale.features.to(out))


def can_hook(captured: CapturedGraph, scale: FeatureScale) -> bool:
    """Whether `hook_features` multiplies what a layer computes: its module must return it, in all calls of the layer.

    `scale` names the module and the calls of the layer. An nn.MultiheadAttention will do too: its hook multiplies the
    weights of the queries.
    """
    module = captured.model.get_submodule(scale.owner)
    if isinstance(module, nn.MultiheadAttention):
        return all(call.op == "call_module" or module_path(call) == scale.owner for call in scale.calls)
    is_leaf = bool(scale.owner) and not list(module.children())
    return is_leaf and all(_is_returned(call, scale.owner) for call in scale.calls)


def _is_returned(call: fx.Node, owner: str) -> bool:
    """Whether the module at the path `owner` returns what the graph's node `call` computes, apart from views."""
    if call.op == "call_module":
        return str(call.target) == owner
    waiting = [call]
    while waiting:
        at = waiting.pop()
        if module_path(at) != owner or (at is not call and plain_name(at.target) not in VIEWS):
            return False
        waiting += [user for user in at.users if module_path(user) == owner]
    return True


def refuse_saving(model: nn.Module) -> RemovableHandle:
    """Make `state_dict()` raise until the returned handle is removed: hooks multiply what the weights do not hold."""

    def refuse(*_: object) -> None:
        """Raise the error that `fold()` has to put the factors of hooks into the weights before the model is saved."""
        raise InvalidInputError(
            "This model computes with multipliers in hooks, which its weights do not hold: a model that loads them\n"
            "  would compute something else. To fix: result.fold() first, which puts them into the weights."
        )

    handle: RemovableHandle = model.register_state_dict_pre_hook(refuse)
    return handle


def _hook_attention_module(module: nn.MultiheadAttention, factor: float) -> RemovableHandle:
    """Hook an nn.MultiheadAttention so that each call runs with its query projection multiplied by `factor`."""
    kept: list[dict[str, nn.Parameter | None]] = []

    def before(_: nn.Module, args: object) -> None:
        """Put weights that make multiplied queries in the place of the attention module's own before a call."""
        scaled = scaled_query_parameters(module, factor)
        kept.append({name: module._parameters[name] for name in scaled})
        module._parameters.update(scaled)  # type: ignore[arg-type]

    def after(_: nn.Module, args: object, out: object) -> None:
        """Put the attention module's own weights back after a call."""
        module._parameters.update(kept.pop())

    first = module.register_forward_pre_hook(before)
    second = module.register_forward_hook(after, always_call=True)
    return _Both(first, second)


class _Both(RemovableHandle):
    """A handle whose `remove` removes two hooks."""

    def __init__(self, first: RemovableHandle, second: RemovableHandle) -> None:
        """Keep the handles of the two hooks."""
        self._handles = first, second

    def remove(self) -> None:
        """Remove both hooks."""
        for handle in self._handles:
            handle.remove()

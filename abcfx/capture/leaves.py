"""Which modules stay whole in a captured graph, as one call_module node."""

from __future__ import annotations

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_COMPOSITES = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def is_torch_module(module: nn.Module) -> bool:
    """True for torch's own layers, also when a parametrization made a subclass of one; False for containers."""
    home = type(module).__module__
    return home.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, _CONTAINERS)


_KEPT: set[type[nn.Module]] = set()


def keep_whole(module_type: type[nn.Module]) -> None:
    """From now on modules of this type stay one node where the way of capturing can keep modules: they have a rule."""
    _KEPT.add(module_type)


def stays_whole(module: nn.Module) -> bool:
    """True for torch's own layers and for the types that `keep_whole` named."""
    return is_torch_module(module) or type(module) in _KEPT


def is_composite(module: nn.Module) -> bool:
    """True for torch's own blocks of layers, which an analysis wants to see inside."""
    return isinstance(module, _COMPOSITES)

"""Decide which modules stay whole in a captured graph, as one call_module node each."""

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
_KEPT: set[type[nn.Module]] = set()


def keep_whole(module_type: type[nn.Module]) -> None:
    """Keep modules of this type as one node from now on, in the ways of capturing that can keep modules.

    A module type for which a rule is registered is kept whole, so that the rule is asked.
    """
    _KEPT.add(module_type)


def open_up(module_type: type[nn.Module]) -> None:
    """Take back `keep_whole`: trace into modules of this type again."""
    _KEPT.discard(module_type)


def is_kept(module_type: type[nn.Module]) -> bool:
    """Return True for a type given to `keep_whole`."""
    return module_type in _KEPT


def stays_whole(module: nn.Module) -> bool:
    """Return True for torch's own layers and for the types given to `keep_whole`."""
    return is_torch_module(module) or type(module) in _KEPT


def is_torch_module(module: nn.Module) -> bool:
    """Return True for torch's own layers, also when a parametrization made a subclass of one; False for containers."""
    home = type(module).__module__
    return home.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, _CONTAINERS)


def is_composite(module: nn.Module) -> bool:
    """Return True for torch's own blocks of layers, whose inside an analysis needs to see."""
    return isinstance(module, _COMPOSITES)

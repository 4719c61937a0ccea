"""Decide which modules stay whole in a captured graph, as one call_module node each."""

from __future__ import annotations

from types import FunctionType

from torch import nn

from abcfx.capture.closures import reachable

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_COMPOSITES = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_CALL_ONE_FUNCTION = tuple(
    getattr(nn, name)
    for name in (
        *(
            f"{kind}Pad{n}d"
            for kind in ("Circular", "Constant", "Reflection", "Replication", "Zero")
            for n in (1, 2, 3)
        ),
        *(f"{kind}Pool{n}d" for kind in ("FractionalMax", "LP") for n in (1, 2, 3)),
        *(f"MaxUnpool{n}d" for n in (1, 2, 3)),
        *("Fold", "Unfold", "LocalResponseNorm", "Softmax2d", "Softmin", "CosineSimilarity", "PairwiseDistance"),
        *("BCELoss", "BCEWithLogitsLoss", "CTCLoss", "CosineEmbeddingLoss", "CrossEntropyLoss", "GaussianNLLLoss"),
        *("HingeEmbeddingLoss", "HuberLoss", "KLDivLoss", "L1Loss", "LinearCrossEntropyLoss", "MSELoss"),
        *("MarginRankingLoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss"),
        *("PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss", "TripletMarginLoss"),
    )
    if hasattr(nn, name)
)
"""Torch's layers whose forward is a call of one function, in train and eval mode: that function is the node."""
NORMS = ("_WeightNorm", "_SpectralNorm", "_Orthogonal")
"""Classes of torch's own parametrizations, each of which divides a weight by a norm of it."""
_KEPT: set[object] = set()


def keep_whole(target: object) -> None:
    """Keep a module type or a function as one node of captured graphs from now on: a rule is registered for it.

    That holds for module types in every way of capturing but torch.export, and for a function where `torch.fx.wrap`
    hides what it computes.
    """
    _KEPT.add(target)


def open_up(target: object) -> None:
    """Take back `keep_whole`: capture the ops inside a module type or a function again, in place of one node."""
    _KEPT.discard(target)


def is_kept(target: object) -> bool:
    """Whether a module type or function was given to `keep_whole`, so that graphs have it as one node."""
    return target in _KEPT


def hides_ops(function: object) -> bool:
    """Whether a function that a symbolic trace calls as one node hides ops: Python code under `torch.fx.wrap`.

    Functions of torch do not, and neither do functions with a rule of their own.
    """
    if not isinstance(function, FunctionType) or is_kept(function):
        return False
    return (function.__module__ or "").partition(".")[0] not in ("torch", "math", "operator", "abcfx")


def stays_whole(module: nn.Module) -> bool:
    """Whether a module becomes one node of a graph: torch's own layers, and types given to `keep_whole`.

    Not a layer that only calls one function, and not one with a hook that reaches other modules, or with a
    parametrization that is not torch's: their weights would be hidden in the layer's node.
    """
    is_layer = is_torch_module(module) and not isinstance(module, _CALL_ONE_FUNCTION)
    whole = (is_layer or type(module) in _KEPT) and not _has_reaching_hooks(module)
    return whole and not _has_own_parametrizations(module)


def _has_own_parametrizations(module: nn.Module) -> bool:
    """Whether a weight of a module is computed by parametrizations of which some are no norms of torch's."""
    registered = getattr(module, "parametrizations", None)
    lists = registered.values() if isinstance(registered, nn.ModuleDict) else ()
    return any(type(each).__name__ not in NORMS for functions in lists for each in functions.children())


def _has_reaching_hooks(module: nn.Module) -> bool:
    """Whether a forward hook of a module refers to modules or parameters that are not inside the module."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(
        isinstance(part, nn.Module | nn.Parameter) and part is not module and not _holds(module, part)
        for hook in hooks
        for part in reachable(hook)
    )


def _holds(module: nn.Module, part: object) -> bool:
    """Whether a module or parameter is one of those inside a module."""
    return any(part is each for each in (*module.modules(), *module.parameters()))


def is_torch_module(module: nn.Module) -> bool:
    """Whether a module is one of torch's own layers, also with a parametrization; False for containers."""
    home = type(module).__module__
    return home.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, _CONTAINERS)


def is_composite(module: nn.Module) -> bool:
    """Whether a module is a block of several layers of torch's own, such as nn.TransformerEncoderLayer."""
    return isinstance(module, _COMPOSITES)

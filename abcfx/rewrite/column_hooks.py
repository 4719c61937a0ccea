"""Hooks on the model's own object that multiply a part of the input of a layer until the model is folded.

The input is a concatenation, and the part does not grow with the width as the rest of it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from abcfx.capture import CapturedGraph
from abcfx.dag.layer_dag import LayerDag
from abcfx.rules.extents import DimPart
from abcfx.support.location import module_path

ColumnFactors = Sequence[tuple[DimPart, float]]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def columns_by_weight(columns: Iterable[tuple[DimPart, float]]) -> dict[str, ColumnFactors]:
    """Return the columns that have a factor, with the factor, by the name of their weight."""
    found: dict[str, list[tuple[DimPart, float]]] = {}
    for part, factor in columns:
        found.setdefault(part.parameter, []).append((part, factor))
    return dict(found)


def can_hook_columns(captured: CapturedGraph, dag: LayerDag, weight: str) -> bool:
    """Whether a Linear or convolution holds a weight and is called wherever the weight is used.

    Args:
        captured: the model with its graphs.
        dag: its layer DAG.
        weight: name of the weight.
    """
    owner, _, name = weight.rpartition(".")
    module = captured.model.get_submodule(owner)
    calls = [dag.node(node).fx_node for node in dag.uses()[weight]]
    is_called = all(module_path(call) == owner if call.op != "call_module" else call.target == owner for call in calls)
    return bool(owner) and name == "weight" and isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and is_called


def hook_columns(model: nn.Module, weight: str, columns: ColumnFactors) -> RemovableHandle:
    """Register a hook that multiplies a part of the input of a layer; return the handle that removes it.

    Args:
        model: the model that has the layer.
        weight: name of the layer's weight.
        columns: the columns that meet the part, with the factor.
    """
    module = model.get_submodule(weight.rpartition(".")[0])
    parameter = model.get_parameter(weight)
    features = torch.ones(parameter.shape[columns[0][0].index], dtype=torch.float64)
    for part, factor in columns:
        features[part.start : part.start + part.size] = factor
    shaped = features.view(-1, *[1] * (parameter.ndim - 2))  # a convolution has its channels before its places

    def multiply(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the arguments of the layer's call, with a part of the input multiplied by its factor."""
        return (args[0] * shaped.to(args[0]), *args[1:])

    return module.register_forward_pre_hook(multiply)

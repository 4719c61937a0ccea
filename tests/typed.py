"""Options of `transform`, and values whose declared type is wider than what a test relies on."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import fx, nn

from abcfx.passes import scale_nodes
from abcfx.pipeline import TransformOptions
from abcfx.plan.options import ByRole
from abcfx.theory.optimizers import Optimizer

Value = TypeVar("Value")


class Options(TransformOptions, total=False):
    """The keyword options of `transform` without its base."""

    optimizer: Optimizer
    lr: ByRole


def given(value: Value | None) -> Value:
    """Return a value that must not be None."""
    assert value is not None
    return value


def number(value: object) -> float:
    """Return a value that must be a number, as the multiplier of a parameter that has one use."""
    assert isinstance(value, float | int)
    return value


def tensor(value: object) -> torch.Tensor:
    """Return a value that must be a tensor, as the output of a module or one of its attributes."""
    assert isinstance(value, torch.Tensor)
    return value


def graph_of(module: nn.Module) -> fx.Graph:
    """Return the graph of a module that must be a GraphModule."""
    assert isinstance(module, fx.GraphModule)
    return module.graph


def scales_in(module: nn.Module, label: str = "") -> list[fx.Node]:
    """Return the scale nodes of a transformed module and its submodules whose label contains some words."""
    graphs = [each.graph for each in module.modules() if isinstance(each, fx.GraphModule)]
    return [node for graph in graphs for node, note in scale_nodes(graph).items() if label in note.label]

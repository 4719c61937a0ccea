"""Measures how every tensor of a model and its change scale with width, and compares that with the linear program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import linear_regression, mean

import torch
from torch import fx
from torch.optim.optimizer import ParamsT

import abcfx
from abcfx.support.trees import tensors

from .properties import Flag
from .recipes import Recipe

TIMES = (4, 8, 16, 32, 64)  # widths 64 to 1,024
SEEDS = 2
TOLERANCE = 0.15
TINY = 1e-13


class _Sizes(fx.Interpreter):
    """Runs a graph and keeps each tensor that a node returns."""

    def tensors_of(self, nodes: Sequence[str], x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors of fx nodes, by name."""
        torch.manual_seed(3)
        with torch.no_grad():
            self.run(x, enable_io_processing=False)
        by_name = {node.name: value for node, value in self.env.items() if isinstance(value, torch.Tensor)}
        return {name: by_name[name].clone() for name in nodes if name in by_name}


def groups_of(result: abcfx.Transformed) -> ParamsT:
    """Return the optimizer groups that are tested."""
    return result.param_groups


def _measured(recipe: Recipe, times: int, seed: int) -> tuple[dict[str, tuple[float, float]], abcfx.Transformed]:
    """Return RMS size at init, and RMS change after one step of Adam, by DAG node; and the transformed model."""
    x = recipe.inputs(seed)
    model = recipe.build(times, seed)
    result = abcfx.transform(model, x, base=recipe.build(1, seed), optimizer="adam", lr=1e-3)
    module = result.module
    assert isinstance(module, fx.GraphModule)
    at = {node.name: node.fx_node.name for node in result.outcome.dag.nodes if not node.is_parametric}
    runs = _Sizes(module, garbage_collect_values=False)
    before = runs.tensors_of(list(at.values()), x)
    loss = sum((each.sin() ** 2).mean() for each in tensors(module(x)))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    torch.optim.Adam(groups_of(result)).step()
    after = _Sizes(module, garbage_collect_values=False).tensors_of(list(at.values()), x)
    return {
        node: (rms(before[name]), rms(after[name] - before[name])) for node, name in at.items() if name in before
    }, result


def rms(tensor: torch.Tensor) -> float:
    """Return the RMS entry of a tensor."""
    return float(tensor.abs().square().mean().sqrt()) if tensor.numel() else 0.0


def node_flags(recipe: Recipe) -> list[Flag]:
    """Return the nodes whose size or change grows faster with width than the linear program says, at all widths."""
    rows: dict[str, list[list[tuple[float, float]]]] = {}
    for times in TIMES:
        measured = [_measured(recipe, times, seed) for seed in range(SEEDS)]
        for node in measured[0][0]:
            rows.setdefault(node, []).append([found[node] for found, _ in measured if node in found])
    solution = measured[0][1].solution
    found = []
    for node, each in rows.items():
        if len(each) < len(TIMES):
            continue
        for what, index, expected in (("size", 0, solution.s.get(node)), ("change", 1, solution.r.get(node))):
            values = [mean(pair[index] for pair in at_width) for at_width in each]
            if expected is None or min(values) < TINY:
                continue
            slopes = [slope(values), slope(values[-3:])]
            if min(slopes) > TOLERANCE - expected:
                found.append(Flag(f"oracle {what}", f"{node}: m^{min(slopes):.2f}, the program says m^{-expected:.2f}"))
    return found


def slope(values: Sequence[float]) -> float:
    """Return the exponent of width with which values at the last widths grow."""
    widths = [math.log(times) for times in TIMES[-len(values) :]]
    return linear_regression(widths, [math.log(value) for value in values]).slope

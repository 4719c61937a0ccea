"""Slope over width of every layer's isolated update, rms(dW x) on a probe: a plain loop, for models of any kind.

dW = W_t - W_0 and x is what the layer gets at step t, multipliers included. With right exponents the slope is 0; a rate
exponent that is off by 0.5 moves it by 0.5, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
# What is added to the product (a bias) stands at this position: the update of a layer has none.
ADDED = {ATEN.addmm.default: 0, ATEN.baddbmm.default: 0, ATEN.addbmm.default: 0, ATEN.convolution.default: 2}
TABLES = {ATEN.embedding.default, ATEN.index.Tensor}
WEIGHT_OPS = {ATEN.mm.default, ATEN.bmm.default, ATEN.mv.default, *TABLES, *ADDED}


class Updates(TorchDispatchMode):
    """Does every weight op a second time with the change of its weight in the weight's place, and sums the squares.

    A weight is known by its storage, so that views of it (transposed, one head of it) count; `found` has an entry
    for each parameter and op, since a tied parameter is a table and a matrix at once.
    """

    def __init__(self, module: nn.Module, before: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): n for n, p in module.named_parameters() if p.ndim > 1}
        self.changes = {n: p.detach() - before[n] for n, p in module.named_parameters()}
        self.found: dict[str, tuple[float, int]] = {}
        self.looked_up: tuple[str, torch.Tensor] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is ATEN.mul.Tensor and self.looked_up is not None and args[0] is self.looked_up[1]:
            self._multiply(self.looked_up[0], args[1])
        if func in WEIGHT_OPS:
            for i, arg in enumerate(args):
                if not isinstance(arg, torch.Tensor) or i == ADDED.get(func):
                    continue
                name = self.names.get(arg.untyped_storage().data_ptr())
                if name is not None:
                    key = f"{name} {func.__name__.split('.')[0]}"
                    self._add(key, func, args, kwargs, i, self.changes[name])
                    self.looked_up = (key, out) if func in TABLES else self.looked_up
        return out

    def _multiply(self, key: str, factor: Any) -> None:
        """What is looked up in a table may be multiplied by a number after it, by a scale node or by the model."""
        if not isinstance(factor, torch.Tensor) or factor.ndim == 0:
            squares, count = self.found[key]
            self.found[key] = squares * float(factor) ** 2, count

    def _add(self, key: str, func: Any, args: Any, kwargs: Any, position: int, change: torch.Tensor) -> None:
        changed = list(args)
        view = changed[position]
        changed[position] = change.as_strided(view.size(), view.stride(), view.storage_offset())
        added = ADDED.get(func)
        if added is not None and changed[added] is not None:
            changed[added] = torch.zeros_like(changed[added])
        update = func(*changed, **(kwargs or {})).double()
        squares, count = self.found.get(key, (0.0, 0))
        self.found[key] = squares + float(update.square().sum()), count + update.numel()


def updates(
    module: nn.Module, groups: Any, loss: Callable[[nn.Module], torch.Tensor], steps: int = 3, **options: Any
) -> dict[str, float]:
    """rms(dW x) of every weight op after some steps of AdamW on one batch, which is the probe as well."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.AdamW(groups, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module).backward()
        optimizer.step()
    with torch.no_grad(), Updates(module, before) as seen:
        loss(module)
    return {key: (squares / count) ** 0.5 for key, (squares, count) in seen.found.items()}


@dataclass(frozen=True)
class Slope:
    """Slope of log2 rms(dW x) over log2 width: mean over seeds, and its standard error.

    None where an update is exactly 0 at some width: a zero has no logarithm, and no small number stands in for it.
    """

    mean: float | None
    error: float


def slopes(widths: Sequence[int], found: Sequence[Sequence[dict[str, float]]]) -> dict[str, Slope]:
    """By layer, by least squares over all widths; `found` is by width, then seed. Every model has the same layers."""
    names = found[0][0].keys()
    assert all(one.keys() == names for seeds in found for one in seeds)
    x = torch.tensor([log2(w) for w in widths], dtype=torch.float64)
    x -= x.mean()
    result = {}
    for name in names:
        y = torch.tensor([[one[name] for one in seeds] for seeds in found], dtype=torch.float64)
        each = x @ y.log2() / x.square().sum()
        error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else 0.0
        result[name] = Slope(float(each.mean()) if bool((y > 0).all()) else None, error)
    return result

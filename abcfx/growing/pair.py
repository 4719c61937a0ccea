"""A small model and one grown from it, with all that the checks of a growth need, each computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from abcfx.growing.output_gap import tolerance
from abcfx.growing.plan import GrowthPlan, plan_growth
from abcfx.growing.runs import Compared, Runs
from abcfx.pairing.factors import as_deep_as_base
from abcfx.pairing.graphs import Blocks

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """The two models, the batch, and the optimizers of both if they are to be checked."""

    small: nn.Module
    large: nn.Module
    batch: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Loss
    blocks: Blocks
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None

    @contextmanager
    def equally_deep(self) -> Iterator[None]:
        """Within the block the large model has only the blocks that stand for those of the small one."""
        with as_deep_as_base(self.large, self.blocks):
            yield

    @cached_property
    def plan(self) -> GrowthPlan:
        """How the large model should have been filled."""
        with self.equally_deep():
            return plan_growth(self.small, self.large, self.args, self.kwargs)

    @cached_property
    def runs(self) -> Runs:
        """Both models on the batch."""
        with self.equally_deep():
            return Runs(self.plan, self.small, self.large, self.args, self.kwargs)

    @cached_property
    def compared(self) -> list[Compared]:
        """Every tensor of the two runs."""
        return list(self.runs.compared())

    @property
    def tolerance(self) -> float:
        """By the coarsest dtype of the run, and with the square root of depth beyond 32 blocks."""
        deepest = max((len(twins) for twins in self.blocks.index.values()), default=1)
        return tolerance(self.plan.factors) * max(1.0, math.sqrt(deepest / 32))

    def parameters(self) -> dict[str, nn.Parameter]:
        """The large model's, under the names of the plan."""
        with self.equally_deep():
            return dict(self.large.named_parameters())

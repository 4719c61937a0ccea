"""The result of growing a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from abcfx.growing.report import growth_text
from abcfx.growing.steps import GrowthStep
from abcfx.pairing.factors.index_maps import Json
from abcfx.pairing.pair import PairedModels


@dataclass(frozen=True)
class Grown:
    """The result of growing a model: the large model, with what its optimizer needs to go on.

    Attributes:
        module: the large model with weights made from those of the small one; an object of the user's own class.
        param_groups: one group for each parameter, with the learning rate, eps and weight decay that keep the training
            trajectory; empty without an optimizer.
        optimizer_state: state_dict for an optimizer of the same class over `param_groups`; None without an optimizer.
        steps: the passes (widen, deepen, upcycle), each with the difference of the outputs after it.
        rates: parameter -> factor on its learning rate with Adam and its relatives: (large width / small width) ** -c.
        models: the large and the small model, as `grow` captured them: the small one with copies of blocks, so that
            both have the same number of them; None from `upcycle`.
    """

    module: nn.Module
    param_groups: list[dict[str, Any]]
    optimizer_state: dict[str, Any] | None
    steps: tuple[GrowthStep, ...]
    rates: Mapping[str, float] = field(repr=False)
    models: PairedModels | None = field(repr=False, default=None)

    @property
    def plan(self) -> list[dict[str, Json]]:
        """The passes (widen, deepen, upcycle) as JSON-able data.

        For each tensor that was widened: its source, which entries were copied where, and their factor.
        """
        return [{"pass": step.name, **step.data, "difference": step.difference} for step in self.steps]

    @property
    def report(self) -> str:
        """The passes (widen, deepen, upcycle) and the new learning rates, as text."""
        return growth_text(self.module, self.steps, [float(group["lr"]) for group in self.param_groups])

    def __str__(self) -> str:
        return self.report

"""A Lightning module around a transformed model: only `__init__` and `configure_optimizers` mention abcfx.

Where neither `lightning` nor `pytorch_lightning` is installed, the class is a plain `nn.Module` with the same methods.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.examples.gpt import GPT, GPTConfig


def _base_class() -> type[nn.Module]:
    for name in ("lightning", "pytorch_lightning"):
        if find_spec(name) is not None:
            found: type[nn.Module] = import_module(name).LightningModule
            return found
    return nn.Module


if TYPE_CHECKING:
    LightningModule = nn.Module
else:
    LightningModule = _base_class()


class LightningGPT(LightningModule):
    """A GPT that takes over the learning rate tuned at `base_width`; its batches are (ids, next ids), both (B, T)."""

    def __init__(self, width: int = 256, base_width: int = 64, lr: float = 2.0**-7, steps: int = 1000) -> None:
        super().__init__()
        self.steps = steps
        self.model = GPT(GPTConfig(d_model=width))
        base, ids = GPT(GPTConfig(d_model=base_width)), torch.zeros(2, 64, dtype=torch.long)
        # in place: self.model stays a GPT, and checkpoints have its keys
        result = abcfx.transform(self.model, ids, base=base, optimizer="adamw", lr=lr, apply="inplace")
        self.spec = result.spec

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        ids, targets = batch
        return F.cross_entropy(self.model(ids).flatten(0, 1), targets.flatten())

    def configure_optimizers(self) -> dict[str, object]:
        """Make the optimizer with the planned groups, and a schedule that multiplies all rates by one factor."""
        # by the names of the parameters: a strategy may have moved, sharded or compiled the model by now
        optimizer = torch.optim.AdamW(abcfx.param_groups(self.model, self.spec))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

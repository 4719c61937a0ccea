"""Cases of the zoo: models with example inputs and what a capture of each is expected to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """A model with example inputs.

    Attributes:
        name: what the model is.
        build: makes the model.
        args: example positional inputs.
        kwargs: example keyword inputs.
        captured: False for a model that no graph can be right for, which must be refused.
    """

    name: str
    build: Callable[[], nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    captured: bool = True

    def model(self) -> nn.Module:
        """Build the model with weights from a fixed seed."""
        torch.manual_seed(0)
        return self.build()


def ids(*shape: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Draw token ids from a fixed seed."""
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw normal numbers from a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

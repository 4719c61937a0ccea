"""What random models are made of: parts that map (batch, time, width) to the same shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Held = Mapping[str, nn.Module | nn.Parameter | torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """The sizes of one instance of a model.

    Attributes:
        width: entries of a token.
        hidden: entries inside of a part.
        heads: number of attention heads, which divides the width.
    """

    width: int
    hidden: int
    heads: int


@dataclass(frozen=True)
class Part:
    """A kind of part.

    Attributes:
        make: the modules, parameters and buffers of a part, for some sizes.
        run: what a part computes from them and from its input.
    """

    make: Callable[[Sizes], Held]
    run: Callable[[Any, torch.Tensor], torch.Tensor]


class Made(nn.Module):
    """A part of some sizes."""

    def __init__(self, part: Part, sizes: Sizes) -> None:
        super().__init__()
        self.run, self.sizes = part.run, sizes
        for name, held in part.make(sizes).items():
            if isinstance(held, torch.Tensor) and not isinstance(held, nn.Parameter):
                self.register_buffer(name, held)
            else:
                setattr(self, name, held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def linear(into: int, out: int | None = None, bias: bool = True) -> nn.Linear:
    """Build a linear layer, square without `out`."""
    return nn.Linear(into, into if out is None else out, bias=bias)


def matrix(rows: int, columns: int, scale: float | None = None) -> nn.Parameter:
    """Draw a matrix as a bare parameter, with entries of about columns^-1/2 unless a scale is given."""
    return nn.Parameter(torch.randn(rows, columns) * (columns**-0.5 if scale is None else scale))

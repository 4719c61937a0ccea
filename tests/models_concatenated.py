"""Models with layers whose input is a concatenation of a tensor that grows with the width and one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class NeRF(nn.Module):
    """A field of encoded positions, which are read again in the middle, beside features that grow."""

    def __init__(self, width: int, encoded: int = 60) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(encoded, width), nn.Linear(width, width)
        self.skip, self.last = nn.Linear(encoded + width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.second(F.relu(self.first(x))))
        h = F.relu(self.skip(torch.cat([x, h], -1)))
        return self.head(F.relu(self.last(h)))


class DLRM(nn.Module):
    """Dense features that grow, beside the products of pairs of small embeddings, whose number is fixed."""

    def __init__(self, width: int, tables: int = 3, dim: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, dim) for _ in range(tables))
        self.bottom, self.dense = nn.Linear(13, width), nn.Linear(width, width)
        self.pairs = torch.combinations(torch.arange(tables)).T.tolist()
        self.top, self.last = nn.Linear(width + len(self.pairs[0]), width), nn.Linear(width, width)
        self.head = nn.Linear(width, 16)

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.dense(F.relu(self.bottom(dense))))
        e = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        products = torch.bmm(e, e.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        h = F.relu(self.top(torch.cat([h, products], 1)))
        return self.head(F.relu(self.last(h)))


class UNet(nn.Module):
    """A U-Net that gets a class embedding at its bottom, and its input again at its end."""

    def __init__(self, width: int, classes: int = 10, dim: int = 4) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, dim)
        self.into, self.down = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, padding=1)
        self.bottom = nn.Conv2d(2 * width + dim, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join, self.head = nn.Conv2d(2 * width + 3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        a = F.silu(self.into(x))
        b = F.silu(self.down(a))
        e = self.label(label)[:, :, None, None].expand(-1, -1, b.shape[2], b.shape[3])
        b = F.silu(self.up(F.silu(self.bottom(torch.cat([b, e], 1)))))
        return self.head(F.silu(self.join(torch.cat([b, a, x], 1))))


class Case(NamedTuple):
    """A model with example inputs, and the columns of each of its segmented weights with their roles.

    Attributes:
        make: builds the model of a width.
        base: the smallest width.
        args: the inputs.
        targets: what the model is trained to return.
        segments: name of a weight -> (start, stop, role) of its segments at four times the base width.
    """

    make: Callable[[int], nn.Module]
    base: int
    args: tuple[torch.Tensor, ...]
    targets: torch.Tensor
    segments: dict[str, list[tuple[int, int, str]]]


def _case(
    make: Callable[[int], nn.Module],
    base: int,
    args: tuple[torch.Tensor, ...],
    segments: dict[str, list[tuple[int, int, str]]],
) -> Case:
    """Return a case whose targets are random numbers of the shape that the model returns."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        shape = make(base)(*args).shape
    return Case(make, base, args, torch.randn(shape, generator=generator), segments)


def _cases() -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, (8, 3), generator=generator)
    x = torch.randn(6, 3, 4, 4, generator=generator)
    return {
        "nerf": _case(
            NeRF,
            64,
            (torch.randn(8, 60, generator=generator),),
            {"skip.weight": [(0, 60, "embedding"), (60, 316, "hidden")]},
        ),
        "dlrm": _case(
            DLRM,
            64,
            (torch.randn(8, 13, generator=generator), ids),
            {"top.weight": [(0, 256, "hidden"), (256, 259, "embedding")]},
        ),
        "unet": _case(
            UNet,
            16,
            (x, ids[:6, 0]),
            {
                "bottom.weight": [(0, 128, "hidden"), (128, 132, "embedding")],
                "join.weight": [(0, 64, "hidden"), (64, 128, "hidden"), (128, 131, "embedding")],
            },
        ),
    }


CONCATENATED = _cases()

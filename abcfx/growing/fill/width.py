"""Fill a wide model with copies of the entries of a narrow one, from plain data.

A dim of a tensor is described by its factors, row-major: a pair [small, large], or {"segments": [dim, dim, ...]} for
dims one behind another, or {"pad": [small, large]} for a dim whose new entries keep what the large model has there.
Along a factor that grows entry i of the large one is a copy of entry i mod small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from abcfx.pairing.factors.index_maps import Factors, along, averaged, copies, grows, index_map, padded, sizes, tiled

PART = 2**21
"""Entries that are written at a time, so that filling needs little memory beyond both models."""


@dataclass(frozen=True)
class Widening:
    """How one tensor of the large model is made.

    Attributes:
        source: name of the small model's tensor.
        dims: the factors of each dim.
        factor: what every entry is multiplied with, besides: along a contracted dim an entry is multiplied with
            (large / small) / (number of its copies), which is 1 where all have equally many.
        contracted: dims that products sum over.
    """

    source: str
    dims: tuple[Factors, ...]
    factor: float = 1.0
    contracted: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "dims": list(self.dims),
            "factor": self.factor,
            "contracted": list(self.contracted),
        }


def multiplier(widening: Widening) -> torch.Tensor | float:
    """What the copies of the small tensor are multiplied with: a number, or a tensor that broadcasts."""
    found: torch.Tensor | float = widening.factor
    for place in widening.contracted:
        factors = widening.dims[place]
        count = copies(factors)
        if grows(factors) and not bool((count == count[0]).all()):
            small, large = sizes(factors)
            share = (large / small) / count[index_map(factors)].double()
            found = found * along(share, place, len(widening.dims))
    return found


def widened(tensor: torch.Tensor, widening: Widening) -> torch.Tensor:
    """The large tensor."""
    by = multiplier(widening)
    large = tiled(tensor, widening.dims)
    if isinstance(by, torch.Tensor):
        return (large.double() * by.to(large.device)).to(large.dtype)
    return large if by == 1.0 else large * by


def zero_sum_noise(shape: Sequence[int], widening: Widening, std: float, generator: torch.Generator) -> torch.Tensor:
    """Normal noise that adds up to zero over the copies of every input: float64.

    All inputs that are copies are equal, so the noise changes no product, however large it is. Zeros where no
    contracted dim grows.
    """
    place = next((i for i in widening.contracted if grows(widening.dims[i])), None)
    if place is None or not std:
        return torch.zeros(tuple(shape), dtype=torch.float64)
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    only = [widening.dims[i] if i == place else [[size, size]] for i, size in enumerate(shape)]
    noise -= tiled(averaged(noise, only), only)
    small, large = sizes(widening.dims[place])
    return noise.mul_(std / max(1.0 - small / large, 0.1) ** 0.5)


def _parts(target: torch.Tensor, widening: Widening) -> Iterator[tuple[int, int, int]]:
    """(dim, start, length) of parts of a tensor, along a dim that no product sums over, of about `PART` entries."""
    free = [place for place in range(target.ndim) if place not in widening.contracted]
    place = max(free, key=lambda i: target.shape[i], default=-1)
    if place < 0:
        yield -1, 0, 0
        return
    rows = max(1, PART // max(1, target.numel() // target.shape[place]))
    for start in range(0, target.shape[place], rows):
        yield place, start, min(rows, target.shape[place] - start)


def _part(tensor: torch.Tensor, widening: Widening, place: int, start: int, length: int) -> torch.Tensor:
    """A part of the large tensor."""
    if place < 0:
        return widened(tensor, widening)
    rows = index_map(widening.dims[place])[start : start + length].to(tensor.device)
    dims = [*widening.dims[:place], [[length, length]], *widening.dims[place + 1 :]]
    return widened(tensor.index_select(place, rows), replace(widening, dims=tuple(dims)))


def widen(
    large: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    plan: Mapping[str, Widening],
    noise: float = 0.0,
    noised: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write the copies into the large model's parameters and buffers.

    Args:
        large: the model that is filled, in place.
        tensors: the small model's parameters and buffers.
        plan: for names in the large model, how each is made.
        noise: standard deviation of zero-sum noise, relative to the RMS of the weight.
        noised: names that get noise.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    own = dict(large.named_parameters()) | dict(large.named_buffers())
    with torch.no_grad():
        for name, widening in plan.items():
            source, target = tensors[widening.source], own[name]
            old = [padded(factors) for factors in widening.dims]
            for place, count in enumerate(old):
                target = target if count is None else target.narrow(place, 0, count)
            std = noise * _rms(source) * widening.factor if name in noised else 0.0
            for place, start, length in _parts(target, widening):
                grown = _part(source, widening, place, start, length)
                if std:
                    grown = grown + zero_sum_noise(grown.shape, widening, std, generator).to(grown)
                for other, count in enumerate(old):
                    grown = grown if count is None or other == place else grown.narrow(other, 0, count)
                (target if place < 0 else target.narrow(place, start, length)).copy_(grown)


def _rms(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().float())) / math.sqrt(max(1, tensor.numel()))

"""Fills a wide model with copies of the entries of a narrow one, from plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from abcfx.pairing.factors.index_maps import IndexMap, Json, along, averaged, tiled

PART_ENTRIES = 2**21
"""Number of entries that are written at a time, so that filling needs little memory beyond both models."""


@dataclass(frozen=True)
class Widening:
    """A recipe for one tensor of the large model: which entries are copied where, and what they are multiplied by.

    Attributes:
        source: name of the small model's tensor.
        dims: for each dim, which small entry each large entry is a copy of.
        factor: number that all copies are multiplied with. Along a contracted dim each entry is also multiplied with
            (large size / small size) / (number of its copies), which is 1 where all have equally many.
        contracted: indices of the dims that products sum over.
    """

    source: str
    dims: tuple[IndexMap, ...]
    factor: float = 1.0
    contracted: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return the recipe of how a tensor of the large model is filled as plain data."""
        return {
            "source": self.source,
            "dims": [dim.to_json() for dim in self.dims],
            "factor": self.factor,
            "contracted": list(self.contracted),
        }


def multiplier(widening: Widening) -> torch.Tensor | float:
    """Return what the entries that a recipe copies are multiplied with: a number, or a tensor that broadcasts."""
    found: torch.Tensor | float = widening.factor
    for place in widening.contracted:
        dim = widening.dims[place]
        copies = dim.copies()
        if dim.grows and not bool((copies == copies[0]).all()):
            small, large = dim.sizes
            share = (large / small) / copies[dim.indices()].double()
            found = found * along(share, place, len(widening.dims))
    return found


def mean_multiplier(widening: Widening) -> float:
    """Return the mean, over all entries of a tensor, of what the entries that a recipe copies are multiplied with."""
    found = multiplier(widening)
    return float(found.mean()) if isinstance(found, torch.Tensor) else found


def widened(tensor: torch.Tensor, widening: Widening) -> torch.Tensor:
    """Make the large model's tensor from the small one's: repeat entries and multiply them, as the recipe says."""
    by = multiplier(widening)
    large = tiled(tensor, widening.dims)
    if isinstance(by, torch.Tensor):
        return (large.double() * by.to(large.device)).to(large.dtype)
    return large if by == 1.0 else large * by


def zero_sum_noise(shape: Sequence[int], widening: Widening, std: float, generator: torch.Generator) -> torch.Tensor:
    """Draw normal noise that adds up to zero over the copies of every input of a layer.

    Inputs that are copies of one another are equal, so the noise changes no product, however large it is.

    Args:
        shape: shape of the large tensor.
        widening: how the tensor was filled.
        std: standard deviation.
        generator: the source of random numbers.

    Returns:
        Noise in float64; zeros where no contracted dim grows.
    """
    place = next((i for i in widening.contracted if widening.dims[i].grows), None)
    if place is None or not std:
        return torch.zeros(tuple(shape), dtype=torch.float64)
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    only = [widening.dims[i] if i == place else IndexMap.unchanged(size) for i, size in enumerate(shape)]
    noise -= tiled(averaged(noise, only), only)
    small, large = widening.dims[place].sizes
    return noise.mul_(std / max(1.0 - small / large, 0.1) ** 0.5)


def widen(
    large: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    plan: Mapping[str, Widening],
    noise: float = 0.0,
    noised: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write copies of the small model's entries into the large model's parameters and buffers.

    Args:
        large: the model that is filled, in place.
        tensors: the small model's parameters and buffers.
        plan: for each tensor by name, which entries are copied where and what they are multiplied by.
        noise: standard deviation of zero-sum noise, relative to the RMS of the weight.
        noised: names of the tensors that get noise.
        seed: seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    own = dict(large.named_parameters()) | dict(large.named_buffers())
    with torch.no_grad():
        for name, widening in plan.items():
            source, target = tensors[widening.source], own[name]
            old = [dim.old_entries for dim in widening.dims]
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


def _parts(target: torch.Tensor, widening: Widening) -> Iterator[tuple[int, int, int]]:
    """Yield (dim, start, length) of slices of a tensor, so that a large one can be filled piece by piece.

    The dim -1 stands for the whole tensor.

    Args:
        target: the tensor of the large model.
        widening: how it is filled; slices are along a dim that no product sums over.
    """
    free = [place for place in range(target.ndim) if place not in widening.contracted]
    place = max(free, key=lambda i: target.shape[i], default=-1)
    if place < 0:
        yield -1, 0, 0
        return
    rows = max(1, PART_ENTRIES // max(1, target.numel() // target.shape[place]))
    for start in range(0, target.shape[place], rows):
        yield place, start, min(rows, target.shape[place] - start)


def _part(tensor: torch.Tensor, widening: Widening, place: int, start: int, length: int) -> torch.Tensor:
    """Make one slice of the large tensor: entries `start` to `start + length` along the dim `place` (-1 for all).

    Args:
        tensor: the tensor of the small model.
        widening: which of its entries are copied where, and what they are multiplied by.
        place: index of the dim.
        start: first entry.
        length: number of entries.
    """
    if place < 0:
        return widened(tensor, widening)
    rows = widening.dims[place].indices()[start : start + length].to(tensor.device)
    dims = (*widening.dims[:place], IndexMap.unchanged(length), *widening.dims[place + 1 :])
    return widened(tensor.index_select(place, rows), replace(widening, dims=dims))


def _rms(tensor: torch.Tensor) -> float:
    """Return the root mean square of a tensor's entries."""
    return float(torch.linalg.vector_norm(tensor.detach().float())) / math.sqrt(max(1, tensor.numel()))

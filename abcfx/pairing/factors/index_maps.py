"""Index maps of a dim that grows: which entry of the small dim each entry of the large one is a copy of.

A dim of a tensor is described by its factors, row-major: a pair [small, large], or {"segments": [dim, dim, ...]} for
dims one behind another, or {"pad": [small, large]} for a dim whose new entries keep what the large model has there.
Along a factor that grows, entry i of the large dim is a copy of entry i mod small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Factors = Sequence[Any]


def sizes(factors: Factors) -> tuple[int, int]:
    """Number of entries of a dim in the small and in the large model."""
    small = large = 1
    for factor in factors:
        pairs = [factor]
        if isinstance(factor, Mapping):
            pairs = [sizes(each) for each in factor["segments"]] if "segments" in factor else [factor["pad"]]
        small, large = small * sum(pair[0] for pair in pairs), large * sum(pair[1] for pair in pairs)
    return small, large


def index_map(factors: Factors) -> torch.Tensor:
    """For every index of the large dim the index of the small one that it is a copy of: (large,) of int64."""
    found = torch.zeros(1, dtype=torch.int64)
    for factor in factors:
        if isinstance(factor, Mapping) and "pad" in factor:
            small = factor["pad"][0]
            own = torch.arange(factor["pad"][1]).clamp_max(small - 1)
        elif isinstance(factor, Mapping):
            parts, small = [], 0
            for segment in factor["segments"]:
                parts.append(index_map(segment) + small)
                small += sizes(segment)[0]
            own = torch.cat(parts)
        else:
            small = factor[0]
            own = torch.arange(factor[1]) % small
        found = (found[:, None] * small + own[None, :]).reshape(-1)
    return found


def copies(factors: Factors) -> torch.Tensor:
    """For every index of the small dim, how many of the large one are copies of it: (small,) of int64."""
    return torch.bincount(index_map(factors), minlength=sizes(factors)[0])


def grows(factors: Factors) -> bool:
    return any(
        any(map(grows, factor.get("segments", [[[1, 2]]]))) if isinstance(factor, Mapping) else factor[0] != factor[1]
        for factor in factors
    )


def padded(factors: Factors) -> int | None:
    """Number of old entries in front of the new ones, where the dim is padded."""
    pads = [factor["pad"][0] for factor in factors if isinstance(factor, Mapping) and "pad" in factor]
    return pads[0] if pads else None


def tiled(tensor: torch.Tensor, dims: Sequence[Factors]) -> torch.Tensor:
    """The tensor with its entries repeated along the dims that grow."""
    for place, factors in enumerate(dims):
        if grows(factors):
            tensor = tensor.index_select(place, index_map(factors).to(tensor.device))
    return tensor


def averaged(tensor: torch.Tensor, dims: Sequence[Factors]) -> torch.Tensor:
    """The mean over the copies of each entry: the inverse of `tiled`."""
    for place, factors in enumerate(dims):
        if grows(factors):
            index, count = index_map(factors).to(tensor.device), copies(factors).to(tensor.device)
            shape = list(tensor.shape)
            shape[place] = sizes(factors)[0]
            summed = tensor.new_zeros(shape).index_add_(place, index, tensor)
            tensor = summed / along(count.to(tensor.dtype), place, tensor.ndim)
    return tensor


def along(vector: torch.Tensor, place: int, ndim: int) -> torch.Tensor:
    return vector.view([-1 if i == place else 1 for i in range(ndim)])

"""Index maps: for a dim that grows, which entry of the small dim each entry of the large one is a copy of.

A dim is a row-major product of factors. A factor repeats its entries (`Tiling`), consists of smaller dims one behind
another (`Segments`), or keeps its old entries in front of new ones (`Padding`). Everything here is plain, frozen data
with a JSON form; `Tiling(4, 8)` is `[4, 8]` there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

Json: TypeAlias = "int | float | str | Sequence[Json] | Mapping[str, Json]"


@dataclass(frozen=True)
class Tiling:
    """A factor of a dim whose entries are repeated: entry i of the large factor is a copy of entry i mod `small`.

    Attributes:
        small: number of entries in the small model.
        large: number of entries in the large model.
    """

    small: int
    large: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of entries of this factor of a dim in the small and in the large model."""
        return self.small, self.large

    @property
    def grows(self) -> bool:
        """Whether this factor of a dim has different sizes in the two models."""
        return self.small != self.large

    def indices(self) -> torch.Tensor:
        """Return, for each index of the factor in the large model, the small model's index whose entry is copied there.

        The tensor is (large,) of int64.
        """
        return torch.arange(self.large) % self.small

    def to_json(self) -> Json:
        """Return the JSON form of this factor of a dim, `[small, large]`."""
        return [self.small, self.large]


@dataclass(frozen=True)
class Padding:
    """A factor of a dim whose first `small` entries are the small model's; the others are the large model's own.

    Attributes:
        small: number of entries in the small model.
        large: number of entries in the large model.
    """

    small: int
    large: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of entries of this factor of a dim in the small and in the large model."""
        return self.small, self.large

    @property
    def grows(self) -> bool:
        """Whether this factor of a dim has different sizes in the two models: always, for a padded one."""
        return True

    def indices(self) -> torch.Tensor:
        """Return, for each index of the factor in the large model, the small model's index that belongs to it.

        The tensor is (large,) of int64. New entries, of which the small model has none, point at its last one.
        """
        return torch.arange(self.large).clamp_max(self.small - 1)

    def to_json(self) -> Json:
        """Return the JSON form of this factor of a dim, `{"pad": [small, large]}`."""
        return {"pad": [self.small, self.large]}


@dataclass(frozen=True)
class Segments:
    """A factor of a dim that consists of dims one behind another, as the rows of a fused query, key and value layer.

    Attributes:
        parts: how each of these dims grows.
    """

    parts: tuple[IndexMap, ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of entries of this factor of a dim, all dims in it together, in the small and in the large model."""
        of_parts = [part.sizes for part in self.parts]
        return sum(small for small, _ in of_parts), sum(large for _, large in of_parts)

    @property
    def grows(self) -> bool:
        """Whether some of the dims that make up this factor has different sizes in the two models."""
        return any(part.grows for part in self.parts)

    def indices(self) -> torch.Tensor:
        """Return, for each index of the factor in the large model, the small model's index whose entry is copied there.

        The tensor is (large,) of int64.
        """
        found, start = [], 0
        for part in self.parts:
            found.append(part.indices() + start)
            start += part.sizes[0]
        return torch.cat(found)

    def to_json(self) -> Json:
        """Return the JSON form of this factor of a dim, `{"segments": [...]}` with that of each dim in it."""
        return {"segments": [part.to_json() for part in self.parts]}


Factor = Tiling | Padding | Segments


@dataclass(frozen=True)
class IndexMap:
    """A dim as a row-major product of factors: says which small model's entry each large model's entry copies.

    Attributes:
        factors: the factors.

    >>> IndexMap((Tiling(2, 4),)).indices().tolist()
    [0, 1, 0, 1]
    >>> IndexMap((Tiling(1, 2), Tiling(2, 2))).indices().tolist()  # two heads for one, two entries each
    [0, 1, 0, 1]
    >>> IndexMap((Segments((IndexMap.tiling(1, 2), IndexMap.tiling(1, 1))),)).indices().tolist()
    [0, 0, 1]
    """

    factors: tuple[Factor, ...]

    @classmethod
    def tiling(cls, small: int, large: int) -> IndexMap:
        """Return the IndexMap of a dim whose entries are repeated as a whole: 0 1 0 1 for 0 1."""
        return cls((Tiling(small, large),))

    @classmethod
    def unchanged(cls, size: int) -> IndexMap:
        """Return the IndexMap of a dim of one size in small and large model: every entry stands for itself."""
        return cls.tiling(size, size)

    @classmethod
    def from_json(cls, data: Sequence[Json]) -> IndexMap:
        """Return the IndexMap (which small entry each entry of a larger dim copies) whose JSON form is `data`."""
        return cls(tuple(map(_factor_from_json, data)))

    def to_json(self) -> list[Json]:
        """Return the dim as JSON: each factor `[small, large]`, `{"segments": [...]}` or `{"pad": [small, large]}`."""
        return [factor.to_json() for factor in self.factors]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of entries of the dim in the small and in the large model."""
        of_factors = [factor.sizes for factor in self.factors]
        return math.prod(small for small, _ in of_factors), math.prod(large for _, large in of_factors)

    @property
    def grows(self) -> bool:
        """Whether some factor of the dim (such as heads, of heads x head_dim) has different sizes in the two models."""
        return any(factor.grows for factor in self.factors)

    @property
    def old_entries(self) -> int | None:
        """Number of entries from the small model, in front of new ones; None unless new entries pad the dim."""
        return next((factor.small for factor in self.factors if isinstance(factor, Padding)), None)

    @property
    def repeats(self) -> bool:
        """Whether the dim grows by copies of its entries, not by new ones."""
        return self.grows and self.old_entries is None

    def indices(self) -> torch.Tensor:
        """Return, for each index of the dim in the large model, the small model's index whose entry is copied there.

        The tensor is (large,) of int64.
        """
        found = torch.zeros(1, dtype=torch.int64)
        for factor in self.factors:
            found = (found[:, None] * factor.sizes[0] + factor.indices()[None, :]).reshape(-1)
        return found

    def copies(self) -> torch.Tensor:
        """Return for each index of the dim in the small model in how many places of the large one its entry is copied.

        The tensor is (small,) of int64.
        """
        return torch.bincount(self.indices(), minlength=self.sizes[0])


def _factor_from_json(data: Json) -> Factor:
    """Return the factor of a dim, with its sizes in two models, whose JSON form is `data`."""
    if not isinstance(data, Mapping):
        return Tiling(*_pair_from_json(data))
    if "pad" in data:
        return Padding(*_pair_from_json(data["pad"]))
    return Segments(tuple(IndexMap.from_json(_sequence(part)) for part in _sequence(data["segments"])))


def _pair_from_json(data: Json) -> tuple[int, int]:
    """Return the pair (size in the small model, size in the large one) from its JSON form."""
    small, large = _sequence(data)
    assert isinstance(small, int) and isinstance(large, int)
    return small, large


def _sequence(data: Json) -> Sequence[Json]:
    """Return JSON data that is a list, typed as one."""
    assert isinstance(data, Sequence) and not isinstance(data, str)
    return data


def tiled(tensor: torch.Tensor, dims: Sequence[IndexMap]) -> torch.Tensor:
    """Repeat the entries of a small tensor along the dims that grow, and return the large tensor.

    Args:
        tensor: a tensor of the small model.
        dims: for each dim of the tensor, which small entry each large entry is a copy of.
    """
    for place, dim in enumerate(dims):
        if dim.grows:
            tensor = tensor.index_select(place, dim.indices().to(tensor.device))
    return tensor


def averaged(tensor: torch.Tensor, dims: Sequence[IndexMap]) -> torch.Tensor:
    """Return a small tensor whose entries are the means of their copies in a large tensor.

    It is the inverse of `tiled`, which repeats entries.

    Args:
        tensor: a tensor of the large model.
        dims: for each dim of the tensor, which small entry each large entry is a copy of.
    """
    for place, dim in enumerate(dims):
        if dim.grows:
            indices, copies = dim.indices().to(tensor.device), dim.copies().to(tensor.device)
            shape = list(tensor.shape)
            shape[place] = dim.sizes[0]
            summed = tensor.new_zeros(shape).index_add_(place, indices, tensor)
            tensor = summed / along(copies.to(tensor.dtype), place, tensor.ndim)
    return tensor


def along(vector: torch.Tensor, place: int, ndim: int) -> torch.Tensor:
    """Return a vector as a tensor of `ndim` dims, all of size 1 but the dim at `place`, for broadcasting."""
    return vector.view([-1 if i == place else 1 for i in range(ndim)])

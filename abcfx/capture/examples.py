"""Example inputs as a capture needs them: in canonical form and with a batch that is not mistaken for a constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from abcfx.support import trees

# Sizes 0 and 1 are special to torch.export and 2 is a common constant in models; 3 is neither.
MIN_BATCH = 3


def canonical(args: Any, kwargs: dict[str, Any] | None) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
    """A bare tensor counts as one argument, a list as a tuple; no inputs at all stays None."""
    if args is None and not kwargs:
        return None, None
    if args is None:
        return (), dict(kwargs or {})
    return (tuple(args) if isinstance(args, (tuple, list)) else (args,)), dict(kwargs or {})


def tiled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs with a batch of 1 or 2 (the first tensor's first dim) repeated to 3, in every tensor that has it."""
    tensors = [tensor for tensor in trees.tensors((args, kwargs)) if tensor.dim() > 0]
    if not tensors or tensors[0].shape[0] not in range(1, MIN_BATCH):
        return args, kwargs
    batch = tensors[0].shape[0]

    def tile(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != batch:
            return tensor
        return torch.cat([tensor] * MIN_BATCH)[:MIN_BATCH].detach()

    return trees.map_tensors(tile, (args, kwargs))


def free_dims(tensors: Mapping[str, torch.Tensor], *, sizes: str = "free") -> dict[str, frozenset[int]]:
    """Which dims of each input may have other sizes later; the others are fixed, with a guard.

    All dims of sequences are free. Of floating-point tensors with four dims or more (images) only the batch and
    dims as long as a sequence are: algebra over free heights and widths takes torch minutes for windowed attention.

    Args:
        sizes: "free" for that; "batch": only the first dim; "fixed": none, which takes torch least time.
    """
    if sizes == "fixed":
        return dict.fromkeys(tensors, frozenset())
    if sizes == "batch":
        return {name: frozenset(range(min(tensor.dim(), 1))) for name, tensor in tensors.items()}
    sequences = [tensor for tensor in tensors.values() if not _is_image(tensor)]
    lengths = {size for tensor in sequences for size in tensor.shape[1:2]}
    return {
        name: frozenset(
            dim
            for dim, size in enumerate(tensor.shape)
            if dim == 0 or not _is_image(tensor) or (size in lengths and dim >= 2)
        )
        for name, tensor in tensors.items()
    }


def _is_image(tensor: torch.Tensor) -> bool:
    return tensor.dim() >= 4 and tensor.is_floating_point()

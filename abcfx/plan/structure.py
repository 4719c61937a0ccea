"""Finds what in the entries of a tensor is structure: shared values, means of its parts, order, orthogonal rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

BLOCK = 32, 256  # rows and columns in which order is looked for
SHARED = 1 / 64  # share of zeros, or of equal neighbours, from which a tensor is taken to hold constants
SORTED = 1 << 20  # entries, of more of which zero is the only shared value that is looked for
SIGMAS = 4.0  # sampling errors beyond which a mean is no accident
CLEAR = 5.0  # sampling errors beyond which a correlation is none: several are looked at in each tensor
CORRELATED = 0.1  # correlation of neighbours, below which entries count as drawn one by one
PART = 16  # entries of a part of a vector, of fewer of which no mean is taken
PRECISION = 1e-3  # of products of orthogonal rows


def shared_entries(values: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Find the entries of a tensor that are not random since they are zero or equal to many others.

    Args:
        values: a tensor that is not constant.

    Returns:
        A mask of these entries, which broadcasts to the tensor, or None if there are none; and, for further tests, the
        first rows that are not all zero, as a float64 matrix.
    """
    rows = values.flatten(1) if values.ndim > 1 else values.reshape(1, -1)
    empty = (rows[:, :1] == 0).flatten()
    if bool(empty.any()):
        empty = empty & (rows == 0).all(1)
    is_padded = bool(empty.any())
    width = BLOCK[1] if values.ndim > 1 else BLOCK[0] * BLOCK[1]
    block = (rows[~empty] if is_padded else rows)[: BLOCK[0], :width].double()
    same = (block == 0).double().mean() + (block.diff() == 0).sum() / block.numel()
    if float(same) >= SHARED:
        return _shared(values), block
    return empty.reshape(-1, *([1] * (values.ndim - 1))) if is_padded else None, block


def _shared(values: torch.Tensor) -> torch.Tensor:
    """Return a mask of the entries whose value is zero or that of many others."""
    if values.numel() > SORTED:
        return values == 0
    found, where, counts = values.unique(return_inverse=True, return_counts=True)
    is_structure: torch.Tensor = ((counts >= max(2.0, SHARED * values.numel())) | (found == 0))[where]
    return is_structure


def centres(values: torch.Tensor, block: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield tensors around which random entries may scatter: a diagonal, means of slices, means of a vector's parts.

    Args:
        values: a tensor without shared entries.
        block: some of its rows.
    """
    if values.ndim == 2 and len(block) >= 4 and block.shape[1] >= 4:
        diagonal = block.diagonal()
        others = (block.square().sum() - diagonal.square().sum()) / (block.numel() - len(diagonal))
        if float(diagonal.mean().abs()) > 1.5 * SIGMAS * math.sqrt(float(others) / len(diagonal)):
            yield torch.eye(*values.shape, dtype=values.dtype, device=values.device) * values.diagonal().mean()
    if not is_ordered(block):
        return
    if values.ndim > 1 and values[0].numel() >= PART:
        yield values.mean(tuple(range(1, values.ndim)), keepdim=True)
    for parts in (2, 3, 4) if values.ndim == 1 else ():
        if len(values) % parts == 0 and len(values) >= parts * PART:
            yield values.unflatten(0, (parts, -1)).mean(1).repeat_interleave(len(values) // parts)


def is_ordered(block: torch.Tensor) -> bool:
    """Whether a matrix of entries is no random draw: equal, rising or falling all along, or like their neighbours."""
    steps = block.flatten().diff()
    if bool((steps >= 0).all()) or bool((steps <= 0).all()):
        return True
    centred = block - block.mean()
    total = float(centred.square().mean())
    for dim in (0, 1):
        if (size := block.shape[dim]) > 1:
            pairs = centred.narrow(dim, 0, size - 1) * centred.narrow(dim, 1, size - 1)
            if abs(float(pairs.mean())) > max(CLEAR / math.sqrt(pairs.numel()), CORRELATED) * total:
                return True
    return False


def orthogonal_blocks(values: torch.Tensor) -> int:
    """Return the number of blocks of rows of a tensor that are orthogonal: 1 for a whole matrix, 0 for none."""
    if values.ndim < 2:
        return 0
    rows = values.flatten(1)
    height, width = rows.shape
    if height > width and height % width == 0 and _is_orthogonal(rows[:width]):
        return height // width
    if _is_orthogonal(rows):
        return 1
    return height if values.ndim == 3 and _is_orthogonal(values[0]) else 0


def _is_orthogonal(rows: torch.Tensor) -> bool:
    """Whether a sample of rows, or of columns where there are fewer of them, is orthogonal and of one length."""
    some = (rows[:8] if len(rows) <= rows.shape[1] else rows[:, :8].T).double()
    if len(some) < 2:
        return False
    gram = some @ some.T
    length = float(gram.diagonal().mean())
    same = torch.eye(len(some), dtype=gram.dtype, device=gram.device) * length
    return float((gram - same).abs().max()) < PRECISION * length

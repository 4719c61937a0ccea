"""Cuts a batch down to the probe of the coordinate check: a part with few distinct tokens, or a few samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from abcfx.support import trees

SEQUENCES, TOKENS = 2, 8  # 16 positions: no more than 16 distinct tokens
ROWS, SAMPLES = 8, 4  # of a batch without sequences: rows of features; images and the like
Batch = TypeVar("Batch")


def few_tokens(batch: Batch, runs: Callable[[Batch], object]) -> Batch:
    """Return a part of the batch with few distinct tokens: short pieces of two sequences, or a few samples.

    With many tokens the updates of a narrow layer are spread over more directions than it has, and align less than
    those of a wide layer.

    Args:
        batch: as the model is called.
        runs: called with a part; raises if the model cannot take it.

    Raises:
        Whatever `runs` raises for the whole batch, if no part will do.
    """
    for part in (_short(batch), _first(batch, SEQUENCES if _token_ids(batch) is not None else SAMPLES)):
        if part is not None:
            try:
                runs(part)
                return part
            except Exception:  # user's forward or loss: a built-in length or batch size may raise anything
                continue
    runs(batch)
    return batch


def _token_ids(batch: object) -> torch.Tensor | None:
    """Return the first tensor of the batch that may hold token ids (batch, tokens)."""
    return next((t for t in trees.tensors(batch) if t.ndim == 2 and not t.is_floating_point()), None)


def _short(batch: Batch) -> Batch | None:
    """Return the first tokens of the first sequences, or the first rows of features; None for images and the like."""
    ids = _token_ids(batch)
    if ids is None:
        return _first(batch, ROWS) if all(t.ndim <= 2 for t in trees.tensors(batch)) else None
    count, length = ids.shape

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        is_ids = tensor.ndim == 2 and not tensor.is_floating_point()
        has_tokens = tensor.ndim >= 2 and (tensor.shape[1] == length or is_ids)
        part = tensor[:SEQUENCES] if tensor.ndim and tensor.shape[0] == count else tensor
        return part[:, :TOKENS].contiguous() if has_tokens else part

    return trees.map_tensors(cut, batch)


def _first(batch: Batch, count: int) -> Batch:
    """Return the first samples of every tensor that has as many of them as the first tensor."""
    size = next((t.shape[0] for t in trees.tensors(batch) if t.ndim), 0)
    return trees.map_tensors(lambda t: t[:count] if t.ndim and t.shape[0] == size else t, batch)

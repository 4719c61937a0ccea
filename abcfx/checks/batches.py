"""Cuts a batch down to a small one for a check that trains a model briefly: few distinct tokens, or a few samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from abcfx.support import trees

SEQUENCES, TOKENS = 2, 8  # 16 positions: no more than 16 distinct tokens
ROWS, SAMPLES = 8, 4  # of a batch without sequences: rows of features; images and the like
Batch = TypeVar("Batch")


def few_tokens(batch: Batch, runs: Callable[[Batch], object]) -> Batch:
    """Return a small part of a batch that the model can still run on: 2 sequences cut to 8 tokens, or a few samples.

    A check compares the updates of narrow and wide layers. With many tokens, a narrow layer's update is spread over
    more directions than the layer has, and lines up less with its inputs than that of a wide layer.

    Args:
        batch: `(inputs, targets)`, a dict, or inputs alone; tensors of token ids are cut along their second dim.
        runs: called with each smaller part in turn; it raises any exception if the model or the loss cannot take the
            part.

    Returns:
        The first part that `runs` accepts, with the nesting of `batch`; the whole batch if none is accepted.

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
    """Return the first tensor of a batch that may hold token ids: (batch, tokens), no floats. None without one."""
    return next((t for t in trees.tensors(batch) if t.ndim == 2 and not t.is_floating_point()), None)


def _short(batch: Batch) -> Batch | None:
    """Return a batch cut to 2 sequences of 8 tokens, or to 8 rows of features where no tensor holds token ids.

    Returns:
        The cut batch; None if there are no token ids and some tensor has more than two dims, as images have.
    """
    ids = _token_ids(batch)
    if ids is None:
        return _first(batch, ROWS) if all(t.ndim <= 2 for t in trees.tensors(batch)) else None
    count, length = ids.shape

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        """Cut one tensor of the batch: at most 2 samples, and 8 tokens where its second dim runs along the sequence."""
        is_ids = tensor.ndim == 2 and not tensor.is_floating_point()
        has_tokens = tensor.ndim >= 2 and (tensor.shape[1] == length or is_ids)
        part = tensor[:SEQUENCES] if tensor.ndim and tensor.shape[0] == count else tensor
        return part[:, :TOKENS].contiguous() if has_tokens else part

    return trees.map_tensors(cut, batch)


def _first(batch: Batch, count: int) -> Batch:
    """Return a batch cut to its first `count` samples: every tensor whose first dim is as long as the first tensor's.

    Other tensors, and values that are no tensors, stay as they are.
    """
    size = next((t.shape[0] for t in trees.tensors(batch) if t.ndim), 0)
    return trees.map_tensors(lambda t: t[:count] if t.ndim and t.shape[0] == size else t, batch)

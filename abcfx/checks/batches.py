"""What a check runs a model on: how a batch is passed, its loss, and a part of it with few distinct tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from abcfx.support import trees

SEQUENCES, TOKENS = 2, 8  # 16 positions: no more than 16 distinct tokens
ROWS, SAMPLES = 8, 4  # of a batch without sequences: rows of features; images and the like


def few_tokens(batch: Any, runs: Callable[[Any], object]) -> Any:
    """A part of the batch with few distinct tokens: short pieces of two sequences, or a few samples.

    With many of them the updates of narrow layers are spread over more directions than they have, and align less than
    those of wide ones.

    Args:
        batch: as the model is called.
        runs: called with a part; raises where the model cannot take it.

    Raises:
        Whatever `runs` raises for the whole batch, if no part will do.
    """
    for part in (_short(batch), _first(batch, SEQUENCES if _sequences(batch) is not None else SAMPLES)):
        if part is not None:
            try:
                runs(part)
                return part
            except Exception:  # a length or a number of samples that is built in
                continue
    runs(batch)
    return batch


def _sequences(batch: Any) -> torch.Tensor | None:
    """The first tensor of token ids."""
    return next((t for t in trees.tensors(batch) if t.ndim == 2 and not t.is_floating_point()), None)


def _short(batch: Any) -> Any:
    ids = _sequences(batch)
    if ids is None:
        return _first(batch, ROWS) if all(t.ndim <= 2 for t in trees.tensors(batch)) else None
    count, length = ids.shape

    def cut(t: torch.Tensor) -> torch.Tensor:
        along = t.ndim >= 2 and (t.shape[1] == length or (t.ndim == 2 and not t.is_floating_point()))
        part = t[:SEQUENCES] if t.ndim and t.shape[0] == count else t
        return part[:, :TOKENS].contiguous() if along else part

    return trees.map_tensors(cut, batch)


def _first(batch: Any, count: int) -> Any:
    tensors = trees.tensors(batch)
    size = next((t.shape[0] for t in tensors if t.ndim), 0)
    return trees.map_tensors(lambda t: t[:count] if t.ndim and t.shape[0] == size else t, batch)

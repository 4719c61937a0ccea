"""What a check runs a model on: how a batch is passed, its loss, and a part of it with few distinct tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.support import trees

Loss = Callable[[Any, Any], torch.Tensor]

LABELS = ("labels", "label", "targets", "target")
SEQUENCES, TOKENS = 2, 8  # 16 positions: no more than 16 distinct tokens
ROWS, SAMPLES = 8, 4  # of a batch without sequences: rows of features; images and the like


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed; the generators go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def call_of(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of the model's forward.

    A tuple or list is (inputs, targets), and inputs are then read in the same way; a dict is keyword arguments, without
    labels that the forward does not take; a tuple of inputs is positional arguments; anything else is the only one.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(inputs, Mapping):
        taken = inspect.signature(model.forward).parameters
        takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        return (), {key: v for key, v in inputs.items() if key in taken or takes_all or key not in LABELS}
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def default_loss(output: Any, batch: Any) -> torch.Tensor:
    """The model's own loss where it returns one (Hugging Face, called with labels); else the mean cross entropy.

    Targets are the second entry of a tuple or the labels of a dict; without them, the next token of each position.

    Raises:
        InvalidInputError: there are no logits, or no targets that fit them.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor) and own.ndim == 0:
        return own
    logits = _logits(output)
    targets = _targets(batch)
    if targets is None:
        ids = _ids(batch, logits)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().to(logits.device))
    targets = targets.to(logits.device)
    if not targets.is_floating_point() and logits.shape[:-1] == targets.shape:
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
    if not targets.is_floating_point() and (logits.shape[0], *logits.shape[2:]) == tuple(targets.shape):
        return F.cross_entropy(logits.float(), targets)
    raise InvalidInputError(
        f"loss: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype} do not fit cross "
        f"entropy.\n  To fix: pass loss=lambda output, batch: ..., a scalar tensor."
    )


def _logits(output: Any) -> torch.Tensor:
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = output if named is None else named
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, torch.Tensor) and found.ndim >= 2:
        return found
    raise InvalidInputError(
        f"loss: expected logits (batch, ..., classes) out of the model, got {type(output).__name__}.\n"
        f"  To fix: pass loss=lambda output, batch: ..., a scalar tensor."
    )


def _targets(batch: Any) -> torch.Tensor | None:
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABELS if key in batch), None)
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1] if isinstance(batch[1], torch.Tensor) else _targets(batch[1])
    return None


def _ids(batch: Any, logits: torch.Tensor) -> torch.Tensor:
    """The token ids that the logits are of."""
    found = [t for t in tensors_of(batch) if not t.is_floating_point() and t.shape == logits.shape[:-1] and t.ndim == 2]
    if not found or found[-1].shape[1] < 2:
        shapes = [tuple(t.shape) for t in tensors_of(batch)]
        raise InvalidInputError(
            f"loss: the batch has neither targets nor token ids (batch, tokens) that fit logits {tuple(logits.shape)}; "
            f"got {shapes}.\n  To fix: batch=(inputs, targets), or pass loss=lambda output, batch: ..."
        )
    return found[-1]


def tensors_of(batch: Any) -> list[torch.Tensor]:
    return trees.tensors(batch)


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
    return next((t for t in tensors_of(batch) if t.ndim == 2 and not t.is_floating_point()), None)


def _short(batch: Any) -> Any:
    ids = _sequences(batch)
    if ids is None:
        return _first(batch, ROWS) if all(t.ndim <= 2 for t in tensors_of(batch)) else None
    count, length = ids.shape

    def cut(t: torch.Tensor) -> torch.Tensor:
        along = t.ndim >= 2 and (t.shape[1] == length or (t.ndim == 2 and not t.is_floating_point()))
        part = t[:SEQUENCES] if t.ndim and t.shape[0] == count else t
        return part[:, :TOKENS].contiguous() if along else part

    return trees.map_tensors(cut, batch)


def _first(batch: Any, count: int) -> Any:
    tensors = tensors_of(batch)
    size = next((t.shape[0] for t in tensors if t.ndim), 0)
    return trees.map_tensors(lambda t: t[:count] if t.ndim and t.shape[0] == size else t, batch)

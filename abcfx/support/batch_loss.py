"""The loss of a model's output on a batch, where the user gives none: the model's own, or cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from abcfx.errors import InvalidInputError
from abcfx.support import trees
from abcfx.support.running import LABELS

Loss = Callable[..., torch.Tensor]
"""A function of (output, batch) that returns a scalar tensor."""


def default_loss(output: object, batch: object) -> torch.Tensor:
    """Return the loss of a model's output on a batch, as a scalar tensor.

    It is the model's own loss if it returns one (Hugging Face, called with labels), else the mean cross entropy.
    Targets are the second entry of a tuple or the labels of a dict; without them, the next token of each position.

    Args:
        output: whatever the model returned.
        batch: the batch it was called with: (inputs, targets), a dict, or inputs alone.

    Raises:
        InvalidInputError: there are no logits, or no targets that fit them.
    """
    own = _entry(output, "loss")
    if isinstance(own, torch.Tensor) and own.ndim == 0:
        return own
    logits = _logits(output)
    targets = _targets(batch)
    if targets is None:
        ids = _token_ids(batch, logits)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().to(logits.device))
    targets = targets.to(logits.device)
    if not targets.is_floating_point() and logits.shape[:-1] == targets.shape:
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
    if not targets.is_floating_point() and (logits.shape[0], *logits.shape[2:]) == tuple(targets.shape):
        return F.cross_entropy(logits.float(), targets)
    raise InvalidInputError(
        f"loss: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype} do not fit cross "
        f"entropy.\n  To fix: pass loss=lambda output, batch: ..., which returns a scalar tensor."
    )


def _entry(output: object, name: str) -> object:
    """Return the entry of a dict, or the attribute of an object, with this name; None if there is none."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _logits(output: object) -> torch.Tensor:
    """Return the logits of a model's output: what it calls "logits", else its first tensor.

    Raises:
        InvalidInputError: there is no tensor of at least two dims there.
    """
    named = _entry(output, "logits")
    found = output if named is None else named
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, torch.Tensor) and found.ndim >= 2:
        return found
    raise InvalidInputError(
        f"loss: expected logits (batch, ..., classes) from the model, got {type(output).__name__}.\n"
        f"  To fix: pass loss=lambda output, batch: ..., which returns a scalar tensor."
    )


def _targets(batch: object) -> torch.Tensor | None:
    """Return the targets of a batch: its labels if it is a dict, else its second entry; None if it has none."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABELS if key in batch), None)
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1] if isinstance(batch[1], torch.Tensor) else _targets(batch[1])
    return None


def _token_ids(batch: object, logits: torch.Tensor) -> torch.Tensor:
    """Return the token ids of a batch, one for each position of the logits, for a loss on the next token.

    Raises:
        InvalidInputError: no tensor of the batch has that shape.
    """
    tensors = trees.tensors(batch)
    found = [t for t in tensors if not t.is_floating_point() and t.shape == logits.shape[:-1] and t.ndim == 2]
    if not found or found[-1].shape[1] < 2:
        shapes = [tuple(t.shape) for t in tensors]
        raise InvalidInputError(
            f"loss: the batch has neither targets nor token ids (batch, tokens) that fit logits {tuple(logits.shape)}; "
            f"got {shapes}.\n  To fix: batch=(inputs, targets), or pass loss=lambda output, batch: ..."
        )
    return found[-1]

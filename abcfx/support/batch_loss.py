"""The loss of a model's output on a batch, where the user gives none: the model's own, or cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from abcfx.errors import AbcfxError, InvalidInputError
from abcfx.support import trees
from abcfx.support.arguments import wrong
from abcfx.support.running import LABELS

_FIX = "loss=lambda output, batch: torch.nn.functional.mse_loss(output, batch[1])"
Loss = Callable[..., torch.Tensor]
"""A function of (output, batch) that returns a scalar tensor; or a loss of torch, which takes (output, targets)."""


def default_loss(output: object, batch: object, outputs: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """Return the loss of a model's output on a batch, as a scalar tensor.

    It is the model's own loss if it returns one (Hugging Face, called with labels), else the mean cross entropy.
    Targets are the second entry of a tuple or the labels of a dict; without them, the next token of each position.

    Args:
        output: whatever the model returned.
        batch: the batch it was called with: (inputs, targets), a dict, or inputs alone.
        outputs: those tensors of the output that are logits, or may be; the first that fits the targets is taken. A
            single scalar is the loss. Without them: what the output calls "logits", else all its tensors.

    Raises:
        InvalidInputError: there are no logits, or no targets that fit them.
    """
    own = _own_loss(output, outputs)
    if own is not None:
        return own
    candidates = [tensor for tensor in outputs or _tensors(output) if tensor.ndim >= 2 and tensor.is_floating_point()]
    if not candidates:
        raise InvalidInputError(
            f"loss: expected logits (batch, ..., classes) from the model, got {type(output).__name__}.\n"
            f"  To fix: pass loss=lambda output, batch: ..., which returns a scalar tensor."
        )
    for logits in candidates[:-1]:
        try:
            classes, targets = _aligned(logits, batch)
        except InvalidInputError:
            continue
        if int(targets.max()) < classes.shape[1]:
            return F.cross_entropy(classes, targets)
    classes, targets = _aligned(candidates[-1], batch)
    try:
        return F.cross_entropy(classes, targets)
    except (IndexError, RuntimeError) as error:
        raise InvalidInputError(
            f"loss: cross entropy of logits {tuple(classes.shape)} and targets {tuple(targets.shape)} from "
            f"{int(targets.min())} to {int(targets.max())} cannot be computed: {error}\n"
            f"  expected: targets from 0 to {classes.shape[1] - 1}.\n"
            f"  To fix: build the model with as many classes, or pass loss=lambda output, batch: ..."
        ) from error


def _own_loss(output: object, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the loss that a model itself returned: a scalar called "loss", or first in a tuple, or the only output.

    Args:
        output: whatever the model returned.
        outputs: those tensors of the output that the loss is made of, if they are known.
    """
    first = output[0] if isinstance(output, tuple | list) and len(output) > 1 else None
    sole = outputs[0] if len(outputs) == 1 else None
    for each in (_entry(output, "loss"), first, sole):
        if isinstance(each, torch.Tensor) and each.ndim == 0 and each.is_floating_point():
            return each
    return None


def _aligned(logits: torch.Tensor, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets as cross entropy takes them: (..., classes, ...) and the index of a class for each.

    Args:
        logits: the logits (batch, ..., classes), or of images (batch, classes, height, width).
        batch: the batch, with targets, or with token ids whose successors are the targets.

    Raises:
        InvalidInputError: the batch has no targets that fit.
    """
    targets = _targets(batch)
    if targets is None:
        ids = _token_ids(batch, logits)
        return logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().to(logits.device)
    targets = targets.to(logits.device)
    if not targets.is_floating_point() and logits.shape[:-1] == targets.shape:
        return logits.flatten(0, -2).float(), targets.flatten()
    if not targets.is_floating_point() and (logits.shape[0], *logits.shape[2:]) == tuple(targets.shape):
        return logits.float(), targets
    raise InvalidInputError(
        f"loss: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype} do not fit cross "
        f"entropy.\n  To fix: pass loss=lambda output, batch: ..., which returns a scalar tensor."
    )


@dataclass(frozen=True)
class _ScalarLoss:
    """A user's loss whose result is checked: one number in a tensor, which depends on the model.

    Attributes:
        function: the user's function of (output, batch), or a loss of torch, which takes (output, targets).
    """

    function: Loss

    def __call__(self, output: object, batch: object) -> torch.Tensor:
        """Return the loss of a model's output on a batch.

        Raises:
            InvalidInputError: the function raises, or returns something else than one number that depends on the model.
        """
        takes_targets = _takes_targets(self.function)
        second = _targets(batch) if takes_targets else batch
        if second is None:
            raise InvalidInputError(
                f"loss: {_name(self.function)} takes (output, targets), and the batch has no targets.\n"
                f"  To fix: batch=(inputs, targets), or {_FIX}"
            )
        try:
            found: object = self.function(output, second)
        except AbcfxError:
            raise
        except Exception as error:  # the user's loss may raise anything
            raise InvalidInputError(
                f"loss: {_name(self.function)}, called with output and {'targets' if takes_targets else 'batch'}, "
                f"raised {type(error).__name__}: {error}. The output is {_kinds(output)}; the second argument is "
                f"{_kinds(second)}.\n  To fix: {_FIX}"
            ) from error
        if not isinstance(found, torch.Tensor) or found.numel() != 1 or not found.is_floating_point():
            raise wrong("loss", found, "a tensor with one number from the function", _FIX)
        if torch.is_grad_enabled() and not found.requires_grad:
            raise InvalidInputError(
                "loss: what the function returns does not depend on the model's parameters (detached, or a number "
                f"made anew).\n  To fix: {_FIX}"
            )
        return found


def _takes_targets(function: Loss) -> bool:
    """Whether a loss takes (output, targets), as modules and torch.nn.functional do, and not (output, batch)."""
    inner = function.func if isinstance(function, partial) else function
    return isinstance(inner, nn.Module) or getattr(inner, "__module__", None) == F.__name__


def _name(function: Loss) -> str:
    """Return the name of a loss for a message: of a function, of a partial's function, or of an object's class."""
    inner = function.func if isinstance(function, partial) else function
    name: str = getattr(inner, "__name__", type(inner).__name__)
    return "the function" if name == "<lambda>" else name


def _kinds(value: object) -> str:
    """Describe a nested value in a few words: tensors by shape, containers by what they hold."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of " + ", ".join(f"{key!r}: {_kinds(each)}" for key, each in value.items())
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of (" + ", ".join(map(_kinds, value)) + ")"
    return f"a {type(value).__name__}"


def scalar_loss(loss: Loss | None) -> Loss | None:
    """Return a user's loss with its result checked on every call; None if the user gave none.

    Raises:
        InvalidInputError: it is no function.
    """
    if loss is None:
        return None
    if isinstance(loss, type) or not callable(loss):
        made = f"loss={loss.__name__}()" if isinstance(loss, type) and issubclass(loss, nn.Module) else _FIX
        raise wrong("loss", loss, "a function of (output, batch), or None for cross entropy", made)
    return _ScalarLoss(loss)


def _entry(output: object, name: str) -> object:
    """Return the entry of a dict, or the attribute of an object, with this name; None if there is none."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _tensors(output: object) -> list[torch.Tensor]:
    """Return the tensors of a model's output that may be logits: those that it calls "logits", else all of them."""
    named = _entry(output, "logits")
    return trees.tensors(output if named is None else named)


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

"""The mark in a state dict whose weights are multiplied by the graph, so that no plain class loads them unawares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from abcfx.errors import InvalidInputError

# The name of the mark in a state dict. torch prints it when the model's own class is asked to load it: "Unexpected
# key(s) in state_dict". Names of buffers have no dots.
MARK = "abcfx: fold() first, since the graph multiplies these weights"
_DIGITS = 16  # of a hash, in base 16
_FIX = "load result.fold().state_dict() of that transform into the model's own class"


def multipliers_mark(multipliers: str) -> torch.Tensor:
    """Return a tensor by which a state dict says that its weights belong to a graph with certain multipliers.

    Its entries are the digits of a hash of `multipliers`, as floats from 0 to 15. These survive bfloat16, averages of
    checkpoints and moving averages of buffers.
    """
    digest = hashlib.sha256(multipliers.encode()).hexdigest()[:_DIGITS]
    return torch.tensor([float(int(digit, 16)) for digit in digest])


def check_state(own: torch.Tensor | None, state: Mapping[str, object], prefix: str = "") -> None:
    """Raise an error if a state dict's weights belong to other multipliers than those of the module that loads it.

    A mark in the state dict, a tensor made from a hash, says by which numbers a graph multiplies them. One without a
    mark is taken to fit: marks did not exist from the start.

    Args:
        own: the mark of the module that loads; None if nothing multiplies its weights.
        state: the state dict.
        prefix: what stands before the module's own names in the state dict.

    Raises:
        InvalidInputError: says whose weights these are, and what to load instead.
    """
    theirs = state.get(prefix + MARK)
    if not isinstance(theirs, torch.Tensor) or theirs.is_meta:
        return
    if own is None:
        raise InvalidInputError(
            "These weights are of a module that abcfx.transform made, whose graph multiplies them; the model that "
            f"loads them would compute something else.\n  To fix: {_FIX}."
        )
    digits = theirs.detach().to("cpu", torch.float64).round()
    if not torch.equal(digits, own.to("cpu", torch.float64)):
        raise InvalidInputError(
            "These weights are of another transform, whose graph multiplies them by other numbers; this module would "
            f"compute something else with them.\n  expected: weights of a transform with the same model, base and "
            f"options.\n  To fix: transform as in that run; or {_FIX}, and transform that model anew."
        )


def refuse_marked(module: nn.Module, state: Mapping[str, object], prefix: str, *_: object) -> None:
    """Refuse weights that a graph multiplies, as a hook that a plain module calls before it loads a state dict.

    Raises:
        InvalidInputError: says whose weights these are, and what to load instead.
    """
    check_state(None, state, prefix)


def has_mark(state: Mapping[str, object]) -> bool:
    """Whether a state dict, or one saved through a wrapper such as DDP, is marked as multiplied by a graph."""
    return any(name == MARK or name.endswith("." + MARK) for name in state)


class MarkedState(nn.Module):
    """A module that can hold a mark, a buffer that says in its state dict by what its graph multiplies the weights.

    The mark is a buffer, so that every way of saving and loading a model keeps it: DDP, FSDP, distributed checkpoints,
    safetensors.
    """

    _multipliers_mark: torch.Tensor | None = None

    def mark_state(self, multipliers: str) -> None:
        """Add to the state dict of this module a mark that says by what its graph multiplies the weights.

        Args:
            multipliers: a text that is the same for graphs that multiply the same weights by the same numbers.
        """
        mark = multipliers_mark(multipliers)
        self.__dict__["_multipliers_mark"] = mark
        device = next((each.device for each in self.parameters()), mark.device)
        self.register_buffer(MARK, mark.to(device))

    def _restore_mark(self) -> None:
        """Write the mark, a buffer of the state dict, again after `to_empty` has made a buffer without values of it."""
        if self._multipliers_mark is not None and not (empty := self.get_buffer(MARK)).is_meta:
            self._buffers[MARK] = self._multipliers_mark.to(empty.device)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, object],
        prefix: str,
        local_metadata: dict[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Raise an error before loading if a state dict's weights belong to other multipliers; torch calls this method.

        Raises:
            InvalidInputError: the weights belong to other multipliers.
        """
        own = self._multipliers_mark
        check_state(own, state_dict, prefix)
        if own is not None:
            state_dict[prefix + MARK] = own.clone()
        arguments = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

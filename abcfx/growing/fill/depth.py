"""Fill a deep model from one with fewer blocks: every block is a copy of another, the new ones add nothing at first."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

ORDERS = ("stack", "interleave", "append")


def source_of(block: int, before: int, after: int, order: str) -> int:
    """Which of `before` blocks the block at a place among `after` is a copy of.

    "stack": 0 1 2 0 1 2, "interleave": 0 0 1 1 2 2, "append": 0 1 2 2 2 2.
    """
    if order == "stack":
        return block % before
    if order == "interleave":
        return block * before // after
    return min(block, before - 1)


def deepen(model: nn.Module, copies: Mapping[str, str], zeroed: Collection[str] = ()) -> None:
    """Copy parameters and buffers of blocks into other blocks of the same model, and set some to zero.

    Args:
        model: changed in place.
        copies: path of a block -> path of the block that it becomes a copy of.
        zeroed: names of parameters that become zero: those by which a new block adds to the stream.
    """
    with torch.no_grad():
        for block, source in copies.items():
            of_source = model.get_submodule(source).state_dict(keep_vars=True)
            for name, tensor in model.get_submodule(block).state_dict(keep_vars=True).items():
                tensor.copy_(of_source[name])
        parameters = dict(model.named_parameters())
        for name in zeroed:
            parameters[name].zero_()

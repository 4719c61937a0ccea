"""Fills the new blocks of a deep model with copies of its old ones, whose last weights may be set to zero."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import nn

BlockOrder = Literal["stack", "interleave", "append"]
"""Where new blocks go: "stack" makes blocks 0 1 0 1 of 0 1, "interleave" 0 0 1 1, "append" 0 1 1 1."""
BLOCK_ORDERS: tuple[BlockOrder, ...] = ("stack", "interleave", "append")


def source_of(block: int, before: int, after: int, order: BlockOrder) -> int:
    """Return which block of the small model a block of the deeper one is a copy of.

    Args:
        block: place of the block in the deeper model.
        before: number of old blocks.
        after: number of blocks of the deeper model.
        order: where new blocks go.

    >>> [source_of(block, 2, 4, "stack") for block in range(4)]
    [0, 1, 0, 1]
    """
    if order == "stack":
        return block % before
    if order == "interleave":
        return block * before // after
    return min(block, before - 1)


def deepen(model: nn.Module, copies: Mapping[str, str], zeroed: Collection[str] = ()) -> None:
    """Copy parameters and buffers of blocks into other blocks of the same model, and set some parameters to zero.

    Args:
        model: the model; it is changed in place.
        copies: path of a block -> path of the block that it becomes a copy of.
        zeroed: names of parameters that become zero: those by which a new block adds to the residual stream.
    """
    with torch.no_grad():
        for block, source in copies.items():
            of_source = model.get_submodule(source).state_dict(keep_vars=True)
            for name, tensor in model.get_submodule(block).state_dict(keep_vars=True).items():
                tensor.copy_(of_source[name])
        parameters = dict(model.named_parameters())
        for name in zeroed:
            parameters[name].zero_()

"""Text for the examples that is on every machine: the sources of Python's standard library."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from abcfx.examples.demo import read_characters


def characters_of_python(
    steps: int, batch: int, context: int, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, next characters), both (batch, context), from places drawn by the seed."""
    characters, generator = read_characters(), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(characters) - context, (batch, 1), generator=generator)
        windows = characters[starts + torch.arange(context + 1)].long()
        yield windows[:, :-1], windows[:, 1:]

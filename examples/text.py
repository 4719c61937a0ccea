"""Text for the examples that is on every machine: the sources of Python's standard library, as character codes."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

from abcfx.errors import AbcfxError

VOCABULARY = 128  # ASCII; every other character is replaced by "?"


def read_characters() -> torch.Tensor:
    """Read the sources of Python's standard library, in the order of their names, as one tensor of character codes."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py")))
    if not text:
        raise AbcfxError(
            f"The examples train on the sources of Python's standard library; {folder} has none.\n"
            f"  To fix: use a Python whose standard library lies there as .py files"
        )
    return torch.frombuffer(bytearray(text.encode("ascii", errors="replace")), dtype=torch.uint8)


def characters_of_python(
    steps: int, batch: int, context: int, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of (ids, next characters), both (batch, context), from random places in the text.

    Args:
        steps: number of batches.
        batch: number of sequences in a batch.
        context: number of characters in a sequence.
        seed: seed of the places.
    """
    characters, generator = read_characters(), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(characters) - context, (batch, 1), generator=generator)
        windows = characters[starts + torch.arange(context + 1)].long()
        yield windows[:, :-1], windows[:, 1:]

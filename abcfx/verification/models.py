"""The models that a verification trains, and their task: to predict the next character of Python's own sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

from abcfx.examples.text import VOCABULARY, read_characters
from abcfx.support.running import seeded

CONTEXT = 8  # characters that a model sees
Batch = tuple[torch.Tensor, torch.Tensor]
Built = TypeVar("Built")


class MLP(nn.Module):
    """Stem, hidden layers and head with ReLU between them; without biases its layers are a chain of `find_c`."""

    def __init__(self, width: int, inputs: int = 16, outputs: int = 10, hidden: int = 1) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(hidden))
        self.head = nn.Linear(width, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, outputs) of inputs (B, inputs)."""
        x = torch.relu(self.stem(x))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


class CharMLP(nn.Module):
    """MLP that predicts the next character from the last few: ids (B, CONTEXT) to logits (B, VOCABULARY)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(CONTEXT * VOCABULARY, width)  # each place in the context has a table of its own
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next character."""
        places = VOCABULARY * torch.arange(CONTEXT, device=ids.device)
        x = self.norm(self.letters(ids + places).sum(1))
        return self.head(self.mlp(x))  # type: ignore[no-any-return]


def build(make: Callable[[], Built], seed: int = 0) -> Built:
    """Build a model from a seed; the random generators go on as if nothing had been drawn."""
    with seeded(seed):
        return make()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw standard normal numbers from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_batches(steps: int, seed: int = 0, size: int = 64) -> Iterator[Batch]:
    """Yield (ids, next character) from random places in the text."""
    characters = read_characters()
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT + 1)
    for _ in range(steps):
        starts = torch.randint(len(characters) - CONTEXT, (size,), generator=generator)
        windows = characters[starts[:, None] + offsets].long()
        yield windows[:, :-1], windows[:, -1]


def unigram_entropy() -> float:
    """Return the entropy of the text's characters in nats: the loss of a model that knows only their frequencies."""
    counts = torch.bincount(read_characters().long(), minlength=VOCABULARY).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())

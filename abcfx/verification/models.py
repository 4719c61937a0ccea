"""The models that `verify` trains, and their task: to predict the next character of Python's own sources."""

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
    """Linear layers `stem`, `hidden` (several) and `head` without biases, with ReLU between them.

    Args:
        width: number of features of the hidden layers.
        inputs, outputs: number of features of the input and of the output.
        hidden: number of hidden layers.
    """

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
    """MLP that predicts the next character from the last 8: ids (B, 8) to logits (B, size of the vocabulary).

    Args:
        width: number of features of embedding and hidden layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(CONTEXT * VOCABULARY, width)  # each place in the context has a table of its own
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next character, (B, vocabulary), for the ids of the last 8 characters, (B, 8)."""
        places = VOCABULARY * torch.arange(CONTEXT, device=ids.device)
        x = self.norm(self.letters(ids + places).sum(1))
        return self.head(self.mlp(x))  # type: ignore[no-any-return]


def build(make: Callable[[], Built], seed: int = 0) -> Built:
    """Call a function that builds a model, with torch's random numbers drawn from a seed and restored afterwards.

    Args:
        make: builds the model.
        seed: the seed.
    """
    with seeded(seed):
        return make()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw a tensor of standard normal numbers from a seed.

    Args:
        shape: sizes of its dims.
        seed: the seed.
    """
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_batches(steps: int, seed: int = 0, size: int = 64) -> Iterator[Batch]:
    """Yield training batches from random places of a text of Python sources.

    Args:
        steps: number of batches.
        seed: seed of the places.
        size: number of samples in a batch.

    Yields:
        (ids of 8 characters (size, 8), id of the character that follows (size,)).
    """
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

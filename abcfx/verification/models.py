"""The models that a verification works on: an MLP, and its task of predicting the next character of real text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from abcfx.examples.demo import VOCABULARY, read_characters

CONTEXT = 8  # characters seen
Batch = tuple[torch.Tensor, torch.Tensor]


class MLP(nn.Module):
    """stem, hidden layers, head, ReLU between them; no biases, so that its layers are a chain of `find_c`."""

    def __init__(self, width: int, inputs: int = 16, outputs: int = 10, hidden: int = 1) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(hidden))
        self.head = nn.Linear(width, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


class CharMLP(nn.Module):
    """The next character out of the last few: ids (B, CONTEXT) to logits (B, VOCABULARY)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(CONTEXT * VOCABULARY, width)  # of each place, a table of its own
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = VOCABULARY * torch.arange(CONTEXT, device=ids.device)
        x = self.norm(self.letters(ids + places).sum(1))
        return self.head(self.mlp(x))  # type: ignore[no-any-return]


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `make` builds from a seed; the generators go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_batches(steps: int, seed: int = 0, size: int = 64) -> Iterator[Batch]:
    """(ids, next character) out of Python's own sources, at random places."""
    characters = read_characters()
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT + 1)
    for _ in range(steps):
        starts = torch.randint(len(characters) - CONTEXT, (size,), generator=generator)
        windows = characters[starts[:, None] + offsets].long()
        yield windows[:, :-1], windows[:, -1]


def unigram_entropy() -> float:
    """Of the characters of the text, in nats: what a model reaches that has learned their frequencies only."""
    counts = torch.bincount(read_characters().long(), minlength=VOCABULARY).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())

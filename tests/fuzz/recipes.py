"""Draws a model from a seed: nested parts around one stream of tokens, in any sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import nn

from .dense import DENSE
from .part import Made, Part, Sizes
from .sequence import SEQUENCE
from .weights import WEIGHTS

PARTS: dict[str, Part] = {**DENSE, **SEQUENCE, **WEIGHTS}
NORMS = ("layer", "rms", "written", "none")
WRAPS = ("pre", "post", "plain", "scaled", "half")
JOINS = ("chain", "sum", "gate", "again")
GROWS = (("width", "hidden", "heads"), ("width", "hidden"), ("width", "heads"), ("hidden",))
BASE = Sizes(width=16, hidden=32, heads=2)
TOKENS, VOCABULARY, FEATURES, OUTPUTS = 6, 11, 5, 3


@dataclass(frozen=True)
class Drawn:
    """One drawn part: a kind of part, or several drawn parts that are joined; with its norm and its skip connection."""

    kind: str
    norm: str
    wrap: str
    inner: tuple[Drawn, ...] = ()

    def __str__(self) -> str:
        inside = f"({', '.join(map(str, self.inner))})" if self.inner else ""
        return f"{self.wrap} {self.norm}: {self.kind}{inside}"


def draw_part(random: Random, depth: int) -> Drawn:
    """Draw a part; up to `depth` times, parts are made of parts."""
    norm, wrap = random.choice(NORMS), random.choice(WRAPS)
    if depth and random.random() < 0.35:
        inner = tuple(draw_part(random, depth - 1) for _ in range(2))
        return Drawn(random.choice(JOINS), norm, wrap, inner)
    return Drawn(random.choice(sorted(PARTS)), norm, wrap)


class WrittenNorm(nn.Module):
    """RMS norm, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


def norm(kind: str, width: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "written": WrittenNorm}[kind](width)


class Branch(nn.Module):
    """A drawn part of some sizes, with its norm and its skip connection."""

    def __init__(self, drawn: Drawn, sizes: Sizes) -> None:
        super().__init__()
        self.drawn, self.norm = drawn, norm(drawn.norm, sizes.width)
        parts = [] if drawn.inner else [Made(PARTS[drawn.kind], sizes)]
        self.inner = nn.ModuleList([*parts, *(Branch(each, sizes) for each in drawn.inner)])

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        first = self.inner[0](x)
        if not self.drawn.inner:
            return first
        if self.drawn.kind == "chain":
            return self.inner[1](first)
        if self.drawn.kind == "again":
            return self.inner[0](self.inner[1](first))
        second = self.inner[1](x)
        return (first + second) / 2 if self.drawn.kind == "sum" else torch.sigmoid(first) * second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrap = self.drawn.wrap
        if wrap == "post":
            return self.norm(x + self.compute(x))
        y = self.compute(self.norm(x))
        return {"pre": lambda: x + y, "plain": lambda: y, "scaled": lambda: x + 0.1 * y, "half": lambda: (x + y) / 2}[
            wrap
        ]()


class RandomModel(nn.Module):
    """Tokens or features, a few drawn parts, and a head for each token or for their mean, tied to the table or not."""

    def __init__(self, recipe: Recipe, sizes: Sizes) -> None:
        super().__init__()
        self.recipe = recipe
        self.stem = nn.Embedding(VOCABULARY, sizes.width) if recipe.ids else nn.Linear(FEATURES, sizes.width)
        self.blocks = nn.ModuleList(Branch(each, sizes) for each in recipe.parts)
        self.norm = nn.LayerNorm(sizes.width)
        self.head = None if recipe.tied else nn.Linear(sizes.width, OUTPUTS)
        if recipe.frozen:
            for parameter in self.blocks[0].parameters():
                parameter.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        h = h if self.recipe.per_token else h.mean(1)
        y = F.linear(h, self.stem.weight) if self.head is None else self.head(h)
        return (y, y.square().mean()) if self.recipe.pair else y


@dataclass(frozen=True)
class Recipe:
    """A model that was drawn, and which of its sizes grow.

    Attributes:
        seed: the seed.
        parts: its parts.
        grows: names of the sizes that are larger in a larger instance.
        ids: whether its inputs are token ids.
        tied: whether the head is the table of the tokens.
        per_token: whether there is an output for each token.
        pair: whether it returns two tensors.
        frozen: whether its first part is not trained.
    """

    seed: int
    parts: tuple[Drawn, ...]
    grows: Sequence[str]
    ids: bool
    tied: bool
    per_token: bool
    pair: bool
    frozen: bool

    def __str__(self) -> str:
        return f"seed {self.seed}: {'; '.join(map(str, self.parts))}; {' and '.join(self.grows)} grow"

    def build(self, times: int = 1, seed: int = 0) -> RandomModel:
        """Build an instance that is some times as large as the base, in double precision."""
        sizes = Sizes(**{name: size * (times if name in self.grows else 1) for name, size in vars(BASE).items()})
        torch.manual_seed(seed)
        return RandomModel(self, sizes).double()

    def inputs(self, seed: int, batch: int = 3) -> torch.Tensor:
        """Draw a batch of inputs."""
        generator = torch.Generator().manual_seed(seed)
        if self.ids:
            return torch.randint(0, VOCABULARY, (batch, TOKENS), generator=generator)
        return torch.randn(batch, TOKENS, FEATURES, generator=generator, dtype=torch.float64)


def recipe(seed: int) -> Recipe:
    """Draw the model of a seed."""
    random = Random(seed)
    parts = tuple(draw_part(random, depth=2) for _ in range(random.randint(1, 3)))
    ids = random.random() < 0.5
    return Recipe(
        seed=seed,
        parts=parts,
        grows=random.choice(GROWS),
        ids=ids,
        tied=ids and random.random() < 0.4,
        per_token=random.random() < 0.5,
        pair=random.random() < 0.2,
        frozen=len(parts) > 1 and random.random() < 0.2,
    )

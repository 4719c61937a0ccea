"""One function in several spellings, and what `transform` makes of each: exponents, rates, and a short training run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

import abcfx

from .part import Sizes

Run = Callable[[Any, torch.Tensor], torch.Tensor]
Tensors = Mapping[str, torch.Tensor]
BASE = Sizes(width=16, hidden=32, heads=2)
FEATURES, OUTPUTS, TOKENS = 5, 3, 6


@dataclass(frozen=True)
class Spelling:
    """One way to write a function.

    Attributes:
        run: computes (batch, time, width) from the model's parameters and a tensor of that shape.
        store: which tensors the spelling has as parameters, made from those of the first spelling.
        names: for a parameter that the first spelling does not have, those of the first spelling that are in it.
    """

    run: Run
    store: Callable[[Tensors], Tensors] = dict[str, torch.Tensor]
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


Spellings = Mapping[str, Run | Spelling]


@dataclass(frozen=True)
class Function:
    """A function in several spellings over the same tensors.

    Attributes:
        tensors: draws the tensors of some sizes.
        spellings: the ways to write it, by name; the others are compared with the first.
    """

    tensors: Callable[[Sizes], Tensors]
    spellings: Spellings

    def spelling(self, name: str) -> Spelling:
        """Return a spelling by its name."""
        found = self.spellings[name]
        return found if isinstance(found, Spelling) else Spelling(found)


def total(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Add tensors, beginning with the number 0 as Python does."""
    return cast(torch.Tensor, sum(tensors))


def drawn(*names: str, **shapes: tuple[str | int, ...]) -> Callable[[Sizes], Tensors]:
    """Return a function that draws tensors of some sizes: random matrices, and vectors around one.

    Args:
        names: names of matrices of width x width.
        shapes: the shapes of others; a name in a shape is that of a size.
    """

    def draw(sizes: Sizes) -> Tensors:
        held = {}
        for name, dims in {**dict.fromkeys(names, ("width", "width")), **shapes}.items():
            shape = [d if isinstance(d, int) else int(getattr(sizes, d)) for d in dims]
            noise = torch.randn(shape)
            held[name] = noise * shape[-1] ** -0.5 if len(shape) > 1 else 1 + 0.1 * noise
        return held

    return draw


class Spelled(nn.Module):
    """A small model around one spelling: features, the function with a norm and skip connection or without, a head."""

    def __init__(self, function: Function, name: str, place: str, times: Mapping[str, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = Sizes(**{key: size * times.get(key, 1) for key, size in vars(BASE).items()})
        self.sizes, self.place, self.spelling = sizes, place, function.spelling(name)
        self.stem, self.norm = nn.Linear(FEATURES, sizes.width), nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, OUTPUTS)
        for key, tensor in self.spelling.store(function.tensors(sizes)).items():
            self.register_parameter(key, nn.Parameter(tensor.clone()))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        if self.place == "residual":
            h = h + self.spelling.run(self, self.norm(h))
        elif self.place == "plain":
            h = self.norm(F.relu(self.spelling.run(self, h)))
        else:
            h = self.norm(self.spelling.run(self, h))
        y: torch.Tensor = self.head(h)
        return y


class Found(NamedTuple):
    """What is found for a parameter, whatever part of its multiplier m^-a stands in its init and rate."""

    role: str
    size: float
    rate: float

    def __str__(self) -> str:
        return f"{self.role}: a + b = {self.size:g}, c + a = {self.rate:g}"


def found(result: abcfx.Transformed, name: str) -> Found:
    """Return role and exponents of a parameter, with its first multiplier absorbed."""
    plan = result.plan[name]
    a = next(iter(plan.a.values()), 0.0)
    family = result.outcome.fixed.family(name)
    return Found(plan.role, plan.b + a, plan.c + family.rate_shift(a))


GROWTHS: Mapping[str, Mapping[str, int]] = {
    "heads": {"width": 4, "hidden": 4, "heads": 4},
    "head_dim": {"width": 4, "hidden": 4},
    "hidden": {"hidden": 4},
}
ALIKE = {"vector": "embedding"}  # one dim grows, and nothing is summed over it
PLACES = ("residual", "plain", "normed")


class Transformed(NamedTuple):
    """A transformed spelling, and its outputs before and after three training steps."""

    result: abcfx.Transformed
    before: torch.Tensor
    after: torch.Tensor


def transformed(function: Function, name: str, place: str, growth: str, optimizer: str) -> Transformed:
    """Transform one spelling with a smaller base, and train it a little."""
    model, base = (Spelled(function, name, place, times) for times in (GROWTHS[growth], {}))
    x = torch.randn(3, TOKENS, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = abcfx.transform(model, x, base=base, optimizer=optimizer, lr=0.01, eps=1e-12)
    before = result.module(x).detach()
    trainer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer](result.param_groups)
    for _ in range(3):
        trainer.zero_grad()
        result.module(x).sin().square().mean().backward()
        trainer.step()
    return Transformed(result, before, result.module(x).detach())


def differences(first: Transformed, other: Transformed, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return in words what differs between two transformed spellings of one function."""
    told = []
    for name in other.result.plan:
        for theirs in names.get(name, [name]):
            ours, others = found(first.result, theirs), found(other.result, name)
            apart = max(abs(p - q) for p, q in zip(ours[1:], others[1:], strict=True))
            if ALIKE.get(ours.role, ours.role) != ALIKE.get(others.role, others.role) or apart > 1e-6:
                told.append(f"{theirs}: {ours}, but {name}: {others}")
    for what, one, two in (("init", first.before, other.before), ("training", first.after, other.after)):
        gap = float((one - two).abs().max() / one.abs().max())
        if gap > 1e-6:
            told.insert(0, f"{what}: outputs differ by {gap:.1e}")
    return told

"""Runs that several sections and the figure look at; each is made once, when it is first asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F

from abcfx.checks import CoordCheck, TransferCheck, coord_check, transfer_check
from abcfx.checks.slopes import OUTPUT
from abcfx.dynamic import DynamicAlignment
from abcfx.dynamic.history import HistoryRow
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.lp.networks import find_c
from abcfx.pipeline import transform
from abcfx.verification.models import CONTEXT, MLP, CharMLP, noise, seeded, text_batches

WIDTHS = (64, 128, 256, 512)
MAGNITUDE_WIDTHS = (64, 128, 256, 512, 1024)
ROLE_OF = {"stem.weight": "embedding", "hidden.0.weight": "hidden", "head.weight": "readout"}
BASE_LR = 0.01
TRAINING_STEPS = 300
GRID = 20  # steps of alignment between 0 and 1
Curves = dict[str, dict[int, float]]  # by layer, by width


def make_gpt(width: int) -> GPT:
    """The GPT of the examples, its heads of fixed size."""
    return GPT(GPTConfig(d_model=width))


def some_tokens() -> torch.Tensor:
    return torch.randint(128, (2, 32), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Training:
    """One run with rates that follow measured alignment, and one at the planned rates, on the same text."""

    steps: int
    dynamic: list[float]
    static: list[float]
    history: list[HistoryRow]


class Studies:
    """`alignments`: c of the muP chain over alignment. `rates`: planned lr over width. `magnitudes`: sizes of layers.

    `picture`: where the figure is drawn, if anywhere.
    """

    def __init__(self, picture: Path | None = None) -> None:
        self.picture = picture

    @cached_property
    def alignments(self) -> dict[float, list[float]]:
        """c of embedding, hidden, readout at alpha = u from 0 to 1, omega = 1/2."""
        solution = find_c([-0.5, 0.0, 0.5], [0.5] * 3, 0.0, 0.5, 0.0)
        levels = [k / GRID for k in range(GRID + 1)]
        return {level: solution.resolve(level, 0.5, level).c for level in levels}

    @cached_property
    def rates(self) -> Curves:
        found: Curves = {role: {} for role in ROLE_OF.values()}
        for width in WIDTHS:
            result = transform(MLP(width), noise(4, 16), base=lambda: MLP(WIDTHS[0]), lr=BASE_LR, optimizer="adam")
            for name, role in ROLE_OF.items():
                found[role][width] = result.spec[name]["lr"]
        return found

    @cached_property
    def coordinates(self) -> CoordCheck:
        return coord_check(make_gpt, some_tokens(), widths=(64, 128, 256), seeds=3)

    @cached_property
    def transfer(self) -> TransferCheck:
        return transfer_check(
            CharMLP,
            lambda seed: text_batches(60, seed),
            widths=(64, 128, 256),
            lr=2.0**-5,
            lrs=[2.0**k for k in range(-8, -2)],
            steps=60,
            seeds=3,
            backend="sequential",
            progress=False,
        )

    @cached_property
    def magnitudes(self) -> dict[tuple[str, int], Curves]:
        """RMS of every layer's output, by (model, step): at init and after five steps with the same base rate."""
        steps = 5
        check = coord_check(make_gpt, some_tokens(), widths=MAGNITUDE_WIDTHS, seeds=1, steps=steps, lr=2.0**-8)
        values: dict[tuple[str, int], dict[str, dict[int, list[float]]]] = {}
        for each in check.measurements:
            if each.statistic == OUTPUT and each.step in (0, check.steps):
                curves = values.setdefault((each.model, 0 if each.step == 0 else steps), {})
                curves.setdefault(each.node, {}).setdefault(each.width, []).append(each.value)
        return {
            key: {node: {width: fmean(each) for width, each in by_width.items()} for node, by_width in curves.items()}
            for key, curves in values.items()
        }

    @cached_property
    def training(self) -> Training:
        history: list[HistoryRow] = []
        losses = {follows: self._train(follows, history) for follows in (True, False)}
        return Training(TRAINING_STEPS, losses[True], losses[False], history)

    def _train(self, follows: bool, history: list[HistoryRow]) -> list[float]:
        example = torch.zeros(4, CONTEXT, dtype=torch.long)
        model, base = seeded(lambda: CharMLP(128)), seeded(lambda: CharMLP(64))
        result = transform(model, example, base=base, optimizer="adam", lr=2.0**-6)
        optimizer = torch.optim.Adam(result.groups(per_parameter=True))
        batches = list(text_batches(TRAINING_STEPS))
        dynamic = DynamicAlignment(result, optimizer, warmup=20, every=10) if follows else None
        if dynamic is not None:
            dynamic.capture_initial(batches[0][0])
        losses = []
        for ids, following in batches:
            loss = F.cross_entropy(result.module(ids), following)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if dynamic is not None:
                dynamic.step()
            losses.append(loss.item())
        if dynamic is not None:
            history += dynamic.history
        return losses


def slope(values: dict[int, float]) -> float:
    """Of log2 value over log2 width, by least squares."""
    x, y = [math.log2(width) for width in values], [math.log2(value) for value in values.values()]
    mean_x, mean_y = fmean(x), fmean(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)

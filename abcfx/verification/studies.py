"""The training runs and solutions that several sections of `verify` share; each is made when first asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, linear_regression

import torch
import torch.nn.functional as F

from abcfx.checks import CoordCheck, TransferCheck, coord_check, transfer_check
from abcfx.checks.slopes import OUTPUT
from abcfx.dynamic import DynamicAlignment
from abcfx.dynamic.history import HistoryRow
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.lp.networks import find_c
from abcfx.pipeline import transform
from abcfx.verification.models import CONTEXT, MLP, CharMLP, build, noise, text_batches
from abcfx.verification.networks import MUP_A, MUP_B

WIDTHS = (64, 128, 256, 512)
MAGNITUDE_WIDTHS = (64, 128, 256, 512, 1024)
MAGNITUDE_STEPS = 5
ROLE_OF = {"stem.weight": "embedding", "hidden.0.weight": "hidden", "head.weight": "readout"}
BASE_LR = 0.01
TRAINING_STEPS = 300
GRID = 20  # steps of alignment between 0 and 1
Curves = dict[str, dict[int, float]]  # by layer, by width


def make_gpt(width: int) -> GPT:
    """Build the small GPT of the examples in a given width; wider ones have more heads, of one size."""
    return GPT(GPTConfig(d_model=width))


def some_tokens() -> torch.Tensor:
    """Draw a batch of token ids (2, 32) for the GPT, always the same one."""
    return torch.randint(128, (2, 32), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Training:
    """Two training runs of one model on the same text: rates that follow measured alignment, and planned rates.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Attributes:
        steps: number of steps of each run.
        dynamic: loss of each step with rates that follow the alignment, in nats per character.
        static: loss of each step with the planned rates.
        history: alignments and rates that were measured in the first run, a row for each layer and measurement.
    """

    steps: int
    dynamic: list[float]
    static: list[float]
    history: list[HistoryRow]


class Studies:
    """Training runs and solutions that several sections of `verify` share; each property is computed when first read.

    Args:
        picture: file to which the section "Figure" draws; None draws nothing.
    """

    def __init__(self, picture: Path | None = None) -> None:
        self.picture = picture

    @cached_property
    def alignments(self) -> dict[float, list[float]]:
        """Alignment level from 0 to 1 -> learning-rate exponents c of embedding, hidden layer and readout under muP.

        A rate is n^-c (n: width). The level is that of alpha and u, the alignment of updates with inputs and with their
        changes; omega, of weights with changes of inputs, is 1/2.
        """
        solution = find_c(MUP_A, MUP_B, 0.0, 0.5, 0.0)
        levels = [k / GRID for k in range(GRID + 1)]
        return {level: solution.resolve(level, 0.5, level).c for level in levels}

    @cached_property
    def rates(self) -> Curves:
        """Planned learning rates of an MLP: role (embedding, hidden, readout) -> width -> rate."""
        found: Curves = {role: {} for role in ROLE_OF.values()}
        for width in WIDTHS:
            result = transform(MLP(width), noise(4, 16), base=lambda: MLP(WIDTHS[0]), lr=BASE_LR, optimizer="adam")
            for name, role in ROLE_OF.items():
                found[role][width] = result.plan[name].lr
        return found

    @cached_property
    def coordinates(self) -> CoordCheck:
        """The result of `coord_check` (does each layer move alike at every width?) for a small GPT."""
        return coord_check(make_gpt, some_tokens(), widths=(64, 128, 256), seeds=3)

    @cached_property
    def transfer(self) -> TransferCheck:
        """The result of `transfer_check` (is the best learning rate the same at every width?) for a character model."""
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
        """RMS of the outputs of a GPT's layers: (model, step) -> layer -> width -> RMS, mean over seeds.

        The model is "transformed", or "standard" (unchanged); the step is 0 (init) or the last of a short training.
        """
        steps = MAGNITUDE_STEPS
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
        """Two training runs of a character model: rates that follow measured alignment, and planned rates.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.
        """
        dynamic, history = _train(follows=True)
        static, _ = _train(follows=False)
        return Training(TRAINING_STEPS, dynamic, static, history)


def _train(follows: bool) -> tuple[list[float], list[HistoryRow]]:
    """Train a transformed character model on text.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        follows: whether its learning rates follow the measured alignment; else they are as planned.

    Returns:
        (loss of each step, rows of what was measured; empty if rates do not follow).
    """
    example = torch.zeros(4, CONTEXT, dtype=torch.long)
    model, base = build(lambda: CharMLP(128)), build(lambda: CharMLP(64))
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
    return losses, [] if dynamic is None else dynamic.history


def slope(values: Mapping[int, float]) -> float:
    """Fit a line to log2 of values over log2 width by least squares, and return its slope.

    Args:
        values: width -> positive value.
    """
    widths, logs = [math.log2(width) for width in values], [math.log2(value) for value in values.values()]
    return linear_regression(widths, logs).slope

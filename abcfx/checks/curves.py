"""Loss over learning rate at one width: where its minimum lies, and how the minimum moves with width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from abcfx.checks.variants import Variant


class Shift(NamedTuple):
    """How the best learning rate moves with width: the slope of log2(best rate) over log2(width).

    Attributes:
        mean: slope for the best rates of the curves that are averaged over seeds.
        error: standard error of the slope over seeds.
        by_seed: slope for each seed alone.
    """

    mean: float
    error: float
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Final loss over learning rate of one model at one width, averaged over seeds.

    Learning rates are given as factors that multiply all planned rates; 1 is the planned rate.

    Attributes:
        model: "transformed", or "standard" for the user's unchanged model.
        width: width of the model.
        factors: the factors that were tried, in increasing order.
        losses: mean final loss over seeds at each factor.
        errors: standard error of each mean.
        best: the factor at the minimum of the parabola through the lowest loss and its two neighbours.
        loss: lowest mean loss among the factors tried.
        error: standard error of `loss`.
        on_edge: whether the lowest loss is at the smallest or largest factor tried, so that the minimum may lie beyond.
        regret: what it costs to use the best factor of the smallest width here: the loss there minus `loss`, mean over
            seeds.
        regret_error: standard error of `regret`.
    """

    model: Variant
    width: int
    factors: tuple[float, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...]
    best: float
    loss: float
    error: float
    on_edge: bool
    regret: float
    regret_error: float

    def to_dict(self) -> dict[str, object]:
        """Return the curve as a dict with its attributes as keys."""
        return asdict(self)


def minimum(factors: Sequence[float], losses: Sequence[float]) -> float:
    """Return log2 of the learning-rate factor at the minimum of a parabola through the lowest loss and its neighbours.

    If the lowest loss is at the smallest or largest factor, log2 of that factor is returned.

    Args:
        factors: learning-rate factors in increasing order.
        losses: loss at each factor.

    Example:
        >>> minimum([0.5, 1.0, 2.0], [1.0, 0.0, 1.0])
        0.0
    """
    lowest = min(range(len(losses)), key=losses.__getitem__)
    if lowest in (0, len(losses) - 1):
        return math.log2(factors[lowest])
    x0, x1, x2 = map(math.log2, factors[lowest - 1 : lowest + 2])
    y0, y1, y2 = losses[lowest - 1 : lowest + 2]
    left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)
    if left + right <= 0:
        return x1
    return x1 + (left * (x2 - x1) - right * (x1 - x0)) / (2 * (left + right))

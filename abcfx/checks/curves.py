"""Loss over learning rate at one width: its minimum, and how the minimum moves with width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from abcfx.checks.variants import Variant


class Shift(NamedTuple):
    """Slope of log2 of the best rate over log2 width: of the mean curves, its standard error, and of each seed."""

    mean: float
    error: float
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Loss over learning rate of one model at one width.

    Attributes:
        model: "transformed" or "standard".
        width: of the model.
        factors: grid of factors on the planned rates, in increasing order.
        losses: mean over seeds at each factor.
        errors: standard error of each mean.
        best: factor at the minimum of the parabola through the lowest loss and its neighbours.
        loss: mean loss at the best factor of the grid.
        error: standard error of `loss`.
        on_edge: whether the lowest loss lies on an edge of the grid, even after the grid has grown.
        regret: loss at the best factor of the smallest width minus `loss`; paired over seeds.
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
        """Return the curve as plain data."""
        return asdict(self)


def minimum(factors: Sequence[float], losses: Sequence[float]) -> float:
    """Return log2 of the factor at which the parabola through the lowest loss and its neighbours has its minimum.

    A lowest loss at an edge of the grid is its own minimum.

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

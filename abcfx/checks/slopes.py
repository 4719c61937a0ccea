"""Slopes over width with standard errors over seeds, and what they say: PASS, FAIL, WEAK, INCONCLUSIVE or SKIP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from abcfx.checks.expected_slopes import CHANGE, INIT, UPDATE, Interval, least_squares

PASS, FAIL, WEAK, INCONCLUSIVE, SKIP, INFO = "PASS", "FAIL", "WEAK", "INCONCLUSIVE", "SKIP", ""
WORST_FIRST = (FAIL, INCONCLUSIVE, WEAK, PASS, SKIP, INFO)
TOLERANCE = {INIT: 0.2, UPDATE: 0.15, CHANGE: 0.2}
ERRORS = 2.0  # standard errors on either side


@dataclass(frozen=True)
class Slope:
    """Slope of log2 of a statistic over log2 width.

    Attributes:
        model: "transformed" or "standard".
        node: the layer's parameter name, or the module path of an attention.
        statistic: "init" (rms(W0) rms(x) sqrt(fan_in)), "update" (rms of dW x), "change" (rms of W x - W0 x0); for
            information "input" (rms of x, multiplier included) and "output" (rms of W x).
        step: optimizer steps taken.
        mean: exponent of width, mean over seeds; None where a value was zero or not finite at some width.
        error: its standard error over seeds; 0 with one seed.
        seeds: number of seeds.
        tail: slope between the two largest widths.
        low, high: the interval that the exponents predict, before the tolerance; None where they say nothing.
        verdict: see `judge`; "" where nothing is judged.
        reason: in words, where it did not pass.
        cause: the layer before it that is to blame for what comes in, if one is.
    """

    model: str
    node: str
    statistic: str
    step: int
    mean: float | None
    error: float
    seeds: int
    tail: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str = ""
    cause: str | None = None

    def row(self) -> dict[str, Any]:
        return asdict(self)


def fit(log_widths: Sequence[float], values: Mapping[int, Sequence[float]]) -> tuple[float, float, float]:
    """(mean slope, standard error over seeds, slope between the last two widths) of log2 of positive values by seed."""
    each = [least_squares(log_widths, [math.log2(v) for v in seed]) for seed in values.values()]
    step = log_widths[-1] - log_widths[-2]
    tail = fmean(math.log2(seed[-1] / seed[-2]) / step for seed in values.values())
    return fmean(each), standard_error(each), tail


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def judge(mean: float, error: float, expected: Interval, statistic: str) -> tuple[str, str]:
    """(verdict, reason) of one slope.

    PASS: the slope with two standard errors is inside the interval widened by the tolerance. FAIL: it is outside with
    two standard errors to spare. WEAK: as FAIL, below, for a change since init, to which several terms add.
    INCONCLUSIVE: the standard error is too large to tell.
    """
    tolerance, band = TOLERANCE[statistic], ERRORS * error
    low, high = expected.low - tolerance, expected.high + tolerance
    if low <= mean - band and mean + band <= high:
        return PASS, ""
    shown = f"{mean:+.2f} ± {error:.2f}, expected {_shown(expected)} ± {tolerance:g}"
    if mean - band > high:
        return FAIL, f"{_WORDS[statistic]} grows too fast with width: {shown}"
    if mean + band < low:
        return WEAK if statistic == CHANGE else FAIL, f"{_WORDS[statistic]} shrinks with width: {shown}"
    return INCONCLUSIVE, f"{_WORDS[statistic]} cannot be told from this many seeds: {shown}"


_WORDS = {INIT: "size at init", UPDATE: "update dW x", CHANGE: "change since init"}


def _shown(expected: Interval) -> str:
    if expected.high - expected.low < 0.005:
        return f"{expected.high:+.2f}"
    return f"{expected.low:+.2f} to {expected.high:+.2f}"


def worst(verdicts: Sequence[str]) -> str:
    return min(verdicts, key=WORST_FIRST.index, default=SKIP)

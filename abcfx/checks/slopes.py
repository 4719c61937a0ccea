"""Slopes over width: fitted with standard errors over seeds, and judged against the interval that exponents predict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, linear_regression, stdev
from typing import NamedTuple

from abcfx.checks.variants import Variant
from abcfx.support.verdict import Verdict

INIT, UPDATE, CHANGE = "init", "update", "change"
INPUT, OUTPUT = "input", "output"  # shown, never judged
TOLERANCE = {INIT: 0.2, UPDATE: 0.15, CHANGE: 0.2}
ERRORS = 2.0  # standard errors on either side
_WORDS = {INIT: "size at init", UPDATE: "update dW x", CHANGE: "change since init"}


@dataclass(frozen=True)
class Interval:
    """Slopes, as exponents of width, that a statistic may have before any tolerance."""

    low: float
    high: float

    def joined(self, other: Interval) -> Interval:
        """Return the smallest interval that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def __str__(self) -> str:
        if self.high - self.low < 0.005:
            return f"{self.high:+.2f}"
        return f"{self.low:+.2f} to {self.high:+.2f}"


class Measurement(NamedTuple):
    """One statistic of one layer in one run; `model` is "transformed" or "standard"."""

    model: Variant
    width: int
    seed: int
    step: int
    node: str
    statistic: str
    value: float


@dataclass(frozen=True)
class Slope:
    """Slope of log2 of a statistic over log2 width.

    Attributes:
        model: "transformed" or "standard".
        node: the layer's parameter name, or the module path of an attention.
        statistic: "init" (rms(W0) rms(x) sqrt(fan_in)), "update" (rms of dW x) or "change" (rms of W x - W0 x0); shown
            only: "input" (rms of x, multiplier included) and "output" (rms of W x).
        step: optimizer steps taken.
        mean: exponent of width, mean over seeds; None if a value was zero or not finite at some width.
        error: standard error of `mean` over seeds; 0 with one seed.
        seeds: number of seeds.
        tail: slope between the two largest widths.
        low, high: the interval that the exponents predict, before the tolerance; None if they predict nothing.
        verdict: see `judge`; None if nothing is judged.
        reason: why it did not pass.
        cause: the earlier layer that is to blame, if this one fails only because of what comes into it.
    """

    model: Variant
    node: str
    statistic: str
    step: int
    mean: float | None
    error: float
    seeds: int
    tail: float | None
    low: float | None
    high: float | None
    verdict: Verdict | None = None
    reason: str = ""
    cause: str | None = None

    @property
    def interval(self) -> Interval | None:
        """The predicted interval, if there is one."""
        return None if self.low is None or self.high is None else Interval(self.low, self.high)

    def to_dict(self) -> dict[str, object]:
        """Return the slope as plain data."""
        return asdict(self)


class Fit(NamedTuple):
    """Mean slope over seeds, its standard error, and the slope between the two largest widths."""

    mean: float
    error: float
    tail: float


def fit(log_widths: Sequence[float], by_seed: Mapping[int, Sequence[float]]) -> Fit:
    """Fit a line to log2 of positive values over log2 width, for each seed on its own."""
    slopes = [linear_regression(log_widths, list(map(math.log2, values))).slope for values in by_seed.values()]
    step = log_widths[-1] - log_widths[-2]
    tail = fmean(math.log2(values[-1] / values[-2]) / step for values in by_seed.values())
    return Fit(fmean(slopes), standard_error(slopes), tail)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of the values; 0 for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def judge(mean: float, error: float, expected: Interval, statistic: str) -> tuple[Verdict, str]:
    """Judge one slope and return (verdict, reason).

    PASS: the slope with two standard errors is inside the interval widened by the tolerance. FAIL: it is outside with
    two standard errors to spare. WEAK: as FAIL, but below, for a change since init, to which several terms add.
    INCONCLUSIVE: the standard error is too large to tell.
    """
    tolerance, band = TOLERANCE[statistic], ERRORS * error
    low, high = expected.low - tolerance, expected.high + tolerance
    if low <= mean - band and mean + band <= high:
        return Verdict.PASS, ""
    told = f"{mean:+.2f} ± {error:.2f}, expected {expected} ± {tolerance:g}"
    if mean - band > high:
        return Verdict.FAIL, f"{_WORDS[statistic]} grows too fast with width: {told}"
    if mean + band < low:
        verdict = Verdict.WEAK if statistic == CHANGE else Verdict.FAIL
        return verdict, f"{_WORDS[statistic]} shrinks with width: {told}"
    return Verdict.INCONCLUSIVE, f"{_WORDS[statistic]} cannot be told from this many seeds: {told}"

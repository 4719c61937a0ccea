"""Slopes over width: fitted with standard errors over seeds, and judged against an interval that theory predicts.

A slope s of a statistic says that the statistic grows like width^s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, linear_regression, stdev
from typing import NamedTuple

from abcfx.checks.variants import TRANSFORMED, Variant
from abcfx.support.verdict import Verdict

INIT, UPDATE, CHANGE = "init", "update", "change"
INPUT, OUTPUT = "input", "output"  # shown, never judged
TOLERANCE = {INIT: 0.2, UPDATE: 0.15, CHANGE: 0.2}
ERRORS = 2.0  # standard errors on either side
_STUDENT = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # by seeds - 1; 95 % two-sided
MOST_FIRST_SEEDS, MOST_USEFUL_SEEDS = 3, 100
_WORDS = {INIT: "size at init", UPDATE: "update dW x", CHANGE: "change since init"}


@dataclass(frozen=True)
class Interval:
    """An interval that theory predicts for a slope, where a measured rms grows like width^slope.

    Attributes:
        low, high: its ends, before any tolerance for errors of measurement.
    """

    low: float
    high: float

    def joined(self, other: Interval) -> Interval:
        """Return the smallest interval of slopes (exponents of width) that holds this one and another one."""
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def __str__(self) -> str:
        if self.high - self.low < 0.005:
            return f"{self.high:+.2f}"
        return f"{self.low:+.2f} to {self.high:+.2f}"


class Measurement(NamedTuple):
    """One measured number: the rms of what one layer computed in one training run.

    Attributes:
        model: "transformed", or "standard" for the user's unchanged model.
        width, seed: of the run.
        step: number of optimizer steps taken before.
        node: name of the layer.
        statistic: of what: "init" (the output at init), "update" (dW x), "change" (of the output since init), "input"
            or "output".
        value: the number, an rms.
    """

    model: Variant
    width: int
    seed: int
    step: int
    node: str
    statistic: str
    value: float


@dataclass(frozen=True)
class Slope:
    """A measured slope: an rms of a layer (of its update, say) grows like width^slope; with the verdict on it.

    Attributes:
        model: "transformed", or "standard" for the user's unchanged model.
        node: the layer: its parameter's name, or the module path of an attention.
        statistic: "init" (rms(W0) rms(x) sqrt(fan_in)), "update" (rms of dW x) or "change" (rms of W x - W0 x0), for
            weight W, input x, values at init W0 and x0, dW = W - W0; shown and not judged: "input" (rms of x,
            multiplier included) and "output" (rms of W x).
        step: number of optimizer steps taken.
        mean: slope of log2 of the rms over log2(width), mean over seeds; None if a value was zero or not finite.
        error: standard error of `mean` over seeds; 0 with one seed.
        seeds: number of seeds.
        tail: slope between the two largest widths, mean over seeds.
        tail_error: standard error of `tail` over seeds; 0 with one seed.
        low, high: ends of the interval of slopes that theory predicts, before the tolerance; None if it predicts
            nothing.
        verdict: PASS inside the predicted interval, else FAIL, WEAK or INCONCLUSIVE; SKIP if a value was zero or
            missing; None if the slope is not judged.
        reason: why it did not pass.
        cause: name of an earlier layer, if this one fails only because the input from there is too large or small.
    """

    model: Variant
    node: str
    statistic: str
    step: int
    mean: float | None
    error: float
    seeds: int
    tail: float | None
    tail_error: float
    low: float | None
    high: float | None
    verdict: Verdict | None = None
    reason: str = ""
    cause: str | None = None

    @property
    def interval(self) -> Interval | None:
        """The interval that theory predicts for this slope (exponent of width); None if it predicts nothing."""
        return None if self.low is None or self.high is None else Interval(self.low, self.high)

    @property
    def fit(self) -> Fit | None:
        """The fitted slopes with their errors; None if a value was zero or not finite."""
        if self.mean is None or self.tail is None:
            return None
        return Fit(self.mean, self.error, self.tail, self.tail_error, self.seeds)

    def to_dict(self) -> dict[str, object]:
        """Return the slope (measured exponent of width) as a dict with its attributes as keys."""
        return asdict(self)


class Fit(NamedTuple):
    """A line fitted to log2 of a measured rms over log2 width.

    Attributes:
        mean: slope, mean over seeds.
        error: standard error of the mean over seeds; 0 with one seed.
        tail: slope between the two largest widths, mean over seeds.
        tail_error: standard error of `tail` over seeds; 0 with one seed.
        seeds: number of seeds.
    """

    mean: float
    error: float
    tail: float
    tail_error: float
    seeds: int

    def lowered(self, by: float) -> Fit:
        """Return the fit with its slopes, over all widths and between the two largest, lowered by the number `by`."""
        return self._replace(mean=self.mean - by, tail=self.tail - by)


def fit(log_widths: Sequence[float], by_seed: Mapping[int, Sequence[float]]) -> Fit:
    """Fit a line to log2 of a measured rms over log2 width for each seed; return the mean slope with its error.

    Args:
        log_widths: log2 of each width, in increasing order.
        by_seed: for each seed, the rms at these widths, which is positive.
    """
    slopes = [linear_regression(log_widths, list(map(math.log2, values))).slope for values in by_seed.values()]
    step = log_widths[-1] - log_widths[-2]
    tails = [math.log2(values[-1] / values[-2]) / step for values in by_seed.values()]
    return Fit(fmean(slopes), standard_error(slopes), fmean(tails), standard_error(tails), len(slopes))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of the values; 0 for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def judge(found: Fit, expected: Interval, statistic: str) -> tuple[Verdict, str]:
    """Judge measured slopes (an rms of a layer grows like width^slope) against the interval that theory predicts.

    The narrowest models of a check are the furthest from what theory says of large widths. The slope between the two
    largest widths may therefore clear a layer whose slope over all widths lies outside the interval: it fails only if
    both lie outside on the same side.

    PASS: one of the two slopes with two standard errors is inside the interval widened by the tolerance. FAIL: both are
    outside, by more than chance explains (the 95 % interval of Student's t for this number of seeds, so that one seed
    never fails). WEAK: as FAIL, but below the interval, for a "change" since init, to which several terms add.
    INCONCLUSIVE: neither.

    Args:
        found: the measured slopes with their standard errors.
        expected: the predicted interval.
        statistic: which rms it is, "init", "update" or "change"; each has a tolerance of its own.

    Returns:
        (verdict, reason); the reason is "" for PASS.
    """
    tolerance = TOLERANCE[statistic]
    low, high = expected.low - tolerance, expected.high + tolerance
    slopes = ((found.mean, found.error), (found.tail, found.tail_error))
    if any(low <= mean - ERRORS * error and mean + ERRORS * error <= high for mean, error in slopes):
        return Verdict.PASS, ""
    told = f"{found.mean:+.2f} ± {found.error:.2f}, expected {expected} ± {tolerance:g}"
    errors = student(found.seeds)
    if all(mean - errors * error > high for mean, error in slopes):
        return Verdict.FAIL, f"{_WORDS[statistic]} grows too fast with width: {told}"
    if all(mean + errors * error < low for mean, error in slopes):
        verdict = Verdict.WEAK if statistic == CHANGE else Verdict.FAIL
        return verdict, f"{_WORDS[statistic]} shrinks with width: {told}"
    return Verdict.INCONCLUSIVE, f"{_WORDS[statistic]} cannot be told from this many seeds: {told}"


def student(seeds: int) -> float:
    """Return how many standard errors a mean over seeds may lie from the truth with 95 % confidence; inf for one."""
    return _STUDENT[seeds - 1] if seeds <= len(_STUDENT) else ERRORS


def what_would_decide(slopes: Sequence[Slope], widths: Sequence[int], seconds: float) -> str:
    """Say what would decide the slopes of the transformed model that are inconclusive: more seeds, or another width.

    Args:
        slopes: judged slopes of all layers.
        widths: the widths of the check.
        seconds: how long one seed takes at all of them.

    Returns:
        A sentence with the argument to change and the time it takes; "" if nothing is inconclusive.
    """
    open_slopes = [s for s in slopes if s.verdict is Verdict.INCONCLUSIVE and s.model == TRANSFORMED]
    if not open_slopes:
        return ""
    seeds = max(slope.seeds for slope in open_slopes)
    needed = max(map(_seeds_needed, open_slopes))
    if needed <= MOST_USEFUL_SEEDS:
        took = needed * seconds
        return f"About {needed} seeds would decide it: seeds={needed} (about {took:.0f} s)"
    wider = 2 * widths[-1]
    took = seeds * seconds * 2  # a layer of twice the width has four times the entries, beside all other widths
    return f"More seeds would not decide it soon; a wider model would: add width {wider} (about {took:.0f} s)"


def _seeds_needed(slope: Slope) -> int:
    """Return how many seeds would tell on which side of the nearest end of the expected interval a slope lies."""
    assert slope.mean is not None and slope.low is not None and slope.high is not None
    tolerance = TOLERANCE[slope.statistic]
    margin = min(abs(slope.mean - slope.low + tolerance), abs(slope.mean - slope.high - tolerance))
    if slope.seeds == 1 or not slope.error:
        return MOST_FIRST_SEEDS
    needed = slope.seeds * (ERRORS * slope.error / max(margin, 1e-3)) ** 2
    return min(math.ceil(max(needed, slope.seeds + 1)), 10**6)

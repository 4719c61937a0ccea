"""The runs of a coordinate check: short trainings at every width and seed, and the slopes fitted to what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

from abcfx.checks.expected_slopes import Intervals, expected_slopes, logits_names, shortfall
from abcfx.checks.recorder import LOGITS, PRODUCT, Recorder, Seen, Use
from abcfx.checks.slopes import (
    CHANGE,
    INIT,
    INPUT,
    OUTPUT,
    UPDATE,
    Interval,
    Measurement,
    Slope,
    fit,
    judge,
)
from abcfx.checks.sweep_models import ModelSweep, Optimizers
from abcfx.checks.variants import TRANSFORMED, Variant
from abcfx.support.batch_loss import Loss
from abcfx.support.running import call_with_batch, seeded
from abcfx.support.verdict import Verdict

RETESTS = 2  # more steps if updates are still exactly zero
FORWARD_SEED = 0  # of dropout, alike at every step


class Series(NamedTuple):
    """The statistic of one layer that is followed over widths and seeds."""

    model: Variant
    use: Use
    statistic: str
    step: int


Values = Mapping[tuple[int, int], float]  # by (width, seed)


@dataclass
class CoordStudy:
    """Trains models for a few steps and keeps the statistics of every layer.

    Attributes:
        models: the architecture at all widths.
        widths: in increasing order.
        loss: function of (output, batch).
        steps: optimizer steps of each run; the first run may raise it by RETESTS.
    """

    models: ModelSweep
    widths: list[int]
    loss: Loss
    steps: int
    _values: dict[Series, dict[tuple[int, int], float]] = field(default_factory=dict)
    _terms: dict[Use, dict[int, tuple[int, int]]] = field(default_factory=dict)  # (rows, fan_in) by width

    def run(self, variant: Variant, seeds: Sequence[int]) -> None:
        """Train at every width and seed. The very first run finds out after how many steps all layers have moved."""
        for width in self.widths:
            for seed in seeds:
                first = not self._values
                module, optimizers = self.models.make(variant, width, seed)
                found = self._train(module, optimizers, RETESTS if first else 0)
                if first:
                    self.steps = len(found) - 1
                for step, seen in enumerate(found):
                    self._keep(variant, width, seed, step, seen, found[0])

    def _train(self, module: nn.Module, optimizers: Optimizers, retests: int) -> list[dict[Use, Seen]]:
        """Train and return what the recorder saw before each step and after the last one."""
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        trainable = {name for name, p in module.named_parameters() if p.requires_grad}
        found: list[dict[Use, Seen]] = []
        while True:
            recorder = Recorder(module, before if found else None)
            with seeded(FORWARD_SEED), recorder:
                output = call_with_batch(module, self.models.batch)
            found.append(recorder.found)
            still = any(use.parameter in trainable and not seen.update for use, seen in recorder.found.items())
            if len(found) > self.steps + (retests if still else 0):
                return found
            loss = self.loss(output, self.models.batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

    def _keep(
        self, variant: Variant, width: int, seed: int, step: int, found: Mapping[Use, Seen], first: Mapping[Use, Seen]
    ) -> None:
        for use, seen in found.items():
            self._terms.setdefault(use, {})[width] = (seen.rows, seen.fan_in)
            values: dict[str, float | None] = {OUTPUT: seen.output}
            if use.kind == PRODUCT:
                values[INPUT] = seen.input
            if step == 0:
                values[INIT] = seen.init
            else:
                values[CHANGE] = seen.change(first[use]) if use in first else None
                if use.kind != LOGITS:
                    values[UPDATE] = seen.update
            for statistic, value in values.items():
                if value is not None:
                    self._values.setdefault(Series(variant, use, statistic, step), {})[width, seed] = value

    def measurements(self) -> tuple[Measurement, ...]:
        """Return every value that was kept."""
        names = self._names()
        return tuple(
            Measurement(series.model, width, seed, series.step, names[series.use], series.statistic, value)
            for series, values in self._values.items()
            for (width, seed), value in values.items()
        )

    def slopes(self) -> tuple[Slope, ...]:
        """Fit and judge all slopes: transformed model first, layers in the order in which they run."""
        expected, names = expected_slopes(self.models.result(self.widths[-1])), self._names()
        found = [
            self._slope(names[series.use], series, values, self._interval(expected, series))
            for series, values in self._values.items()
        ]
        order = {name: i for i, name in enumerate(names.values())}
        found.sort(key=lambda slope: (slope.model != TRANSFORMED, order[slope.node], slope.step))
        return tuple(_with_causes(found))

    @property
    def _log_widths(self) -> list[float]:
        return [math.log2(width) for width in self.widths]

    def _interval(self, expected: Intervals, series: Series) -> Interval | None:
        """Return the predicted interval; that of an update reaches down to what so few rows and terms can show."""
        interval, terms = expected.get((series.use, series.statistic)), self._terms[series.use]
        is_update = series.statistic == UPDATE and series.use.kind == PRODUCT
        if interval is None or not is_update or len(terms) < len(self.widths):
            return interval
        rows = max(rows for rows, _ in terms.values())
        fan_in = [terms[width][1] for width in self.widths]
        return replace(interval, low=interval.low - shortfall(rows, fan_in, self._log_widths))

    def _slope(self, name: str, series: Series, values: Values, interval: Interval | None) -> Slope:
        statistic, step = series.statistic, series.step
        judged = step == (0 if statistic == INIT else self.steps) and statistic not in (INPUT, OUTPUT)
        seeds = sorted({seed for _, seed in values})
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        slope = Slope(series.model, name, statistic, step, None, 0.0, len(seeds), None, low, high)
        if len(values) < len(seeds) * len(self.widths):
            reason = f"{statistic}: not measured at every width, since other rows came in"
            return replace(slope, verdict=Verdict.SKIP, reason=reason)
        if wrong := [width for (width, _), value in values.items() if not math.isfinite(value)]:
            return replace(slope, verdict=Verdict.FAIL, reason=f"{statistic}: not finite at width {wrong[0]}")
        if zero := [width for (width, _), value in values.items() if value == 0.0]:
            verdict = Verdict.SKIP if judged else None
            return replace(slope, verdict=verdict, reason=self._why_zero(series, zero))
        by_seed = {seed: [values[width, seed] for width in self.widths] for seed in seeds}
        mean, error, tail = fit(self._log_widths, by_seed)
        slope = replace(slope, mean=mean, error=error, tail=tail)
        if not judged or interval is None:
            return slope
        verdict, reason = judge(mean, error, interval, statistic)
        return replace(slope, verdict=verdict, reason=reason)

    def _why_zero(self, series: Series, widths: Sequence[int]) -> str:
        where = "at every width" if set(widths) == set(self.widths) else f"at width {min(widths)}"
        if series.statistic == INIT:
            return f"{series.statistic}: exactly zero {where}: its weight, or what comes in, starts at zero"
        if series.use.kind != LOGITS and not self._learns(series.use.parameter):
            return f"{series.statistic}: its weight is frozen"
        later = self._values.get(series._replace(model=TRANSFORMED, step=series.step + 1))
        again = " and is tested at the next step" if later else f" after {series.step} steps; more steps= may reach it"
        return f"{series.statistic}: exactly zero {where}: no gradient has reached it{again}"

    def _learns(self, parameter: str) -> bool:
        module = self.models.result(self.widths[-1]).module
        return dict(module.named_parameters())[parameter].requires_grad

    def _names(self) -> dict[Use, str]:
        """Name every use: parameters by name, tied ones also by the kind of use, attention by its module's path."""
        paths = logits_names(self.models.result(self.widths[-1]).outcome)
        kinds: dict[str, set[str]] = {}
        for use in self._terms:
            kinds.setdefault(use.parameter, set()).add(use.kind)
        names = {}
        for use in self._terms:
            if use.kind == LOGITS:
                path = paths[use.index] if use.index < len(paths) else f"attention {use.index}"
                names[use] = f"{path} ({LOGITS})"
            else:
                names[use] = use.parameter + (f" ({use.kind})" if len(kinds[use.parameter]) > 1 else "")
        return names


def _with_causes(slopes: Sequence[Slope]) -> list[Slope]:
    """Name the layer that failed before, for each layer that fails only because of what comes into it.

    The layer would not fail if the slope of its input were inside the predicted interval.
    """
    inputs = {(s.model, s.node, s.step): s for s in slopes if s.statistic == INPUT}
    first_failure: dict[str, str] = {}
    found = []
    for slope in slopes:
        cause = first_failure.get(slope.model)
        if slope.verdict is Verdict.FAIL and slope.mean is not None and cause not in (None, slope.node):
            entering = inputs.get((slope.model, slope.node, slope.step))
            excess = 0.0
            if entering is not None and entering.mean is not None and entering.high is not None:
                excess = entering.mean - entering.high
            assert slope.interval is not None
            own, _ = judge(slope.mean - excess, slope.error, slope.interval, slope.statistic)
            if own is not Verdict.FAIL:
                reason = f"{slope.reason}; what comes in is off already, see {cause}"
                slope = replace(slope, cause=cause, reason=reason)
        if slope.verdict is Verdict.FAIL and slope.cause is None:
            first_failure.setdefault(slope.model, slope.node)
        found.append(slope)
    return found

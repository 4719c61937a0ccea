"""The training runs of a coordinate check: a few steps at every width and seed, and slopes over width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

from abcfx.checks.expected_slopes import Intervals, expected_slopes, logits_names, shortfall
from abcfx.checks.recorder import LOGITS, PRODUCT, Columns, Recorder, Seen, Use
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
    """A key for the measurements of one number over widths and seeds, in a coordinate check.

    Attributes:
        model: "transformed", or "standard" for the user's unchanged model.
        use: the layer: a parameter used as matrix or lookup table, or one attention's logits.
        statistic: which rms it is: "init" (of the output at init), "update" (of dW x), "change" (of the output since
            init), "input" or "output".
        step: number of optimizer steps taken when the number was measured.
    """

    model: Variant
    use: Use
    statistic: str
    step: int


Values = Mapping[tuple[int, int], float]  # by (width, seed)


@dataclass
class CoordStudy:
    """The runs of a coordinate check: trains a model at several widths and fits exponents of width to each layer.

    Call `train_at_all_widths` for the transformed model and perhaps for the unchanged one, then `slopes`.

    Attributes:
        models: builds and transforms the user's architecture at any width.
        widths: the widths to train at, in increasing order.
        loss: function of (output of the model, batch) that returns a scalar.
        steps: optimizer steps of each run; the first run raises it by up to 2 if some weight has not moved by then.
        _values: what was measured: for each number that is followed, its value by (width, seed).
        _terms: for each layer and width, (number of rows, that is tokens or samples, of its input, fan_in).
    """

    models: ModelSweep
    widths: list[int]
    loss: Loss
    steps: int
    _values: dict[Series, dict[tuple[int, int], float]] = field(default_factory=dict)
    _terms: dict[Use, dict[int, tuple[int, int]]] = field(default_factory=dict)  # (rows, fan_in) by width

    def train_at_all_widths(self, variant: Variant, seeds: Sequence[int]) -> None:
        """Train one variant of the model at every width and seed, and keep what every layer did at each step.

        That is the rms of its input, output, update and change. The very first run of the study finds out after how
        many steps all trainable layers have moved, and sets `steps`.

        Args:
            variant: "transformed", or "standard" for the user's unchanged model.
            seeds: seeds from which the weights are drawn.
        """
        for width in self.widths:
            for seed in seeds:
                first = not self._values
                module, optimizers = self.models.make(variant, width, seed)
                found = self._train(module, optimizers, RETESTS if first else 0, self._columns(width))
                if first:
                    self.steps = len(found) - 1
                for step, seen in enumerate(found):
                    self._keep(variant, width, seed, step, seen, found[0])

    def _columns(self, width: int) -> dict[str, tuple[Columns, ...]]:
        """Return for weights whose input is a concatenation, of which some tensors grow, the columns of each tensor.

        At the base width nothing is told apart, so that the columns are looked up in the widest model's plan.
        """
        at_base = width == self.models.base_width
        plan = self.models.result(self.widths[-1] if at_base else width).plan
        parts = {name: [each.part for each in row.segments] for name, row in plan.items() if row.segments}
        if at_base:
            return {n: tuple(Columns(p.index, p.base_start, p.base_size) for p in each) for n, each in parts.items()}
        return {n: tuple(Columns(p.index, p.start, p.size) for p in each) for n, each in parts.items()}

    def _train(
        self, module: nn.Module, optimizers: Optimizers, retests: int, columns: Mapping[str, tuple[Columns, ...]]
    ) -> list[dict[Use, Seen]]:
        """Train a model on the study's batch and record what every layer computes.

        Args:
            module: the model, with its initial weights.
            optimizers: the optimizers that train it.
            retests: how many steps more than `steps` to train while some trainable weight has not changed at all.
            columns: the columns of weights that are recorded apart.

        Returns:
            For each number of steps from 0 on, what every layer computed then; so one entry more than steps were taken.
        """
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        trainable = {name for name, p in module.named_parameters() if p.requires_grad}
        found: list[dict[Use, Seen]] = []
        while True:
            recorder = Recorder(module, before if found else None, columns)
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
        """Store the rms of each layer's input, output, update and change at one step of one training run.

        Args:
            variant: "transformed", or "standard" for the user's unchanged model.
            width, seed, step: of the run, and how many optimizer steps were taken before.
            found: what each layer computed at this step.
            first: what each layer computed before the first step, from which the change since then is measured.
        """
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
        """Return every number that was measured, rms of a layer's output, input, update or change, in all runs.

        Each stands with its model variant, width, seed, step and layer name.
        """
        names = self._names()
        return tuple(
            Measurement(series.model, width, seed, series.step, names[series.use], series.statistic, value)
            for series, values in self._values.items()
            for (width, seed), value in values.items()
        )

    def slopes(self) -> tuple[Slope, ...]:
        """Fit an exponent of width to every measured rms of a layer; judge it against what solved exponents predict.

        Returns:
            The slopes: those of the transformed model first, then layers in the order in which they run, then by step.
        """
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
        """log2 of every width at which models are trained, in increasing order."""
        return [math.log2(width) for width in self.widths]

    def _interval(self, expected: Intervals, series: Series) -> Interval | None:
        """Return the interval that is predicted for the exponent of width of one measured rms; None if none is.

        The lower end for an update (rms of dW x) is moved down, since a batch with few rows of input shows less than
        the full growth with fan_in.

        Args:
            expected: predicted interval by (layer, "init", "update", ...).
            series: the layer, and which rms of it.
        """
        interval, terms = expected.get((series.use, series.statistic)), self._terms[series.use]
        is_update = series.statistic == UPDATE and series.use.kind == PRODUCT
        if interval is None or not is_update or len(terms) < len(self.widths):
            return interval
        rows = max(rows for rows, _ in terms.values())
        fan_in = [terms[width][1] for width in self.widths]
        return replace(interval, low=interval.low - shortfall(rows, fan_in, self._log_widths))

    def _slope(self, name: str, series: Series, values: Values, interval: Interval | None) -> Slope:
        """Fit and judge the slope over width, in log2, of one measured rms of one layer: its exponent of width.

        A slope is SKIP if its values are zero or missing at some width, FAIL if a value is not finite. "input" and
        "output" and steps before the last are fitted and not judged (verdict None).

        Args:
            name: name of the layer for the report.
            series: model variant, layer, which rms of it, and step.
            values: measured values by (width, seed).
            interval: slopes that the exponents predict; None to judge nothing.
        """
        statistic, step = series.statistic, series.step
        judged = step == (0 if statistic == INIT else self.steps) and statistic not in (INPUT, OUTPUT)
        seeds = sorted({seed for _, seed in values})
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        slope = Slope(series.model, name, statistic, step, None, 0.0, len(seeds), None, 0.0, low, high)
        if len(values) < len(seeds) * len(self.widths):
            reason = f"{statistic}: not measured at every width, since other rows came in"
            return replace(slope, verdict=Verdict.SKIP, reason=reason)
        if wrong := [width for (width, _), value in values.items() if not math.isfinite(value)]:
            return replace(slope, verdict=Verdict.FAIL, reason=f"{statistic}: not finite at width {wrong[0]}")
        if zero := [width for (width, _), value in values.items() if value == 0.0]:
            verdict = Verdict.SKIP if judged else None
            return replace(slope, verdict=verdict, reason=self._why_zero(series, zero))
        by_seed = {seed: [values[width, seed] for width in self.widths] for seed in seeds}
        found = fit(self._log_widths, by_seed)
        slope = replace(slope, mean=found.mean, error=found.error, tail=found.tail, tail_error=found.tail_error)
        if not judged or interval is None:
            return slope
        verdict, reason = judge(found, interval, statistic)
        return replace(slope, verdict=verdict, reason=reason)

    def _why_zero(self, series: Series, widths: Sequence[int]) -> str:
        """Say why a measured rms is exactly zero at given widths: weight starts at zero, is frozen, or got no gradient.

        Args:
            series: model, layer, which rms of it, and training step.
            widths: the widths at which it is zero.
        """
        where = "at every width" if set(widths) == set(self.widths) else f"at width {min(widths)}"
        if series.statistic == INIT:
            return f"{series.statistic}: exactly zero {where}: its weight, or what comes in, starts at zero"
        if series.use.kind != LOGITS and not self._learns(series.use.parameter):
            return f"{series.statistic}: its weight is frozen"
        later = self._values.get(series._replace(model=TRANSFORMED, step=series.step + 1))
        again = " and is tested at the next step" if later else f" after {series.step} steps; more steps= may reach it"
        return f"{series.statistic}: exactly zero {where}: no gradient has reached it{again}"

    def _learns(self, parameter: str) -> bool:
        """Whether a parameter of the transformed model, given by name, requires a gradient."""
        module = self.models.result(self.widths[-1]).module
        return dict(module.named_parameters())[parameter].requires_grad

    def _names(self) -> dict[Use, str]:
        """Return the name of every layer for the report, by its key (parameter and kind of use).

        A layer is named by its parameter; one that serves both as lookup table and as matrix gets the kind of use
        behind it, and attention logits are named by their module's path.
        """
        paths = logits_names(self.models.result(self.widths[-1]).outcome)
        kinds: dict[str, set[str]] = {}
        for use in self._terms:
            kinds.setdefault(use.parameter, set()).add(use.kind)
        columns = self._columns(self.widths[-1])
        names = {}
        for use in self._terms:
            if use.kind == PRODUCT and use.parameter in columns:
                _, start, size = columns[use.parameter][use.index]
                names[use] = f"{use.parameter} columns {start}:{start + size}"
            elif use.kind == LOGITS:
                path = paths[use.index] if use.index < len(paths) else f"attention {use.index}"
                names[use] = f"{path} ({LOGITS})"
            else:
                names[use] = use.parameter + (f" ({use.kind})" if len(kinds[use.parameter]) > 1 else "")
        return names


def _with_causes(slopes: Sequence[Slope]) -> list[Slope]:
    """Return all slopes (exponents of width), those that fail only for a wrong input with the layer that is to blame.

    The earlier layer is the first one that fails by itself. A later layer is excused (its `cause` is set) if it would
    not fail once its slope is corrected by how far the slope of its input lies above the predicted interval.

    Args:
        slopes: judged slopes, in the order in which layers run.
    """
    inputs = {(s.model, s.node, s.step): s for s in slopes if s.statistic == INPUT}
    first_failure: dict[str, str] = {}
    found = []
    for slope in slopes:
        cause = first_failure.get(slope.model)
        if slope.verdict is Verdict.FAIL and (fitted := slope.fit) is not None and cause not in (None, slope.node):
            entering = inputs.get((slope.model, slope.node, slope.step))
            excess = 0.0
            if entering is not None and entering.mean is not None and entering.high is not None:
                excess = entering.mean - entering.high
            assert slope.interval is not None
            own, _ = judge(fitted.lowered(excess), slope.interval, slope.statistic)
            if own is not Verdict.FAIL:
                reason = f"{slope.reason}; what comes in is off already, see {cause}"
                slope = replace(slope, cause=cause, reason=reason)
        if slope.verdict is Verdict.FAIL and slope.cause is None:
            first_failure.setdefault(slope.model, slope.node)
        found.append(slope)
    return found

"""The coordinate check: trains a model for a few steps at several widths and judges how every layer moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from abcfx.checks.batches import few_tokens
from abcfx.checks.coord_result import CoordCheck
from abcfx.checks.expected_slopes import (
    CHANGE,
    INIT,
    INPUT,
    OUTPUT,
    UPDATE,
    Interval,
    Intervals,
    expected_slopes,
    logits_names,
)
from abcfx.checks.expected_slopes import shortfall as alignment_shortfall
from abcfx.checks.recorder import LOGITS, PRODUCT, Recorder, Seen, Use
from abcfx.checks.slopes import FAIL, INCONCLUSIVE, INFO, SKIP, Slope, fit, judge, worst
from abcfx.checks.sweep_models import STANDARD, TRANSFORMED, MakeModel, ModelSweep, Optimizers, Prepare
from abcfx.errors import InvalidInputError
from abcfx.plan.options import ByRole
from abcfx.support.batch_loss import Loss, default_loss
from abcfx.support.running import call_with_batch, one_thread, seeded
from abcfx.theory.optimizers import Optimizer

MOST_SEEDS = 10
RETESTS = 2  # more steps, where updates are still exactly zero
FORWARD_SEED = 0  # of dropout, alike at every step


def coord_check(
    make_model: MakeModel,
    batch: Any,
    *,
    widths: Sequence[int],
    loss: Loss | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] = "adamw",
    lr: ByRole = 1e-3,
    steps: int = 3,
    seeds: int | Sequence[int] = 3,
    control: bool = True,
    base_width: int | None = None,
    prepare: Prepare | None = None,
    **transform_options: Any,
) -> CoordCheck:
    """Whether every layer of the transformed model starts and learns at a size that does not depend on width.

    At every width and seed the model is transformed and trained for a few steps on one small batch. Three statistics of
    each layer y = W x are followed over width: its size at init, rms((W - W0) x), which a rate that is too large or too
    small moves alike, and rms(W x - W0 x0), what the layer's readers see; of attention, the change of its logits. The
    slopes of their logarithms are compared with those that the solved exponents predict (Yang et al. 2022,
    arXiv 2203.03466, appendix D.1, for the method; docs/checks.md for the intervals).

    Args:
        make_model: builds the model of a width. It must not seed torch itself.
        batch: token ids or features; (inputs, targets); or a dict of keyword arguments, perhaps with labels. At most 16
            tokens of it, or 8 samples, are used, alike at every width and seed.
        widths: at least two; three octaves tell more.
        loss: of (output, batch) to a scalar; by default the model's own, else cross entropy on targets, labels or the
            next token.
        optimizer: as for `transform`.
        lr: base learning rate (absolute), or by role. Slopes are cleanest at small rates.
        steps: optimizer steps; two more where updates are still zero after them.
        seeds: number of seeds, or the seeds themselves. More are added, up to ten, while a slope is inconclusive.
        control: also train the model as written, with the hyperparameters of the base width.
        base_width: where the transform changes nothing; the smallest of `widths` by default.
        prepare: called as prepare(result, width) on the `Transformed` of each width, with the weights of a seed: may
            change `result.module` and may return the optimizer (or several) that is to train it. This is how groups of
            your own are checked.
        transform_options: of `transform`.

    Returns:
        A `CoordCheck`: true where it passes; `print` shows slopes and verdicts, `plot` draws them.

    Raises:
        InvalidInputError: arguments that do not fit; and whatever `transform` raises.
    """
    widths = checked_widths(widths)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or steps < 1:
        raise InvalidInputError(f"coord_check: steps={steps}, seeds={seeds}; expected at least one of each.")
    loss = default_loss if loss is None else loss
    base = widths[0] if base_width is None else base_width
    family = ModelSweep(make_model, batch, base, optimizer, {"lr": lr, **transform_options}, prepare)
    with one_thread():
        family.batch = _probe(family, loss)
        study = _Study(family, widths, loss, steps)
        study.run(TRANSFORMED, chosen)
        if control:
            study.run(STANDARD, chosen)
        slopes = study.slopes()
        while len(chosen) < MOST_SEEDS and worst([s.verdict for s in slopes if s.model == TRANSFORMED]) == INCONCLUSIVE:
            more = [max(chosen) + 1 + i for i in range(min(3, MOST_SEEDS - len(chosen)))]
            study.run(TRANSFORMED, more)
            chosen += more
            slopes = study.slopes()
    return CoordCheck(
        widths=tuple(widths),
        base_width=base,
        seeds=tuple(chosen),
        steps=study.steps,
        slopes=slopes,
        rows=study.rows(),
        notes=tuple(study.notes),
    )


def checked_widths(widths: Sequence[int]) -> list[int]:
    found = sorted(set(widths))
    if len(found) < 2 or found[0] <= 0:
        raise InvalidInputError(f"widths={list(widths)}; expected at least two different positive widths.")
    return found


def _probe(family: ModelSweep, loss: Loss) -> Any:
    """The few tokens that are trained on."""
    model = family.build(family.base_width, 0)

    def runs(part: Any) -> None:
        with seeded(FORWARD_SEED), torch.no_grad():
            loss(call_with_batch(model, part), part)

    return few_tokens(family.batch, runs)


@dataclass
class _Study:
    """The values of every run, and what follows from them."""

    family: ModelSweep
    widths: list[int]
    loss: Loss
    steps: int
    notes: list[str] = field(default_factory=list)
    values: dict[tuple[str, Use, str, int], dict[tuple[int, int], float]] = field(default_factory=dict)
    terms: dict[Use, dict[int, tuple[int, int]]] = field(default_factory=dict)
    uses: dict[Use, None] = field(default_factory=dict)

    def run(self, model: str, seeds: Sequence[int]) -> None:
        """Train at every width and seed. The first run of all finds out after how many steps all layers have moved."""
        for width in self.widths:
            for seed in seeds:
                make = self.family.transformed if model == TRANSFORMED else self.family.standard
                module, optimizers = make(width, seed)
                first = not self.values
                runs = self._train(module, optimizers, RETESTS if first else 0)
                if first:
                    self.steps = len(runs) - 1
                for step, seen in enumerate(runs):
                    self._keep(model, width, seed, step, seen, runs[0])

    def _train(self, module: nn.Module, optimizers: Optimizers, retests: int) -> list[dict[Use, Seen]]:
        """What the recorder saw before each step, and after the last one."""
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        trainable = {name for name, p in module.named_parameters() if p.requires_grad}
        runs: list[dict[Use, Seen]] = []
        while True:
            recorder = Recorder(module, before if runs else None)
            with seeded(FORWARD_SEED), recorder:
                output = call_with_batch(module, self.family.batch)
            runs.append(recorder.found)
            still = any(use.parameter in trainable and not seen.update for use, seen in recorder.found.items())
            if len(runs) > self.steps + (retests if still else 0):
                return runs
            loss = self.loss(output, self.family.batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

    def _keep(
        self, model: str, width: int, seed: int, step: int, found: Mapping[Use, Seen], first: Mapping[Use, Seen]
    ) -> None:
        for use, seen in found.items():
            self.uses.setdefault(use)
            self.terms.setdefault(use, {})[width] = (seen.rows, seen.fan_in)
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
                    self.values.setdefault((model, use, statistic, step), {})[width, seed] = value

    # -- what follows

    def slopes(self) -> list[Slope]:
        result = self.family.result(self.widths[-1])
        expected, names = expected_slopes(result), self._names()
        log_widths = [math.log2(width) for width in self.widths]
        found = []
        for (model, use, statistic, step), values in self.values.items():
            judged = step == (0 if statistic == INIT else self.steps) and statistic not in (INPUT, OUTPUT)
            interval = self._interval(expected, use, statistic, log_widths)
            found.append(self._slope(model, names[use], use, statistic, step, values, interval, judged, log_widths))
        order = {name: i for i, name in enumerate(names.values())}
        found.sort(key=lambda s: (s.model != TRANSFORMED, order[s.node], s.step))
        return _attributed(found)

    def _interval(self, expected: Intervals, use: Use, statistic: str, log_widths: list[float]) -> Interval | None:
        interval = expected.get((use, statistic))
        terms = self.terms[use]
        if interval is None or statistic != UPDATE or use.kind != PRODUCT or len(terms) < len(self.widths):
            return interval
        rows = max(rows for rows, _ in terms.values())
        fan_in = [terms[width][1] for width in self.widths]
        return replace(interval, low=interval.low - alignment_shortfall(rows, fan_in, log_widths))

    def _slope(
        self,
        model: str,
        name: str,
        use: Use,
        statistic: str,
        step: int,
        values: Mapping[tuple[int, int], float],
        interval: Interval | None,
        judged: bool,
        log_widths: list[float],
    ) -> Slope:
        seeds = sorted({seed for _, seed in values})
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        slope = Slope(model, name, statistic, step, None, 0.0, len(seeds), None, low, high, INFO)
        if len(values) < len(seeds) * len(self.widths):
            return replace(slope, verdict=SKIP, reason=f"{statistic}: not at every width: other rows came in")
        if wrong := [(w, v) for (w, _), v in values.items() if not math.isfinite(v)]:
            return replace(slope, verdict=FAIL, reason=f"{statistic}: not finite at width {wrong[0][0]}")
        if zero := [w for (w, _), v in values.items() if v == 0.0]:
            return replace(slope, verdict=SKIP if judged else INFO, reason=self._why_zero(use, statistic, step, zero))
        by_seed = {seed: [values[width, seed] for width in self.widths] for seed in seeds}
        mean, error, tail = fit(log_widths, by_seed)
        slope = replace(slope, mean=mean, error=error, tail=tail)
        if not judged or interval is None:
            return slope
        verdict, reason = judge(mean, error, interval, statistic)
        return replace(slope, verdict=verdict, reason=reason)

    def _why_zero(self, use: Use, statistic: str, step: int, widths: Sequence[int]) -> str:
        where = "at every width" if set(widths) == set(self.widths) else f"at width {min(widths)}"
        if statistic == INIT:
            return f"{statistic}: exactly zero {where}: its weight, or what comes in, starts at zero"
        if use.kind != LOGITS and not self._learns(use.parameter):
            return f"{statistic}: its weight is frozen"
        later = self.values.get((TRANSFORMED, use, statistic, step + 1))
        again = " and is tested at the next step" if later else f" after {step} steps; more steps= may reach it"
        return f"{statistic}: exactly zero {where}: no gradient has reached it{again}"

    def _learns(self, parameter: str) -> bool:
        module = self.family.result(self.widths[-1]).module
        return dict(module.named_parameters())[parameter].requires_grad

    def _names(self) -> dict[Use, str]:
        """Parameter names; a tied parameter has one for each kind of use; attention has its module's path."""
        paths = logits_names(self.family.result(self.widths[-1]).outcome)
        kinds: dict[str, set[str]] = {}
        for use in self.uses:
            kinds.setdefault(use.parameter, set()).add(use.kind)
        names = {}
        for use in self.uses:
            if use.kind == LOGITS:
                path = paths[use.index] if use.index < len(paths) else f"attention {use.index}"
                names[use] = f"{path} ({LOGITS})"
            else:
                names[use] = use.parameter + (f" ({use.kind})" if len(kinds[use.parameter]) > 1 else "")
        return names

    def rows(self) -> list[dict[str, Any]]:
        names = self._names()
        return [
            {
                "model": model,
                "width": width,
                "seed": seed,
                "step": step,
                "node": names[use],
                "statistic": statistic,
                "value": value,
            }
            for (model, use, statistic, step), values in self.values.items()
            for (width, seed), value in values.items()
        ]


def _attributed(slopes: list[Slope]) -> list[Slope]:
    """Says of a layer that fails only because of what comes in, which layer failed before it."""
    inputs = {(s.model, s.node, s.step): s for s in slopes if s.statistic == INPUT}
    causes: dict[str, str] = {}
    found = []
    for slope in slopes:
        entering = inputs.get((slope.model, slope.node, slope.step))
        cause = causes.get(slope.model)
        if slope.verdict == FAIL and slope.mean is not None and cause not in (None, slope.node):
            excess = 0.0
            if entering is not None and entering.mean is not None and entering.high is not None:
                excess = entering.mean - entering.high
            assert slope.low is not None and slope.high is not None
            own, _ = judge(slope.mean - excess, slope.error, Interval(slope.low, slope.high), slope.statistic)
            if own != FAIL:
                slope = replace(slope, cause=cause, reason=f"{slope.reason}; what comes in is off already, see {cause}")
        if slope.verdict == FAIL and slope.cause is None:
            causes.setdefault(slope.model, slope.node)
        found.append(slope)
    return found

"""The training runs of a transfer check, at several widths, learning rates and seeds, and the verdicts on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, linear_regression

from abcfx.checks.curves import Curve, Shift, minimum
from abcfx.checks.slopes import ERRORS, standard_error
from abcfx.checks.sweep import Job, Run, Sweep
from abcfx.checks.transfer_result import TrainingRun
from abcfx.checks.variants import STANDARD, TRANSFORMED, Variant
from abcfx.support.verdict import CheckRow, Verdict

EXTENSIONS = 3  # rounds in which a grid with its minimum on an edge grows by two octaves
MOST_SHIFT = 0.25  # log2 of the best rate per octave of width
SMALL_SHARE = 0.003  # of a loss: less is no difference between widths


class TransferStudy:
    """The training runs of a transfer check, kept by model, width, learning-rate factor and seed.

    Call `train_grid` first, then `curves`, `shifts` or `training_runs`.

    Args:
        sweep: makes the training runs.
        widths: widths of the models, in increasing order.
        seeds: seeds of the runs.
        variants: "transformed", and "standard" for the user's unchanged model.
        same_at: the width at which both variants are the same model, so that one of them need not run; None if there is
            none.
    """

    def __init__(
        self,
        sweep: Sweep,
        widths: Sequence[int],
        seeds: Sequence[int],
        variants: Sequence[Variant],
        same_at: int | None,
    ) -> None:
        self.sweep, self.widths, self.seeds, self.variants, self.same_at = sweep, widths, seeds, variants, same_at
        self._runs: dict[tuple[Variant, int], dict[float, dict[int, Run]]] = {
            (variant, width): {} for variant in variants for width in widths
        }

    def train_grid(self, grid: Sequence[float]) -> None:
        """Train at every width, seed and learning-rate factor, with more factors where the lowest loss lies at an end.

        Args:
            grid: factors on the planned learning rates. Where the lowest loss is at the smallest or largest factor, two
                more are added beyond it, up to three times.
        """
        wanted = {key: list(grid) for key in self._runs}
        for _ in range(1 + EXTENSIONS):
            jobs = [
                Job(variant, width, seed, (("default", factor),))
                for (variant, width), factors in wanted.items()
                if not (variant == STANDARD and width == self.same_at)
                for factor in factors
                for seed in self.seeds
            ]
            for run in self.sweep.run_jobs(jobs, "transfer check") if jobs else ():
                factor = run.job.factors[0][1]
                self._runs[run.job.variant, run.job.width].setdefault(factor, {})[run.job.seed] = run
            if self.same_at is not None and (STANDARD, self.same_at) in self._runs:
                self._runs[STANDARD, self.same_at] = self._runs[TRANSFORMED, self.same_at]
            wanted = {key: more for key in self._runs if (more := list(self._beyond(*key)))}

    def _beyond(self, variant: Variant, width: int) -> Iterator[float]:
        """Yield two learning-rate factors beyond those tried, if the lowest mean loss lies at an end; else none.

        Args:
            variant: "transformed", or "standard" for the user's unchanged model.
            width: width of the model.
        """
        means = self._means(variant, width)
        factors = sorted(means)
        best = min(factors, key=means.__getitem__)
        if best == factors[0]:
            yield from (best / 4, best / 2)
        elif best == factors[-1]:
            yield from (best * 2, best * 4)

    def _means(self, variant: Variant, width: int) -> dict[float, float]:
        """Return learning-rate factor -> mean final loss over seeds, of one model at one width.

        A run that diverged counts with 1.5 times its first loss.

        Args:
            variant: "transformed", or "standard" for the user's unchanged model.
            width: width of the model.
        """
        runs = self._runs[variant, width]
        return {factor: fmean(run.capped for run in by_seed.values()) for factor, by_seed in runs.items()}

    def curves(self) -> tuple[Curve, ...]:
        """Return loss over learning rate of every model ("transformed" first) at every width."""
        return tuple(self._curve(variant, width) for variant in self.variants for width in self.widths)

    def _curve(self, variant: Variant, width: int) -> Curve:
        """Sum up the runs of one model at one width: mean loss by learning-rate factor, best factor, and regret.

        The regret is the loss at the best factor of the smallest width, minus the loss at this width's own best factor.

        Args:
            variant: "transformed", or "standard" for the user's unchanged model.
            width: width of the model.
        """
        runs, means = self._runs[variant, width], self._means(variant, width)
        factors = sorted(means)
        best = min(factors, key=means.__getitem__)
        at_smallest = self._means(variant, self.widths[0])
        best_of_smallest = min(at_smallest, key=at_smallest.__getitem__)
        carried = runs.get(best_of_smallest, runs[best])
        regrets = [carried[seed].capped - runs[best][seed].capped for seed in self.seeds]
        losses = [runs[best][seed].capped for seed in self.seeds]
        return Curve(
            model=variant,
            width=width,
            factors=tuple(factors),
            losses=tuple(means[factor] for factor in factors),
            errors=tuple(standard_error([run.capped for run in runs[factor].values()]) for factor in factors),
            best=2.0 ** minimum(factors, [means[factor] for factor in factors]),
            loss=fmean(losses),
            error=standard_error(losses),
            on_edge=best in (factors[0], factors[-1]),
            regret=fmean(regrets),
            regret_error=standard_error(regrets),
        )

    def shifts(self) -> dict[Variant, Shift]:
        """Return how each model's best learning rate moves with width: slope of log2(best rate) over log2(width)."""
        return {variant: self._shift(variant) for variant in self.variants}

    def _shift(self, variant: Variant) -> Shift:
        """Fit a line to log2(best learning rate) over log2(width) of one model.

        The slope is fitted to curves that are averaged over seeds; its standard error comes from fits to each seed
        alone.

        Args:
            variant: "transformed", or "standard" for the user's unchanged model.
        """
        log_widths = [math.log2(width) for width in self.widths]
        best = [math.log2(self._curve(variant, width).best) for width in self.widths]
        by_seed = []
        for seed in self.seeds:
            minima = []
            for width in self.widths:
                runs = self._runs[variant, width]
                minima.append(minimum(sorted(runs), [runs[factor][seed].capped for factor in sorted(runs)]))
            by_seed.append(linear_regression(log_widths, minima).slope)
        return Shift(linear_regression(log_widths, best).slope, standard_error(by_seed), tuple(by_seed))

    def training_runs(self, centre: float | None) -> tuple[TrainingRun, ...]:
        """Return every training run of the transfer check as plain data.

        Args:
            centre: the absolute learning rate that factor 1 stands for; None where rates differ by role of parameter
                ("embedding", "hidden", ...).
        """
        return tuple(
            TrainingRun(
                variant, width, seed, factor, None if centre is None else centre * factor, run.loss, run.diverged
            )
            for (variant, width), by_factor in self._runs.items()
            for factor, by_seed in sorted(by_factor.items())
            for seed, run in sorted(by_seed.items())
        )


def judge_transfer(curves: Sequence[Curve], shift: Shift) -> tuple[CheckRow, ...]:
    """Judge whether the best learning rate of the transformed model stays the same over widths.

    Args:
        curves: loss over learning rate of the transformed model at each width, in order of width.
        shift: how its best rate moves with width.

    Returns:
        Three rows: "grid" (the best rate lies inside the rates tried at every width), "shift" (it moves by at most 0.25
        log2 per doubling of width) and "loss" (a wider model does not end worse).
    """
    on_edge = [str(curve.width) for curve in curves if curve.on_edge]
    return _judge_grid(on_edge), _judge_shift(shift, measured=not on_edge), _judge_loss(curves)


def _judge_grid(on_edge: Sequence[str]) -> CheckRow:
    """Return the row "grid": INCONCLUSIVE if at some width the lowest loss is at an end of the rates tried, else PASS.

    Args:
        on_edge: these widths, as text.
    """
    if on_edge:
        reason = f"the best rate lies beyond the grid at width {', '.join(on_edge)}"
        return CheckRow(name="grid", verdict=Verdict.INCONCLUSIVE, reason=reason)
    return CheckRow(name="grid", verdict=Verdict.PASS)


def _judge_shift(shift: Shift, measured: bool) -> CheckRow:
    """Return the row "shift": FAIL if the best learning rate surely moves by more than 0.25 log2 per doubling of width.

    It is INCONCLUSIVE if the rate seems to move more, but within two standard errors.

    Args:
        shift: slope of log2(best rate) over log2(width), with its error.
        measured: False gives SKIP: some best rate lies beyond the rates tried.
    """
    if not measured:
        return CheckRow(name="shift", verdict=Verdict.SKIP, reason="not judged: a best rate lies beyond the grid")
    told = f"the best rate moves by {shift.mean:+.2f} ± {shift.error:.2f} log2 per octave of width"
    if abs(shift.mean) - ERRORS * shift.error > MOST_SHIFT:
        return CheckRow(name="shift", verdict=Verdict.FAIL, reason=f"{told}; at most {MOST_SHIFT} is allowed")
    if abs(shift.mean) > MOST_SHIFT:
        reason = f"{told}: too few seeds to tell that from {MOST_SHIFT}"
        return CheckRow(name="shift", verdict=Verdict.INCONCLUSIVE, reason=reason)
    return CheckRow(name="shift", verdict=Verdict.PASS, reason=told)


def _judge_loss(curves: Sequence[Curve]) -> CheckRow:
    """Return the row "loss": WEAK if a model ends with a clearly higher loss than the next narrower one, else PASS."""
    for narrow, wide in pairwise(curves):
        difference = ERRORS * math.hypot(narrow.error, wide.error) + SMALL_SHARE * abs(narrow.loss)
        if wide.loss - narrow.loss > difference:
            told = f"width {wide.width} ends at {wide.loss:.4g}, width {narrow.width} at {narrow.loss:.4g}"
            return CheckRow(name="loss", verdict=Verdict.WEAK, reason=f"wider is worse: {told}")
    return CheckRow(name="loss", verdict=Verdict.PASS)

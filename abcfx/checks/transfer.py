"""The transfer check: where the best learning rate lies at each width, and what the small width's rate costs there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from abcfx.checks.coord import checked_widths
from abcfx.checks.expected_slopes import least_squares
from abcfx.checks.slopes import FAIL, INCONCLUSIVE, PASS, WEAK, standard_error
from abcfx.checks.sweep import Batches, Job, Run, Sweep
from abcfx.checks.sweep_models import STANDARD, TRANSFORMED, MakeModel, ModelSweep, Prepare
from abcfx.checks.transfer_result import Curve, Shift, TransferCheck
from abcfx.errors import InvalidInputError
from abcfx.plan.options import ByRole
from abcfx.support.batch_loss import Loss, default_loss
from abcfx.theory.optimizers import Optimizer

OCTAVES = (-3, -2, -1, 0, 1, 2, 3)
EXTENSIONS = 3  # rounds in which a grid with its minimum on an edge grows by two octaves
MOST_SHIFT = 0.25  # log2 of the best rate per octave of width
ERRORS = 2.0
SMALL_SHARE = 0.003  # of a loss: less is no difference between widths


def transfer_check(
    make_model: MakeModel,
    batches: Batches,
    *,
    widths: Sequence[int],
    loss: Loss | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] = "adamw",
    lr: ByRole = 2.0**-8,
    lrs: Sequence[float] | None = None,
    seeds: int | Sequence[int] = 2,
    steps: int = 60,
    control: bool = True,
    backend: str = "loky",
    n_jobs: int = -1,
    base_width: int | None = None,
    prepare: Prepare | None = None,
    progress: bool | None = None,
    **transform_options: Any,
) -> TransferCheck:
    """Whether the learning rate that is the best at the smallest width is the best at all others.

    Trains at every width, rate and seed. The minimum over rates is that of the parabola through the lowest point and
    its neighbours in log2 lr. Where the lowest point is on an edge the grid grows.

    Args:
        make_model: builds the model of a width. It must not seed torch itself.
        batches: as many as `steps`, in the forms that `coord_check` takes; or a function of the seed that gives them.
            The same at every width and rate. Fresh ones, not one over and over: that would be memorised.
        widths: at least two; three over two octaves tell something.
        loss: of (output, batch) to a scalar; see `coord_check`.
        optimizer: as for `transform`.
        lr: the middle of the grid (absolute), or a dict by role, such as `tune` gives, all of which move together.
        lrs: the grid: absolute rates, or factors on `lr` where that is a dict. By default `lr` times 1/8 to 8 by twos.
        seeds: number of seeds, or the seeds themselves.
        steps: of each run: a tenth of warm-up, then linear decay to 0.
        control: also the model as written, all rates alike at every width.
        backend: of joblib: "loky" (processes on this machine), "dask", "ray", ...; or "sequential", without joblib.
        n_jobs: number of workers; -1 for all. Each uses one thread.
        base_width: where the transform changes nothing; the smallest of `widths` by default.
        prepare: see `coord_check`.
        progress: draw a progress bar; where stderr is a terminal by default.
        transform_options: of `transform`.

    Returns:
        A `TransferCheck`: true where the best rate shifts by no more than 0.25 log2 per octave of width.

    Raises:
        InvalidInputError: arguments that do not fit; and whatever `transform` raises.
    """
    checked = checked_widths(widths)
    base = checked[0] if base_width is None else base_width
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    centre, grid = _grid(lr, lrs)
    family = ModelSweep(make_model, None, base, optimizer, {"lr": lr, **transform_options}, prepare)
    loss = default_loss if loss is None else loss
    sweep = Sweep(family, batches, loss, steps, backend, n_jobs, progress)
    family.batch = sweep.first_batch()
    models = [TRANSFORMED, *([STANDARD] if control else [])]
    study = _Study(sweep, checked, chosen, models, base if prepare is None else None)
    study.run(grid)
    curves = [study.curve(model, width) for model in models for width in checked]
    shifts = {model: study.shift(model) for model in models}
    verdict, reasons = _judge([curve for curve in curves if curve.model == TRANSFORMED], shifts[TRANSFORMED])
    return TransferCheck(
        widths=tuple(checked),
        base_width=base,
        seeds=tuple(chosen),
        steps=steps,
        lr=lr,
        centre=centre,
        curves=curves,
        shifts=shifts,
        verdict=verdict,
        reasons=reasons,
        rows=study.rows(centre),
    )


def _grid(lr: ByRole, lrs: Sequence[float] | None) -> tuple[float | None, list[float]]:
    """(the rate that factor 1 stands for; None for rates by role, and the factors of the grid in increasing order)."""
    centre = None if isinstance(lr, Mapping) else float(lr)
    factors = [2.0**k for k in OCTAVES] if lrs is None else sorted({x / (centre or 1.0) for x in lrs})
    if len(factors) < 3 or factors[0] <= 0:
        raise InvalidInputError(f"lrs={lrs}; expected at least three different positive rates.")
    return centre, factors


class _Study:
    """Runs by model, width, factor on the rate, and seed."""

    def __init__(
        self, sweep: Sweep, widths: list[int], seeds: list[int], models: list[str], same_at: int | None
    ) -> None:
        self.sweep, self.widths, self.seeds, self.models, self.same_at = sweep, widths, seeds, models, same_at
        self.runs: dict[tuple[str, int], dict[float, dict[int, Run]]] = {
            (model, width): {} for model in models for width in widths
        }

    def run(self, grid: Sequence[float]) -> None:
        """The grid, and what it must grow by where its minimum is on an edge."""
        wanted = {key: list(grid) for key in self.runs}
        for _ in range(1 + EXTENSIONS):
            jobs = [
                Job(model, width, seed, (("default", factor),))
                for (model, width), factors in wanted.items()
                if not (model == STANDARD and width == self.same_at)
                for factor in factors
                for seed in self.seeds
            ]
            for run in self.sweep.run(jobs, "transfer check") if jobs else ():
                factor = run.job.factors[0][1]
                self.runs[run.job.model, run.job.width].setdefault(factor, {})[run.job.seed] = run
            if (STANDARD, self.same_at) in self.runs:  # at the base width both are one model
                assert self.same_at is not None
                self.runs[STANDARD, self.same_at] = self.runs[TRANSFORMED, self.same_at]
            wanted = {key: more for key in self.runs if (more := list(self._beyond(*key)))}

    def _beyond(self, model: str, width: int) -> Iterator[float]:
        means = self.means(model, width)
        factors = sorted(means)
        best = min(factors, key=means.__getitem__)
        if best == factors[0]:
            yield from (best / 4, best / 2)
        elif best == factors[-1]:
            yield from (best * 2, best * 4)

    def means(self, model: str, width: int) -> dict[float, float]:
        """Factor -> loss, capped, mean over seeds."""
        runs = self.runs[model, width]
        return {factor: fmean(run.capped for run in by_seed.values()) for factor, by_seed in runs.items()}

    def curve(self, model: str, width: int) -> Curve:
        runs, means = self.runs[model, width], self.means(model, width)
        factors = sorted(means)
        best = min(factors, key=means.__getitem__)
        at_base = self.means(model, self.widths[0])
        base = min(at_base, key=at_base.__getitem__)
        small = runs.get(base, runs[best])
        regrets = [small[seed].capped - runs[best][seed].capped for seed in self.seeds]
        losses = [runs[best][seed].capped for seed in self.seeds]
        return Curve(
            model=model,
            width=width,
            factors=tuple(factors),
            losses=tuple(means[factor] for factor in factors),
            errors=tuple(standard_error([run.capped for run in runs[factor].values()]) for factor in factors),
            best=2.0 ** _minimum(factors, [means[factor] for factor in factors]),
            loss=fmean(losses),
            error=standard_error(losses),
            on_edge=best in (factors[0], factors[-1]),
            regret=fmean(regrets),
            regret_error=standard_error(regrets),
        )

    def shift(self, model: str) -> Shift:
        """Slope of log2 of the best rate over log2 width: of the mean curves, with the standard error over seeds."""
        log_widths = [math.log2(width) for width in self.widths]
        mean = least_squares(log_widths, [math.log2(self.curve(model, width).best) for width in self.widths])
        each = []
        for seed in self.seeds:
            minima = []
            for width in self.widths:
                runs = self.runs[model, width]
                minima.append(_minimum(sorted(runs), [runs[factor][seed].capped for factor in sorted(runs)]))
            each.append(least_squares(log_widths, minima))
        return Shift(mean, standard_error(each), tuple(each))

    def rows(self, centre: float | None) -> list[dict[str, Any]]:
        return [
            {
                "model": model,
                "width": width,
                "seed": seed,
                "factor": factor,
                "lr": None if centre is None else centre * factor,
                "loss": run.loss,
                "diverged": run.diverged,
            }
            for (model, width), by_factor in self.runs.items()
            for factor, by_seed in sorted(by_factor.items())
            for seed, run in sorted(by_seed.items())
        ]


def _minimum(factors: Sequence[float], losses: Sequence[float]) -> float:
    """log2 of where the parabola through the lowest loss and its neighbours is lowest; the lowest one at an edge."""
    i = min(range(len(losses)), key=losses.__getitem__)
    if i in (0, len(losses) - 1):
        return math.log2(factors[i])
    (x0, x1, x2), (y0, y1, y2) = (map(math.log2, factors[i - 1 : i + 2])), losses[i - 1 : i + 2]
    left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)
    if left + right <= 0:
        return x1
    return x1 + (left * (x2 - x1) - right * (x1 - x0)) / (2 * (left + right))


def _judge(curves: Sequence[Curve], shift: Shift) -> tuple[str, tuple[str, ...]]:
    edges = [str(curve.width) for curve in curves if curve.on_edge]
    if edges:
        return INCONCLUSIVE, (f"the best rate lies beyond the grid at width {', '.join(edges)}",)
    told = f"the best rate moves by {shift.mean:+.2f} ± {shift.error:.2f} log2 per octave of width"
    if abs(shift.mean) - ERRORS * shift.error > MOST_SHIFT:
        return FAIL, (f"{told}; at most {MOST_SHIFT} is allowed",)
    if abs(shift.mean) > MOST_SHIFT:
        return INCONCLUSIVE, (f"{told}: too few seeds to tell that from {MOST_SHIFT}",)
    worse = [
        f"width {b.width} ends at {b.loss:.4g}, width {a.width} at {a.loss:.4g}"
        for a, b in pairwise(curves)
        if b.loss - a.loss > ERRORS * math.hypot(a.error, b.error) + SMALL_SHARE * abs(a.loss)
    ]
    return (WEAK, (f"wider is worse: {worse[0]}",)) if worse else (PASS, ())

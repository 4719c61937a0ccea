"""The search for a learning rate and a constant on it for each role, at a small width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from abcfx.checks.slopes import standard_error
from abcfx.checks.sweep import Batches, Job, Sweep
from abcfx.checks.sweep_models import TRANSFORMED, MakeModel, ModelSweep
from abcfx.checks.tune_result import Trial, Tuned
from abcfx.errors import InvalidInputError
from abcfx.support.batch_loss import Loss, default_loss
from abcfx.theory.optimizers import Optimizer
from abcfx.theory.parametrizations import MATRIX_ROLES, ROLES

Point = tuple[float, ...]  # log2 of the factors: of all rates together, then of each role
FIRST_STEP, LAST_STEP = 2.0, 0.5  # octaves
COARSE = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
REACH = 6.0  # octaves to either side, for Optuna
AT_ONCE = 6  # trials that Optuna proposes before it sees results
FRESH_SEEDS = 4  # on which the result is compared with one constant


def tune(
    make_model: MakeModel,
    batches: Batches,
    *,
    width: int,
    roles: Sequence[str] = MATRIX_ROLES,
    budget: int = 80,
    method: str = "coordinate",
    loss: Loss | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] = "adamw",
    lr: float = 2.0**-8,
    seeds: int | Sequence[int] = 2,
    steps: int = 150,
    backend: str = "loky",
    n_jobs: int = -1,
    base_width: int | None = None,
    progress: bool | None = None,
    **transform_options: Any,
) -> Tuned:
    """Find the base learning rate and a constant on it for each role, at a width where runs are cheap.

    First one rate for all is swept. From the best one on, the coordinate search tries every role, and all together, two
    octaves up and down, goes to the best point, adds up moves that help, and halves the step when nothing does. In the
    end the point is compared with the best single rate on seeds that the search has not seen, so that `gain` is not
    flattered by the choice among many.

    Args:
        make_model: builds the model of a width. It must not seed torch itself.
        batches: as for `transfer_check`; a function of the seed is better, since other seeds are used in the end.
        width: where to search. The constants are for the transform to any other width, with this width as base.
        roles: which get a constant of their own; all other parameters take the base rate.
        budget: number of settings to try, each on every seed.
        method: "coordinate" (deterministic), or "optuna" (its TPE sampler; extra `tune`).
        loss: see `coord_check`.
        optimizer: as for `transform`.
        lr: where to start (absolute).
        seeds: number of seeds, or the seeds themselves: the same ones for every setting.
        steps: of each run. Short runs favour large rates.
        backend, n_jobs, progress: as for `transfer_check`.
        base_width: `width` by default.
        transform_options: of `transform`.

    Returns:
        A `Tuned`: a mapping by role, which `transform(lr=...)` and `transfer_check(lr=...)` take.

    Raises:
        InvalidInputError: arguments that do not fit; and whatever `transform` raises.
    """
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles or budget < len(COARSE) + 1 or method not in ("coordinate", "optuna") or not lr > 0:
        raise InvalidInputError(
            f"tune: roles={tuple(roles)}, budget={budget}, method={method!r}, lr={lr}; expected roles among "
            f"{', '.join(ROLES)}, a budget above {len(COARSE)}, method 'coordinate' or 'optuna', and a positive lr."
        )
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    family = ModelSweep(make_model, None, base_width or width, optimizer, {"lr": lr, **transform_options})
    sweep = Sweep(family, batches, default_loss if loss is None else loss, steps, backend, n_jobs, progress)
    family.batch = sweep.first_batch()
    search = _Search(sweep, width, tuple(roles), chosen, budget)
    common = search.common()
    best = search.with_optuna(common) if method == "optuna" else search.by_coordinates(common)
    fresh = [max(chosen) + 1 + i for i in range(FRESH_SEEDS)] if callable(batches) else chosen
    after = _Search(sweep, width, tuple(roles), fresh, 2)
    after.evaluate([common, best], "tune: compare")
    gains = [a - b for a, b in zip(after.losses[common], after.losses[best], strict=True)]
    rates = {"default": lr * 2 ** best[0]}
    rates |= {role: lr * 2 ** (best[0] + x) for role, x in zip(roles, best[1:], strict=True)}
    return Tuned(
        rates=rates,
        single=lr * 2 ** common[0],
        width=width,
        steps=steps,
        seeds=tuple(chosen),
        fresh_seeds=tuple(fresh),
        loss=fmean(after.losses[best]),
        single_loss=fmean(after.losses[common]),
        gain=fmean(gains),
        gain_error=standard_error(gains),
        trials=search.trials(lr),
    )


class _Search:
    """Losses by point, and how the next points are chosen."""

    def __init__(self, sweep: Sweep, width: int, roles: tuple[str, ...], seeds: list[int], budget: int) -> None:
        self.sweep, self.width, self.roles, self.seeds, self.budget = sweep, width, roles, seeds, budget
        self.losses: dict[Point, list[float]] = {}

    def evaluate(self, points: Sequence[Point], title: str = "tune") -> None:
        """Train at points that are new, as far as the budget goes."""
        new = [point for point in dict.fromkeys(points) if point not in self.losses]
        new = new[: max(0, self.budget - len(self.losses))]
        jobs = {Job(TRANSFORMED, self.width, seed, self._factors(point)): point for point in new for seed in self.seeds}
        found = {run.job: run for run in self.sweep.run(list(jobs), title)} if jobs else {}
        for job, point in jobs.items():
            self.losses.setdefault(point, []).append(found[job].capped)

    def _factors(self, point: Point) -> tuple[tuple[str, float], ...]:
        of_roles = zip(self.roles, point[1:], strict=True)
        return ("default", 2.0 ** point[0]), *((role, 2.0 ** (point[0] + x)) for role, x in of_roles)

    def loss(self, point: Point) -> float:
        return fmean(self.losses[point]) if point in self.losses else math.inf

    @property
    def best(self) -> Point:
        return min(self.losses, key=self.loss)

    def common(self) -> Point:
        """The best single rate for all."""
        zeros = (0.0,) * len(self.roles)
        self.evaluate([(x, *zeros) for x in COARSE])
        while (edge := abs(self.best[0])) >= max(abs(p[0]) for p in self.losses) and len(self.losses) < self.budget:
            self.evaluate([(math.copysign(edge + step, self.best[0]), *zeros) for step in (1.0, 2.0)])
        middle = self.best[0]
        self.evaluate([(middle + x, *zeros) for x in (-0.5, 0.5)])
        return self.best

    def by_coordinates(self, start: Point) -> Point:
        at, step = start, FIRST_STEP
        while step >= LAST_STEP and len(self.losses) < self.budget:
            moves = list(self._moves(at, step))
            self.evaluate(moves)
            better = [move for move in moves if self.loss(move) < self.loss(at)]
            if not better:
                step /= 2
                continue
            self.evaluate([_sum_of(at, better, self.loss)])
            at = min([at, *better, _sum_of(at, better, self.loss)], key=self.loss)
        return self.best

    def _moves(self, at: Point, step: float) -> Iterator[Point]:
        for i in range(len(at)):
            for sign in (1, -1):
                yield tuple(x + sign * step if j == i else x for j, x in enumerate(at))

    def with_optuna(self, start: Point) -> Point:
        """Raises InvalidInputError without optuna."""
        try:
            import optuna
        except ImportError as error:
            raise InvalidInputError("method='optuna' needs it.\n  To fix: pip install 'abcfx[tune]'") from error
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            names = ("default", *self.roles)
            reach: optuna.distributions.BaseDistribution = optuna.distributions.FloatDistribution(-REACH, REACH)
            wide = dict.fromkeys(names, reach)
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, multivariate=True))
            for point, losses in self.losses.items():
                if max(map(abs, point)) <= REACH:
                    params = dict(zip(names, point, strict=True))
                    study.add_trial(optuna.create_trial(params=params, distributions=wide, value=fmean(losses)))
            while len(self.losses) < self.budget:
                asked = [study.ask(wide) for _ in range(min(AT_ONCE, self.budget - len(self.losses)))]
                points = [tuple(trial.params[name] for name in names) for trial in asked]
                self.evaluate(points)
                for trial, point in zip(asked, points, strict=True):
                    study.tell(trial, self.loss(point))
        finally:
            optuna.logging.set_verbosity(level)
        return min([start, self.best], key=self.loss)

    def trials(self, lr: float) -> list[Trial]:
        names = ("default", *self.roles)
        found = []
        for point, losses in self.losses.items():
            factors = dict(self._factors(point))
            rates = {name: lr * factors[name] for name in names}
            found.append(Trial(rates, fmean(losses), standard_error(losses)))
        return found


def _sum_of(at: Point, moves: Sequence[Point], loss: Any) -> Point:
    """All moves that help, together: of each coordinate the better one."""
    total = list(at)
    for i in range(len(at)):
        mine = [move for move in moves if move[i] != at[i]]
        if mine:
            total[i] = min(mine, key=loss)[i]
    return tuple(total)

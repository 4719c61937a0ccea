"""`tune`: searches, at a small width, for the learning rates of embedding, hidden layers, readout, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch

from abcfx.checks.slopes import standard_error
from abcfx.checks.sweep import Batches, Job, Run, Sweep
from abcfx.checks.sweep_models import MakeModel, ModelSweep, seeds_of
from abcfx.checks.tune_result import Trial, Tuned
from abcfx.checks.variants import TRANSFORMED
from abcfx.errors import InvalidInputError
from abcfx.pipeline import TransformOptions
from abcfx.support import arguments
from abcfx.support.batch_loss import Loss
from abcfx.support.choices import choose
from abcfx.theory.optimizers import Optimizer
from abcfx.theory.parametrizations import MATRIX_ROLES, ROLES

if TYPE_CHECKING:
    from typing_extensions import Unpack

SearchMethod = Literal["coordinate", "optuna"]
Point = tuple[float, ...]  # log2 of the factors: of all rates together, then of each role
FIRST_STEP, LAST_STEP = 2.0, 0.5  # octaves
COARSE = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
REACH = 6.0  # octaves to either side, for Optuna
AT_ONCE = 6  # trials that Optuna proposes before it sees results
FRESH_SEEDS = 4  # on which the result is compared with one constant


@torch.inference_mode(False)
@arguments.checked(
    width=arguments.whole(), roles=arguments.words, budget=arguments.whole(), lr=arguments.number(above=0)
)
def tune(
    make_model: MakeModel,
    batches: Batches,
    *,
    width: int,
    roles: Sequence[str] = MATRIX_ROLES,
    budget: int = 80,
    method: SearchMethod = "coordinate",
    loss: Loss | None = None,
    optimizer: Optimizer | Mapping[str, Optimizer] = "adamw",
    lr: float = 2.0**-8,
    seeds: int | Sequence[int] = 2,
    steps: int = 150,
    backend: str = "loky",
    n_jobs: int = -1,
    base_width: int | None = None,
    progress: bool | None = None,
    **transform_options: Unpack[TransformOptions],
) -> Tuned:
    """Find the base learning rate, and a factor on it for each role of parameter, at a width where runs are cheap.

    Roles are "embedding", "hidden", "readout" and others. First one rate for all is swept. From the best one on, the
    search tries to change the rate of each role, and of all together, by two octaves up and down; goes to the best
    setting; combines moves that help; and halves the step when nothing does. At the end the result is compared with the
    best single rate on seeds that the search has not seen, so that `gain` is not flattered by the choice among many.

    Main arguments:
        make_model: builds the model of a width. It must not seed torch itself.
        batches: at least `steps` training batches, each `(inputs, targets)`, a dict or inputs alone; or a function of
            the seed that returns them, which is better, since other seeds are used at the end.
        width: where to search. The result serves `transform` for any other width, with this width as base.
        budget: number of settings to try, each on every seed.

    Other arguments:
        roles: which roles get a rate of their own; all other parameters take the base rate.
        method: "coordinate" (the search above, deterministic), or "optuna" (its TPE sampler; extra `tune`).
        loss: function of (output, batch) that returns a scalar, or a loss of torch (`nn.MSELoss()`, `F.mse_loss`),
            which is called with output and targets; by default the model's own loss if it returns one, else cross
            entropy of its outputs (as `transform` chooses them) on targets, labels or the next token.
        optimizer: name, such as "adamw", class or instance of an optimizer, or a dict of role or glob pattern to them.
        lr: absolute rate around which the search starts.
        seeds: number of seeds, or the seeds themselves: the same ones for every setting.
        steps: number of steps of each run. Short runs favour large rates.
        backend: of joblib: "loky" (processes on this machine), "dask", "ray", ...; or "sequential", without joblib.
        n_jobs: number of workers; -1 for as many as there are cores. Each uses one thread.
        progress: whether to draw a progress bar; None draws it if stderr is a terminal.
        base_width: width at which `transform` changes nothing; `width` by default.
        transform_options: passed on to `transform`.

    Returns:
        A `Tuned`: a mapping of role to absolute rate, which `transform(lr=...)` and `transfer_check(lr=...)` take.

    Raises:
        InvalidInputError: arguments that do not fit; and whatever `transform` raises.

    Example:
        >>> import torch
        >>> from abcfx.examples.mlp import make_mlp
        >>> batches = [(torch.randn(8, 64), torch.randint(10, (8,))) for _ in range(5)]
        >>> tuned = tune(make_mlp, batches, width=8, budget=10, seeds=1, steps=5, backend="sequential")
        >>> list(tuned)
        ['default', 'embedding', 'hidden', 'readout']
    """
    method = choose("method", method, get_args(SearchMethod))
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles or budget < len(COARSE) + 1:
        raise InvalidInputError(
            f"tune: roles={tuple(roles)}, budget={budget}, lr={lr}; expected roles among {', '.join(ROLES)}, a budget "
            f"above {len(COARSE)}, and a positive lr."
        )
    chosen = seeds_of(seeds)
    base = width if base_width is None else base_width
    models = ModelSweep(make_model, None, base, optimizer, {"lr": lr, **transform_options})
    sweep = Sweep(models, batches, loss, steps, backend, n_jobs, progress)
    search = RateSearch(sweep, width, tuple(roles), chosen, budget)
    common = search.best_common_rate()
    best = search.with_optuna(common) if method == "optuna" else search.by_coordinates(common)
    fresh = [max(chosen) + 1 + i for i in range(FRESH_SEEDS)] if callable(batches) else chosen
    comparison = RateSearch(sweep, width, tuple(roles), fresh, 2)
    comparison.evaluate([common, best], "tune: compare")
    tuned, single = comparison.losses[best], comparison.losses[common]
    gains = [theirs - ours for theirs, ours in zip(single, tuned, strict=True)]
    return Tuned(
        rows=search.trials(lr),
        rates=search.rates(lr, best),
        single=lr * 2 ** common[0],
        width=width,
        steps=steps,
        seeds=tuple(chosen),
        fresh_seeds=tuple(fresh),
        loss=fmean(tuned),
        single_loss=fmean(single),
        gain=fmean(gains),
        gain_error=standard_error(gains),
    )


class Trainer(Protocol):
    """Anything that can make training runs, such as a `Sweep`: a protocol with one method."""

    def run_jobs(self, jobs: Sequence[Job], title: str) -> list[Run]:
        """Make a training run for each job (model, width, seed, learning rates) and return the runs, in any order.

        Args:
            jobs: the runs to make.
            title: label of the progress bar.
        """


class RateSearch:
    """A search for learning rates: trains at points of a space of rates, keeps their losses, chooses the next ones.

    A point is a tuple of log2 factors on the planned learning rates: first the factor on all rates, then a further one
    for each role of parameter ("embedding", "hidden", ...).

    Args:
        trainer: makes the training runs.
        width: width of the model.
        roles: the roles that get a factor of their own, in the order of a point's coordinates.
        seeds: seeds on which each point is trained.
        budget: largest number of points.

    Attributes:
        losses: final losses at each point, one for each seed, in the order in which points were tried; the loss of a
            run that diverged is limited to 1.5 times its first loss.
    """

    def __init__(self, trainer: Trainer, width: int, roles: tuple[str, ...], seeds: Sequence[int], budget: int) -> None:
        self._trainer, self._width, self._roles, self._seeds, self._budget = trainer, width, roles, seeds, budget
        self.losses: dict[Point, list[float]] = {}

    def evaluate(self, points: Sequence[Point], title: str = "tune") -> None:
        """Train at those of the points that were not tried yet, as far as the budget goes, and keep the losses.

        A point is a tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).

        Args:
            points: tuples of log2 learning-rate factors.
            title: label of the progress bar.
        """
        new = [point for point in dict.fromkeys(points) if point not in self.losses]
        new = new[: max(0, self._budget - len(self.losses))]
        jobs = {
            Job(TRANSFORMED, self._width, seed, tuple(self._factors(point).items())): point
            for point in new
            for seed in self._seeds
        }
        found = {run.job: run for run in self._trainer.run_jobs(list(jobs), title)} if jobs else {}
        for job, point in jobs.items():
            self.losses.setdefault(point, []).append(found[job].capped)

    def _factors(self, point: Point) -> dict[str, float]:
        """Return role -> factor on the planned learning rates at a point; "default" is that of all other roles.

        A point is a tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).
        """
        by_role = {role: 2.0 ** (point[0] + x) for role, x in zip(self._roles, point[1:], strict=True)}
        return {"default": 2.0 ** point[0], **by_role}

    def rates(self, lr: float, point: Point) -> dict[str, float]:
        """Return role -> absolute learning rate at a point of log2 factors; `lr` is the rate for factor 1."""
        return {role: lr * factor for role, factor in self._factors(point).items()}

    def _loss(self, point: Point) -> float:
        """Return the mean loss over seeds at a point; infinity if the point was not tried.

        A point is a tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).
        """
        return fmean(self.losses[point]) if point in self.losses else math.inf

    @property
    def _left(self) -> int:
        """The number of points (settings of learning rates) that the budget of the search still allows."""
        return self._budget - len(self.losses)

    @property
    def best(self) -> Point:
        """The point (log2 learning-rate factors) with the lowest mean loss of all that were tried."""
        return min(self.losses, key=self._loss)

    def best_common_rate(self) -> Point:
        """Sweep one learning-rate factor for all parameters and return the point with the lowest loss.

        The sweep goes on outwards while the best factor is the outermost, then tries half an octave to either side.

        A point is a tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).
        """
        zeros = (0.0,) * len(self._roles)
        self.evaluate([(x, *zeros) for x in COARSE])
        while (edge := abs(self.best[0])) >= max(abs(point[0]) for point in self.losses) and self._left > 0:
            self.evaluate([(math.copysign(edge + step, self.best[0]), *zeros) for step in (1.0, 2.0)])
        middle = self.best[0]
        self.evaluate([(middle + x, *zeros) for x in (-0.5, 0.5)])
        return self.best

    def by_coordinates(self, start: Point) -> Point:
        """Search from a point by changing one learning rate at a time, and return the best point that was ever tried.

        Each round tries every coordinate one step up and down, and all moves that helped together, and continues from
        the best; the step halves when no move helps.

        Args:
            start: tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).
        """
        at, step = start, FIRST_STEP
        while step >= LAST_STEP and self._left > 0:
            moves = list(_moves(at, step))
            self.evaluate(moves)
            better = [move for move in moves if self._loss(move) < self._loss(at)]
            if not better:
                step /= 2
                continue
            together = sum_of_moves(at, better, self._loss)
            self.evaluate([together])
            at = min([at, *better, together], key=self._loss)
        return self.best

    def with_optuna(self, start: Point) -> Point:
        """Search for the best learning rates with Optuna's TPE sampler, which is told every point tried so far.

        A point is a tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).

        Args:
            start: a point to return if nothing better is found.

        Returns:
            The best point.

        Raises:
            InvalidInputError: optuna is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise InvalidInputError("method='optuna' needs it.\n  To fix: pip install 'abcfx[tune]'") from error
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            names = ("default", *self._roles)
            reach: optuna.distributions.BaseDistribution = optuna.distributions.FloatDistribution(-REACH, REACH)
            wide = dict.fromkeys(names, reach)
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, multivariate=True))
            for point, losses in self.losses.items():
                if max(map(abs, point)) <= REACH:
                    params = dict(zip(names, point, strict=True))
                    study.add_trial(optuna.create_trial(params=params, distributions=wide, value=fmean(losses)))
            while self._left > 0:
                asked = [study.ask(wide) for _ in range(min(AT_ONCE, self._left))]
                points = [tuple(trial.params[name] for name in names) for trial in asked]
                self.evaluate(points)
                for trial, point in zip(asked, points, strict=True):
                    study.tell(trial, self._loss(point))
        finally:
            optuna.logging.set_verbosity(level)
        return min([start, self.best], key=self._loss)

    def trials(self, lr: float) -> tuple[Trial, ...]:
        """Return every setting that was tried: absolute rate by role ("hidden", ...), mean loss, and its error.

        Args:
            lr: the absolute rate that factor 1 stands for.
        """
        return tuple(
            Trial(self.rates(lr, point), fmean(losses), standard_error(losses)) for point, losses in self.losses.items()
        )


def _moves(at: Point, step: float) -> Iterator[Point]:
    """Yield the points that differ from `at` in a single coordinate, by `step` up or down.

    A point is a tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).
    """
    for i in range(len(at)):
        for sign in (1, -1):
            yield tuple(x + sign * step if j == i else x for j, x in enumerate(at))


def sum_of_moves(at: Point, moves: Sequence[Point], loss: Callable[[Point], float]) -> Point:
    """Return the point reached by several one-coordinate moves at once; of two along one coordinate, the better.

    A point is a tuple of log2 factors on the learning rates: on all of them, then on each role's ("hidden", ...).

    Args:
        at: the point from which the moves start.
        moves: points that differ from `at` in one coordinate each.
        loss: gives the loss of a point, to compare moves.
    """
    total = list(at)
    for i in range(len(at)):
        along = [move for move in moves if move[i] != at[i]]
        if along:
            total[i] = min(along, key=loss)[i]
    return tuple(total)

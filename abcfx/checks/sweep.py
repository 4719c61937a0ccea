"""Training runs of a sweep, one for each job, in parallel through joblib: on this machine, or a Dask or Ray cluster."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from abcfx.checks.sweep_models import Factors, ModelSweep, Optimizers
from abcfx.checks.variants import Variant
from abcfx.errors import InvalidInputError
from abcfx.report.console import progress_bar
from abcfx.support.batch_loss import Loss
from abcfx.support.running import call_with_batch, one_thread, seeded

Batches = Callable[[int], Iterable[object]] | Iterable[object]
SEQUENTIAL = "sequential"
LAST = 0.2  # of the steps: the loss of a run is their mean
WARM_UP = 0.1
LEAST_STEPS = 5


@dataclass(frozen=True)
class Job:
    """One training run to be made: `factors` multiply the planned rates, by role."""

    variant: Variant
    width: int
    seed: int
    factors: tuple[tuple[str, float], ...]

    @property
    def rates(self) -> Factors:
        """Role -> factor."""
        return dict(self.factors)


@dataclass(frozen=True)
class Run:
    """A job that was run: `loss` is the mean over the last fifth of the steps, `first` that of the first step."""

    job: Job
    loss: float
    first: float

    @property
    def cap(self) -> float:
        """One and a half times the loss before training: a run that ends higher has diverged."""
        return self.first + abs(self.first) / 2

    @property
    def diverged(self) -> bool:
        """Whether the loss is not finite, or above the cap."""
        return not math.isfinite(self.loss) or self.loss > self.cap

    @property
    def capped(self) -> float:
        """The loss, no larger than the cap, so that a run that diverged can stand in a mean and a parabola."""
        return self.cap if self.diverged else self.loss


@dataclass
class Sweep:
    """Everything that the runs of a sweep share; it is sent to the workers, which plan each width once.

    Attributes:
        models: architecture, optimizer and options.
        batches: a list, of which each run takes `steps`; or a function of the seed.
        loss: function of (output, batch).
        steps: of each run: warm-up over a tenth, then linear decay to 0.
        backend: of joblib, or "sequential".
        jobs: number of workers; -1 for as many as there are cores.
        progress: whether to draw a bar; None draws it if stderr is a terminal.
        key: tells this sweep from others in a worker.
    """

    models: ModelSweep
    batches: Batches
    loss: Loss
    steps: int
    backend: str = "loky"
    jobs: int = -1
    progress: bool | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if self.backend == "threading":
            raise InvalidInputError(
                "backend='threading': runs would share torch's random numbers.\n  To fix: backend='loky'"
            )
        if self.steps < LEAST_STEPS:
            raise InvalidInputError(f"steps={self.steps}; expected at least {LEAST_STEPS}.")
        if not callable(self.batches):
            self.batches = list(islice(self.batches, self.steps))
            if len(self.batches) < self.steps:
                raise InvalidInputError(
                    f"batches: {len(self.batches)} for {self.steps} steps, so that runs would memorise them.\n"
                    f"  To fix: give as many as steps, or a function of the seed that returns them."
                )

    def batches_of(self, seed: int) -> Iterable[object]:
        """Return the batches of the runs with a seed."""
        return self.batches(seed) if callable(self.batches) else self.batches

    def first_batch(self) -> object:
        """Return the batch on which models are captured."""
        return next(iter(self.batches_of(0)))

    def run(self, jobs: Sequence[Job], title: str) -> list[Run]:
        """Run the jobs, the widest and so the most expensive first.

        Raises:
            InvalidInputError: joblib is not installed; and whatever a run raises.
        """
        ordered = sorted(jobs, key=lambda job: -job.width)
        with progress_bar(title, len(jobs), self.progress) as advance:
            found = []
            for run in self._results(ordered):
                found.append(run)
                advance()
        return found

    def _results(self, jobs: Sequence[Job]) -> Iterator[Run]:
        if self.backend == SEQUENTIAL:
            return (train(self, job) for job in jobs)
        try:
            from joblib import Parallel, delayed, parallel_config
        except ImportError as error:
            raise InvalidInputError(
                "Sweeps in parallel need joblib.\n  To fix: pip install 'abcfx[sweeps]', or backend='sequential'"
            ) from error
        with parallel_config(backend=self.backend, n_jobs=self.jobs):
            parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            results: Iterator[Run] = parallel(delayed(train)(self, job) for job in jobs)
        return results


_MODELS_BY_SWEEP: dict[str, ModelSweep] = {}  # of this process: those of the sweep that ran last, with their plans


def train(sweep: Sweep, job: Job) -> Run:
    """Make one run, on one thread."""
    if sweep.key not in _MODELS_BY_SWEEP:
        _MODELS_BY_SWEEP.clear()
        _MODELS_BY_SWEEP[sweep.key] = sweep.models
    models = _MODELS_BY_SWEEP[sweep.key]
    with one_thread():
        module, optimizers = models.make(job.variant, job.width, job.seed, job.rates)
        batches = islice(sweep.batches_of(job.seed), sweep.steps)
        with seeded(job.seed):
            losses = _losses(module, optimizers, batches, sweep.loss, sweep.steps)
    last = losses[-max(1, round(len(losses) * LAST)) :]
    complete = len(losses) == sweep.steps
    return Run(job, sum(last) / len(last) if complete else math.inf, losses[0])


def _losses(
    module: torch.nn.Module, optimizers: Optimizers, batches: Iterable[object], loss: Loss, steps: int
) -> list[float]:
    """Train and return the loss before each step; stop early at the first loss that is not finite."""
    warm = max(1, round(steps * WARM_UP))

    def factor(step: int) -> float:
        return min((step + 1) / warm, (steps - step) / max(1, steps - warm))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    losses: list[float] = []
    for batch in batches:
        value = loss(call_with_batch(module, batch), batch)
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            return losses
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        value.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    if len(losses) < steps:
        raise InvalidInputError(
            f"batches: {len(losses)} for {steps} steps.\n  To fix: steps={len(losses)}, or more of them."
        )
    return losses

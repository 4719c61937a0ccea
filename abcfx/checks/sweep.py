"""Training runs of a sweep, one a job, in parallel through joblib: on this machine, or a Dask or Ray cluster."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from abcfx.checks.sweep_models import TRANSFORMED, Factors, ModelSweep, Optimizers
from abcfx.errors import InvalidInputError
from abcfx.report.console import progress_bar
from abcfx.support.batch_loss import Loss
from abcfx.support.running import call_with_batch, one_thread, seeded

Batches = Callable[[int], Iterable[Any]] | Iterable[Any]
SEQUENTIAL = "sequential"
LAST = 0.2  # of the steps: the loss of a run is their mean
WARM_UP = 0.1


@dataclass(frozen=True)
class Job:
    """One training run: `factors` multiply the planned rates, by role."""

    model: str
    width: int
    seed: int
    factors: tuple[tuple[str, float], ...]

    @property
    def rates(self) -> Factors:
        return dict(self.factors)


@dataclass(frozen=True)
class Run:
    """What came of a job: `loss`, the mean over the last fifth of the steps; `first`, that of the first step."""

    job: Job
    loss: float
    first: float

    @property
    def cap(self) -> float:
        """Half as much again as before training."""
        return self.first + abs(self.first) / 2

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.loss) or self.loss > self.cap

    @property
    def capped(self) -> float:
        """The loss, no larger than the cap, so that a run that diverged can stand in a mean and a parabola."""
        return self.cap if self.diverged else self.loss


@dataclass
class Sweep:
    """What all runs of a sweep share; sent to the workers, which plan each width once.

    Attributes:
        family: architecture, optimizer and options.
        batches: a list, of which each run takes `steps`; or a function of the seed.
        loss: of (output, batch).
        steps: of each run: warm-up over a tenth, then linear decay to 0.
        backend: of joblib, or "sequential".
        jobs: number of workers; -1 for as many as there are cores.
        progress: whether to draw a bar; None where stderr is a terminal.
    """

    family: ModelSweep
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
        if self.steps < 5:
            raise InvalidInputError(f"steps={self.steps}; expected at least 5.")
        if not callable(self.batches):
            self.batches = list(islice(self.batches, self.steps))
            if len(self.batches) < self.steps:
                raise InvalidInputError(
                    f"batches: {len(self.batches)} for {self.steps} steps, so that runs would memorise them.\n"
                    f"  To fix: give as many as steps, or a function of the seed that returns them."
                )

    def first_batch(self) -> Any:
        """What the models are captured on."""
        return next(iter(self.batches(0) if callable(self.batches) else self.batches))

    def run(self, jobs: Sequence[Job], title: str) -> list[Run]:
        """Run the jobs, the most expensive first.

        Raises:
            InvalidInputError: joblib is not installed. What a run raises is raised here.
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


_FAMILIES: dict[str, ModelSweep] = {}  # of this process: the one that was used last


def train(sweep: Sweep, job: Job) -> Run:
    """One run, on one thread."""
    if sweep.key not in _FAMILIES:
        _FAMILIES.clear()
        _FAMILIES[sweep.key] = sweep.family
    family = _FAMILIES[sweep.key]
    with one_thread():
        make = family.transformed if job.model == TRANSFORMED else family.standard
        module, optimizers = make(job.width, job.seed, job.rates)
        batches = sweep.batches(job.seed) if callable(sweep.batches) else sweep.batches
        with seeded(job.seed):
            losses = _losses(module, optimizers, islice(batches, sweep.steps), sweep.loss, sweep.steps)
    last = losses[-max(1, round(len(losses) * LAST)) :]
    complete = len(losses) == sweep.steps
    return Run(job, sum(last) / len(last) if complete else math.inf, losses[0])


def _losses(
    module: torch.nn.Module, optimizers: Optimizers, batches: Iterable[Any], loss: Loss, steps: int
) -> list[float]:
    """Of every step before it is taken; fewer than `steps` where one is not finite."""
    warm = max(1, round(steps * WARM_UP))
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda t: min((t + 1) / warm, (steps - t) / max(1, steps - warm)))
        for o in optimizers
    ]
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

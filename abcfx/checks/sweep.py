"""Makes many training runs (widths x learning rates x seeds) in parallel through joblib, here or on a cluster."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import torch

from abcfx.checks.sweep_models import Factors, ModelSweep, Optimizers
from abcfx.checks.variants import Variant
from abcfx.errors import InvalidInputError
from abcfx.report.console import progress_bar
from abcfx.support import arguments
from abcfx.support.batch_loss import Loss
from abcfx.support.choices import choose
from abcfx.support.numbers import check_whole
from abcfx.support.running import call_with_batch, one_thread, seeded

Batches = Callable[[int], Iterable[object]] | Iterable[object]
SEQUENTIAL = "sequential"
LAST = 0.2  # of the steps: the loss of a run is their mean
WARM_UP = 0.1
LEAST_STEPS = 5


@dataclass(frozen=True)
class Job:
    """A description of one training run that is to be made: model variant, width, seed, learning rates.

    Attributes:
        variant: "transformed", or "standard" for the user's unchanged model.
        width: width of the model.
        seed: seed of its weights and its batches.
        factors: pairs (role of a parameter, such as "hidden" or "readout", and the number that multiplies its planned
            learning rate), hashable; the role "default" stands for all roles not named.
    """

    variant: Variant
    width: int
    seed: int
    factors: tuple[tuple[str, float], ...]

    @property
    def factor_of_role(self) -> Factors:
        """Role of a parameter ("hidden", "readout", ...) -> number that multiplies its planned learning rate."""
        return dict(self.factors)


@dataclass(frozen=True)
class Run:
    """A training run that was made, with its job (width, seed, learning rates) and its losses.

    Attributes:
        job: what was run: model variant, width, seed, learning rates.
        loss: mean loss over the last fifth of the steps; infinity if the run stopped early at a loss that is not
            finite.
        first: loss of the first step.
    """

    job: Job
    loss: float
    first: float

    @property
    def cap(self) -> float:
        """One and a half times the loss of the first step: a run that ends above it counts as diverged."""
        return self.first + abs(self.first) / 2

    @property
    def diverged(self) -> bool:
        """Whether the final loss is not finite, or above one and a half times the loss of the first step."""
        return not math.isfinite(self.loss) or self.loss > self.cap

    @property
    def capped(self) -> float:
        """The final loss, or 1.5 times the first loss for a run that diverged, so that means stay finite."""
        return self.cap if self.diverged else self.loss


@dataclass
class Sweep:
    """Everything that many training runs of one architecture share; call `run_jobs` with the jobs.

    A sweep is pickled and sent to worker processes; each worker transforms the model once for each width.

    Attributes:
        models: builds the model at each width, transformed or unchanged, with its optimizers.
        batches: a list of batches, of which each run takes the first `steps`; or a function of the seed that returns
            one.
        loss: function of (output, batch) that returns a scalar; None for that of the outputs of the transformed model.
        steps: number of optimizer steps of each run; the learning rate rises over a tenth of them, then falls linearly
            to 0.
        backend: joblib's backend, such as "loky" (processes), or "sequential" for no joblib at all.
        jobs: number of workers; -1 for as many as there are cores.
        progress: whether to draw a progress bar; None draws it if stderr is a terminal.
        key: a unique id, by which a worker tells this sweep from others.
        training_loss: the function of (output, batch) that every run trains on.
    """

    models: ModelSweep
    batches: Batches
    loss: Loss | None
    steps: int
    backend: str = "loky"
    jobs: int = -1
    progress: bool | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    training_loss: Loss = field(init=False)

    def __post_init__(self) -> None:
        """Check the options, read `steps` batches, if an iterable was given, and choose the loss.

        Raises:
            InvalidInputError: an option does not fit, or there are fewer batches than steps.
        """
        if self.backend == "threading":
            raise InvalidInputError(
                "backend='threading': runs would share torch's random numbers.\n  To fix: backend='loky'"
            )
        self._check_workers()
        check_whole("steps", self.steps)
        if self.steps < LEAST_STEPS:
            raise InvalidInputError(f"steps={self.steps}; expected at least {LEAST_STEPS}.")
        if not callable(self.batches) and not isinstance(self.batches, Iterable):
            raise InvalidInputError(
                f"batches: expected a list of batches, or a function of the seed that returns them; got "
                f"{type(self.batches).__name__}.\n  To fix: batches=[(inputs, targets), ...]"
            )
        if callable(self.batches):
            arguments.refuse_call("batches", self.batches, "a function of the seed", 0)
        else:
            self.batches = self._enough(self.batches)
        self.models.batch = self._first_batch()
        self.training_loss = self.models.loss(self.loss)

    def _check_workers(self) -> None:
        """Check the options `backend` and `jobs`, by which runs are spread over workers, and `progress`.

        Raises:
            InvalidInputError: joblib has no such backend, or the number of workers is 0 or no whole number.
        """
        if not isinstance(self.backend, str):
            raise arguments.wrong("backend", self.backend, "the name of a backend of joblib", "backend='sequential'")
        with suppress(ImportError):  # without joblib the first run says so
            from joblib.parallel import BACKENDS, EXTERNAL_BACKENDS

            self.backend = choose("backend", self.backend, sorted({SEQUENTIAL, *BACKENDS, *EXTERNAL_BACKENDS}))
        check_whole("n_jobs", self.jobs, at_least=-(2**31))
        if self.jobs == 0:
            raise InvalidInputError("n_jobs=0: expected a number of workers, or -1 for all cores.")
        arguments.optional(arguments.flag)("progress", self.progress)

    def batches_of(self, seed: int) -> Iterable[object]:
        """Return the batches for runs with a seed: the same for all seeds unless `batches` is a function."""
        return self._enough(self.batches(seed)) if callable(self.batches) else self.batches

    def _enough(self, batches: object) -> list[object]:
        """Return the first batches of an iterable, one for each step.

        Raises:
            InvalidInputError: there are fewer, or it is no iterable.
        """
        if not isinstance(batches, Iterable) or isinstance(batches, str | bytes):
            raise arguments.wrong("batches", batches, "a list of batches from the function of the seed")
        found = list(islice(batches, self.steps))
        if len(found) < self.steps:
            raise InvalidInputError(
                f"batches: {len(found)} for {self.steps} steps, so that runs would memorise them.\n"
                f"  To fix: give as many as steps, or a function of the seed that returns them."
            )
        return found

    def _first_batch(self) -> object:
        """Return the first batch for seed 0; models are captured (traced) with it."""
        return next(iter(self.batches_of(0)))

    def run_jobs(self, jobs: Sequence[Job], title: str) -> list[Run]:
        """Make the training runs of all jobs in parallel; the widest, which take longest, start first.

        Args:
            jobs: the runs to make.
            title: label of the progress bar.

        Returns:
            One run for each job, in the order in which they end.

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
        """Yield the runs of the jobs as they end: one after the other for the backend "sequential", else by joblib."""
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
    """Make one training run on a single thread, and return its losses; this is what a worker process calls.

    The transformed models of the last sweep are kept in the process, so that each width is transformed once.

    Args:
        sweep: what all runs share: models, batches, loss, number of steps.
        job: model variant, width, seed and learning rates of this run.
    """
    if sweep.key not in _MODELS_BY_SWEEP:
        _MODELS_BY_SWEEP.clear()
        _MODELS_BY_SWEEP[sweep.key] = sweep.models
    models = _MODELS_BY_SWEEP[sweep.key]
    with one_thread():
        module, optimizers = models.make(job.variant, job.width, job.seed, job.factor_of_role)
        batches = islice(sweep.batches_of(job.seed), sweep.steps)
        with seeded(job.seed):
            losses = _losses(module, optimizers, batches, sweep.training_loss, sweep.steps)
    last = losses[-max(1, round(len(losses) * LAST)) :]
    complete = len(losses) == sweep.steps
    return Run(job, sum(last) / len(last) if complete else math.inf, losses[0])


def _losses(
    module: torch.nn.Module, optimizers: Optimizers, batches: Iterable[object], loss: Loss, steps: int
) -> list[float]:
    """Train a model and return the loss before each step; stop early at the first loss that is not finite.

    The learning rates of all optimizers rise linearly over the first tenth of the steps, then fall linearly towards 0.

    Args:
        module: the model.
        optimizers: they step together.
        batches: training batches, one for each step.
        loss: function of (output, batch) that returns a scalar.
        steps: number of steps.

    Raises:
        InvalidInputError: there are fewer batches than steps.
    """
    warm = max(1, round(steps * WARM_UP))

    def factor(step: int) -> float:
        """Return what the learning rates are multiplied by at a step: linear warm-up, then linear decay to 0."""
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

"""The comparison of `abcfx demo`: a small GPT at two widths, as written and transformed, with one learning rate."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.examples.text import VOCABULARY
from abcfx.pipeline import transform
from abcfx.support.running import seeded
from abcfx.transformed import Transformed

LEARNING_RATES = tuple(2.0**-k for k in range(11, 3, -1))
OnStep = Callable[[], None]


@dataclass(frozen=True)
class Task:
    """The model and the training of every run.

    Attributes:
        base_width: width at which the learning rate was tuned.
        width: width to which it is carried.
        lr: the best learning rate at the base width; `abcfx demo --sweep` finds it.
        steps: number of optimizer steps.
        seed: seed of weights and of the order of the text.
        batch, context: number of sequences in a batch, and of characters in a sequence.
        layers, head_dim: size of the GPT apart from its width.
    """

    base_width: int = 64
    width: int = 256
    lr: float = 2.0**-7
    steps: int = 150
    seed: int = 0
    batch: int = 16
    context: int = 64
    layers: int = 2
    head_dim: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.base_width < self.width or self.base_width % self.head_dim or self.width % self.head_dim:
            raise InvalidInputError(
                f"widths {self.base_width} and {self.width}: expected multiples of {self.head_dim}, the width of an "
                f"attention head, and a base that is narrower than the other."
            )
        if self.steps < 1:
            raise InvalidInputError(f"steps={self.steps}; expected at least 1.")
        if not 0 < self.lr < float("inf"):
            raise InvalidInputError(f"lr={self.lr}; expected a positive, finite number.")

    @property
    def widths(self) -> tuple[int, int]:
        """The base width and the width."""
        return self.base_width, self.width


@dataclass(frozen=True)
class Run:
    """One training run; every step saw characters that no step before it had seen.

    Attributes:
        name: "as written" or "transformed".
        width: width of the model.
        lr: learning rate.
        losses: loss of each step, in nats per character.
    """

    name: str
    width: int
    lr: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def draw_batches(task: Task, characters: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (inputs, targets), both (batch, context): pieces of the text in an order that depends on the seed alone."""
    size = task.context + 1
    pieces = characters[: len(characters) // size * size].view(-1, size)
    needed = task.steps * task.batch
    if needed > len(pieces):
        raise InvalidInputError(
            f"{task.steps} steps need {needed} pieces of text and there are {len(pieces)}.\n"
            f"  To fix: at most {len(pieces) // task.batch} steps, so that all steps see only fresh characters"
        )
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(task.seed))
    for picked in order[:needed].view(-1, task.batch):
        ids_BT = pieces[picked].long()
        yield ids_BT[:, :-1], ids_BT[:, 1:]


def build(task: Task, width: int) -> GPT:
    """Build the GPT of a width, its weights drawn from the task's seed."""
    with seeded(task.seed):
        return GPT(GPTConfig(VOCABULARY, task.context, task.layers, task.head_dim, width))


def transform_gpt(task: Task, width: int) -> Transformed:
    """Transform the GPT of a width, so that it takes over the hyperparameters of the base width."""
    example = torch.zeros(2, task.context, dtype=torch.long)
    return transform(build(task, width), example, base=build(task, task.base_width), optimizer="adamw", lr=task.lr)


def decayed(task: Task, step: int) -> float:
    """Return the factor on the learning rate: a tenth of the run is warm-up, then it falls linearly to 0."""
    warmup = max(1, task.steps // 10)
    return min((step + 1) / warmup, (task.steps - step) / max(1, task.steps - warmup))


def train(
    module: nn.Module, groups: Sequence[dict[str, object]], task: Task, characters: torch.Tensor, on_step: OnStep
) -> tuple[float, ...]:
    """Train with AdamW; return the loss of each step before the step is taken."""
    optimizer = torch.optim.AdamW(groups, lr=task.lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decayed(task, step))
    losses = []
    for inputs_BT, targets_BT in draw_batches(task, characters):
        loss = F.cross_entropy(module(inputs_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        on_step()
    return tuple(losses)


@dataclass(frozen=True)
class Trainee:
    """One model before its training, with its optimizer groups."""

    name: str
    task: Task
    width: int
    module: nn.Module
    groups: Sequence[dict[str, object]]


def standard(task: Task, width: int) -> Trainee:
    """Make a trainee of the GPT as written: with its own init and one learning rate for every parameter."""
    model = build(task, width)
    return Trainee("as written", task, width, model, [{"params": list(model.parameters())}])


def transformed(task: Task, width: int, result: Transformed) -> Trainee:
    """Make a trainee of the transformed GPT, with the planned init and groups."""
    return Trainee("transformed", task, width, result.module, result.param_groups)


def train_all(trainees: Sequence[Trainee], characters: torch.Tensor, on_step: OnStep) -> list[Run]:
    """Train models side by side, each on one thread, so that the losses do not depend on the number of cores."""
    stopped = threading.Event()

    def step() -> None:
        if stopped.is_set():
            raise CancelledError
        on_step()

    def run(trainee: Trainee) -> Run:
        torch.set_num_threads(1)  # of this worker thread
        losses = train(trainee.module, trainee.groups, trainee.task, characters, step)
        return Run(trainee.name, trainee.width, trainee.task.lr, losses)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(run, trainee) for trainee in trainees]
        try:
            return [future.result() for future in futures]
        finally:
            stopped.set()  # an error or an interrupt in one run ends the others
            torch.set_num_threads(threads)


def plot(task: Task, runs: Sequence[Run], path: Path) -> None:
    """Draw the loss curves to a PNG; needs matplotlib (the extra `plot`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    colours = {"as written": "tab:red", "transformed": "tab:blue"}
    window = max(1, task.steps // 20)
    for run in runs:
        at_base = run.width == task.base_width
        if at_base and run.name == "transformed":
            continue  # at the base width the transform changes nothing: the curve is that of the model as written
        smooth = torch.tensor(run.losses).unfold(0, window, 1).mean(1)
        label = f"width {run.width}, as written and transformed" if at_base else f"width {run.width}, {run.name}"
        colour, line = ("0.45", "--") if at_base else (colours[run.name], "-")
        axes.plot(range(window, task.steps + 1), smooth, color=colour, linestyle=line, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats per character (mean of {window} steps)")
    axes.set_title(f"A GPT on Python's sources: one learning rate, {task.lr:g}, at two widths")
    axes.set_ylim(top=1.6 * min(min(run.losses) for run in runs))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)

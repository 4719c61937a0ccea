"""What `abcfx demo` compares: a small GPT at two widths, as written and transformed, trained on Python's sources."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.examples.text import VOCABULARY
from abcfx.pipeline import transform
from abcfx.transformed import Transformed

LEARNING_RATES = tuple(2.0**-k for k in range(11, 3, -1))
OnStep = Callable[[], None]


@dataclass(frozen=True)
class Task:
    """What is trained. `lr` is the best one at `base_width`; `abcfx demo --sweep` finds it."""

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
        if not 0 < self.base_width <= self.width or self.base_width % self.head_dim or self.width % self.head_dim:
            raise InvalidInputError(
                f"widths {self.base_width} and {self.width}: expected multiples of {self.head_dim}, the width of an "
                f"attention head, and a base that is no wider than the other."
            )
        if self.steps < 1:
            raise InvalidInputError(f"steps={self.steps}; expected at least 1.")
        if not 0 < self.lr < float("inf"):
            raise InvalidInputError(f"lr={self.lr}; expected a positive, finite number.")

    @property
    def widths(self) -> tuple[int, int]:
        return self.base_width, self.width


@dataclass(frozen=True)
class Run:
    """One training run: `losses` in nats per character, one for each step, each on characters not seen before."""

    name: str
    width: int
    lr: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean of the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def draw_batches(task: Task, characters: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(inputs, targets), both (batch, context), of windows in random order; the same ones for every run of a seed."""
    size = task.context + 1
    windows = characters[: len(characters) // size * size].view(-1, size)
    needed = task.steps * task.batch
    if needed > len(windows):
        raise InvalidInputError(
            f"{task.steps} steps need {needed} windows of text and there are {len(windows)}; "
            f"at most {len(windows) // task.batch} steps see only fresh characters."
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(task.seed))
    for picked in order[:needed].view(-1, task.batch):
        ids_BT = windows[picked].long()
        yield ids_BT[:, :-1], ids_BT[:, 1:]


def build(task: Task, width: int) -> GPT:
    """The GPT at a width, drawn from the task's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        return GPT(GPTConfig(VOCABULARY, task.context, task.layers, task.head_dim, width))


def transform_gpt(task: Task, width: int) -> Transformed:
    """The GPT of a width, its hyperparameters carried over from the base width."""
    example = torch.zeros(2, task.context, dtype=torch.long)
    return transform(build(task, width), example, base=build(task, task.base_width), optimizer="adamw", lr=task.lr)


def train(
    module: nn.Module, groups: Sequence[dict[str, Any]], task: Task, characters: torch.Tensor, on_step: OnStep
) -> tuple[float, ...]:
    """AdamW, a tenth of warm-up, then linear decay to 0; returns the loss of each step before it is taken."""
    optimizer = torch.optim.AdamW(groups, lr=task.lr, betas=(0.9, 0.95), weight_decay=0.0)
    warm = max(1, task.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (task.steps - step) / max(1, task.steps - warm))
    )
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
    """What one run trains: a module and its optimizer groups."""

    name: str
    task: Task
    width: int
    module: nn.Module
    groups: Sequence[dict[str, Any]]


def standard(task: Task, width: int) -> Trainee:
    """The GPT as written: its own init, one learning rate for every parameter."""
    model = build(task, width)
    return Trainee("as written", task, width, model, [{"params": list(model.parameters())}])


def transformed(task: Task, width: int, result: Transformed) -> Trainee:
    return Trainee("transformed", task, width, result.module, result.param_groups)


def train_all(trainees: Sequence[Trainee], characters: torch.Tensor, on_step: OnStep) -> list[Run]:
    """Trains side by side, each run on one thread, so that its figures do not depend on the number of cores."""
    stopped = threading.Event()

    def step() -> None:
        if stopped.is_set():
            raise CancelledError
        on_step()

    def run(trainee: Trainee) -> Run:
        torch.set_num_threads(1)
        losses = train(trainee.module, trainee.groups, trainee.task, characters, step)
        return Run(trainee.name, trainee.width, trainee.task.lr, losses)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(run, trainee) for trainee in trainees]
        try:
            return [future.result() for future in futures]
        finally:
            stopped.set()  # an error or an interrupt in one ends the others
            torch.set_num_threads(threads)


def plot(task: Task, runs: Sequence[Run], path: Path) -> None:
    """Draws the loss curves to a PNG; needs matplotlib (the `plot` extra)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    colours = {"as written": "tab:red", "transformed": "tab:blue"}
    window = max(1, task.steps // 20)
    for run in runs:
        narrow = run.width == task.base_width
        smooth = torch.tensor(run.losses).unfold(0, window, 1).mean(1)
        if narrow and run.name == "transformed":
            continue  # the same curve: at the base width the transform is the identity
        label = f"width {run.width}, as written and transformed" if narrow else f"width {run.width}, {run.name}"
        colour = "0.45" if narrow else colours[run.name]
        axes.plot(range(window, task.steps + 1), smooth, color=colour, linestyle="--" if narrow else "-", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats per character (mean of {window} steps)")
    axes.set_title(f"A GPT on Python's sources: one learning rate, {task.lr:g}, at two widths")
    axes.set_ylim(top=1.6 * min(min(run.losses) for run in runs))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)

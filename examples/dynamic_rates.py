"""Does it help if rates follow the measured alignment? The small GPT of `abcfx demo`, each variant at its own best lr.

python -m abcfx.examples.dynamic_rates --out out        (ten minutes on one core)
python -m abcfx.examples.dynamic_rates --steps 10 --seeds 2 --tuning-seeds 1     (half a minute)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F

import abcfx
from abcfx.examples.demo import Task, build, decayed, draw_batches
from abcfx.examples.text import read_characters
from abcfx.support.running import one_thread

MATRICES = ("hidden", "readout")
RATIOS = (2.0**-2, 2.0**-4)
START = 2.0**-7
TUNING_SEED = 1000  # the first seed for tuning; those that are reported begin at 0


@dataclass(frozen=True)
class Variant:
    """One way to choose the learning rates.

    Attributes:
        name: name of the variant.
        ratio: rate of matrices over that of embeddings and vectors.
        follows: whether rates follow the measured alignment.
        center: option of DynamicAlignment.
        ramp: factor on the rates of all matrices, by step.
    """

    name: str
    ratio: float = 1.0
    follows: bool = False
    center: bool = True
    ramp: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trained:
    """One training run.

    Attributes:
        loss: mean of the last tenth of the steps, nats per character.
        factors: mean factor on the rates of matrices, by step.
    """

    loss: float
    factors: tuple[float, ...]


def train(variant: Variant, task: Task, characters: torch.Tensor, plot: Path | None = None) -> Trained:
    """Train once with AdamW, every batch new.

    Args:
        variant: how the learning rates are chosen.
        task: model and training.
        characters: the text.
        plot: where to draw alignments and rates of every layer, if they are measured.
    """
    lr = {"default": task.lr} | dict.fromkeys(MATRICES, task.lr * variant.ratio)
    example = torch.zeros(2, task.context, dtype=torch.long)
    model, base = build(task, task.width), build(task, task.base_width)
    result = abcfx.transform(
        model, example, base=base, optimizer="adamw", lr=lr, capture=abcfx.Capture(method="symbolic", verify=False)
    )
    optimizer = torch.optim.AdamW(result.groups(per_parameter=True), betas=(0.9, 0.95), weight_decay=0.0)

    def scheduled(step: int) -> float:
        return decayed(task, step)

    def ramped(step: int) -> float:
        return decayed(task, step) * variant.ramp[min(step, len(variant.ramp) - 1)]

    roles = [result.plan[group["param_names"][0]].role for group in optimizer.param_groups]
    shapes = [ramped if variant.ramp and role in MATRICES else scheduled for role in roles]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, list(shapes))
    batches = list(draw_batches(task, characters))
    dynamic = None
    if variant.follows:
        dynamic = abcfx.DynamicAlignment(result, optimizer, total_steps=task.steps, every=10, center=variant.center)
        dynamic.capture_initial(batches[0][0])
    losses, factors = [], []
    for inputs_BT, targets_BT in batches:
        now = dynamic.factors.values() if dynamic is not None else ()
        factors.append(math.exp(mean(map(math.log, now))) if now else 1.0)
        loss = F.cross_entropy(result.module(inputs_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if dynamic is not None:
            dynamic.step()
        losses.append(loss.item())
    if dynamic is not None and plot is not None:
        dynamic.plot(str(plot))
    return Trained(mean(losses[-max(1, task.steps // 10) :]), tuple(factors))


def best_lr(loss_at: Callable[[float], float], start: float) -> tuple[float, float]:
    """Find a minimum of the loss over octaves of the rate; return (lr, loss), with both neighbours tried and worse."""
    tried = {start: loss_at(start)}
    while True:
        best = min(tried, key=lambda lr: tried[lr])
        missing = [lr for lr in (best / 2, best * 2) if lr not in tried]
        if not missing:
            return best, tried[best]
        tried[missing[0]] = loss_at(missing[0])


@dataclass(frozen=True)
class Row:
    """One variant in the table: its best base rate, its ratio, and the loss of every seed."""

    name: str
    lr: float
    ratio: float
    losses: tuple[float, ...]


@dataclass
class Comparison:
    """The variants, each tuned on seeds of its own and then trained from every reported seed.

    Attributes:
        task: model and training; its rate and seed are replaced.
        seeds, tuning_seeds: number of seeds for the table and for tuning.
        out: folder for figures of single runs.
        say: prints a line.
        rows: the table so far; the first row is the static variant, with which the others are compared.
    """

    task: Task
    seeds: int
    tuning_seeds: int
    out: Path | None
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    characters: torch.Tensor = field(default_factory=read_characters)

    def run(self) -> list[Row]:
        """Tune and train all variants."""
        static = Variant("static")
        lr, _ = self.tune(static, START)
        self.report(static, lr)
        tuned = {ratio: self.tune(Variant("static tuned", ratio), lr / math.sqrt(ratio)) for ratio in RATIOS}
        ratio = min(tuned, key=lambda ratio: tuned[ratio][1])
        self.report(Variant("static tuned", ratio), tuned[ratio][0])
        for variant, start in (
            (Variant("dynamic centred", follows=True), lr),
            (Variant("dynamic tuned", ratio, follows=True), tuned[ratio][0]),
        ):
            self.report(variant, self.tune(variant, start)[0])
        raw = Variant("dynamic not centred", follows=True, center=False)
        lr_raw, _ = self.tune(raw, lr / 2)
        self.report(raw, lr_raw)
        ramp = Variant("canned ramp", ramp=self.train(raw, lr_raw, TUNING_SEED).factors)
        self.report(ramp, self.tune(ramp, lr_raw)[0])
        return self.rows

    def train(self, variant: Variant, lr: float, seed: int, plot: Path | None = None) -> Trained:
        """Train a variant from a seed."""
        return train(variant, replace(self.task, lr=lr, seed=seed), self.characters, plot)

    def tune(self, variant: Variant, start: float) -> tuple[float, float]:
        """Find the best base rate of a variant; return it with its loss."""

        def loss_at(lr: float) -> float:
            loss = mean(self.train(variant, lr, TUNING_SEED + k).loss for k in range(self.tuning_seeds))
            self.say(f"  {variant.name}, ratio {variant.ratio:g}, lr 2^{math.log2(lr):g}: {loss:.4f}")
            return loss

        return best_lr(loss_at, start)

    def report(self, variant: Variant, lr: float) -> None:
        """Train a variant from every reported seed and add its row."""
        plot = None if self.out is None else self.out / f"{variant.name.replace(' ', '_')}_layers.png"
        losses = [self.train(variant, lr, seed, plot if seed == 0 else None).loss for seed in range(self.seeds)]
        self.rows.append(Row(variant.name, lr, variant.ratio, tuple(losses)))
        self.say(_line(self.rows[-1], self.rows[0]))


def _line(row: Row, static: Row) -> str:
    gains = [ours - theirs for ours, theirs in zip(row.losses, static.losses, strict=True)]
    at = f"lr 2^{math.log2(row.lr):g}, ratio {row.ratio:g}"
    return f"{row.name:20} {at:22} {_with_error(row.losses)}   against static {_with_error(gains, '+')}"


def _with_error(values: Sequence[float], sign: str = "") -> str:
    """Write a mean with its standard error."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):{sign}.4f} +- {error:.4f}"


def plot_losses(rows: Sequence[Row], path: Path) -> None:
    """Draw the loss of each variant minus the static one's, seed by seed, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    for k, row in enumerate(rows):
        gains = [ours - theirs for ours, theirs in zip(row.losses, rows[0].losses, strict=True)]
        axes.plot(gains, [k] * len(gains), "o", color="0.75", markersize=4)
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        axes.errorbar(mean(gains), k, xerr=error, fmt="s", color="tab:blue", capsize=3)
    axes.axvline(0.0, color="0.6", lw=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("loss minus that of the static rates, nats per character (dots: seeds)")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the comparison as the command line says, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-width", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--tuning-seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for figures and the table as JSON; needs matplotlib")
    options = parser.parse_args(argv)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    task = Task(base_width=options.base_width, width=options.width, steps=options.steps)
    with one_thread():
        say = partial(print, flush=True)
        rows = Comparison(task, options.seeds, options.tuning_seeds, options.out, say).run()
    if options.out is not None:
        plot_losses(rows, options.out / "losses.png")
        (options.out / "losses.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return rows


if __name__ == "__main__":
    main()

"""What rates that follow measured alignment are worth: the small GPT of `abcfx demo`, each variant at its own best lr.

python -m abcfx.examples.dynamic_rates --out out        (ten minutes on one core)
python -m abcfx.examples.dynamic_rates --steps 10 --seeds 2 --tuning-seeds 1     (half a minute)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F

import abcfx
from abcfx.examples.demo import Task, build, draw_batches
from abcfx.examples.text import read_characters

MATRICES = ("hidden", "readout")
RATIOS = (1.0, 2.0**-2, 2.0**-4)
START = 2.0**-7
TUNING_SEED = 1000  # not among those that are reported


@dataclass(frozen=True)
class Variant:
    """`ratio`: rate of matrices over that of embeddings and vectors. `dynamic`: options of DynamicAlignment.

    `ramp`: by step, a factor on the rates of all matrices.
    """

    name: str
    ratio: float = 1.0
    dynamic: Mapping[str, Any] | None = None
    ramp: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """`loss`: mean of the last tenth of the steps, nats per character. `factors`: by step, mean over matrices."""

    loss: float
    factors: tuple[float, ...]


def train(variant: Variant, task: Task, characters: torch.Tensor, plot: Path | None = None) -> Outcome:
    """One run: AdamW, a tenth of warm-up, linear decay to 0, every batch new."""
    lr = {"default": task.lr} | dict.fromkeys(MATRICES, task.lr * variant.ratio)
    example = torch.zeros(2, task.context, dtype=torch.long)
    model, base = build(task, task.width), build(task, task.base_width)
    result = abcfx.transform(
        model, example, base=base, optimizer="adamw", lr=lr, capture=abcfx.Capture(method="symbolic", verify=False)
    )
    optimizer = torch.optim.AdamW(result.groups(per_parameter=True), betas=(0.9, 0.95), weight_decay=0.0)
    warm = max(1, task.steps // 10)

    def scheduled(step: int) -> float:
        return min((step + 1) / warm, (task.steps - step) / max(1, task.steps - warm))

    def ramped(step: int) -> float:
        return scheduled(step) * variant.ramp[min(step, len(variant.ramp) - 1)]

    roles = [result.spec[group["param_names"][0]]["role"] for group in optimizer.param_groups]
    shapes = [ramped if variant.ramp and role in MATRICES else scheduled for role in roles]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, list(shapes))
    batches = list(draw_batches(task, characters))
    dynamic = None
    if variant.dynamic is not None:
        dynamic = abcfx.DynamicAlignment(result, optimizer, total_steps=task.steps, **variant.dynamic)
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
    return Outcome(mean(losses[-max(1, task.steps // 10) :]), tuple(factors))


def best_lr(loss_at: Callable[[float], float], start: float) -> tuple[float, float]:
    """(lr, loss) of a minimum over octaves: both neighbours of it were tried and are worse."""
    tried = {start: loss_at(start)}
    while True:
        best = min(tried, key=lambda lr: tried[lr])
        missing = [lr for lr in (best / 2, best * 2) if lr not in tried]
        if not missing:
            return best, tried[best]
        tried[missing[0]] = loss_at(missing[0])


@dataclass(frozen=True)
class Row:
    """One variant: its best base lr, the ratio it has, and the loss of every seed."""

    name: str
    lr: float
    ratio: float
    losses: tuple[float, ...]


def compare(task: Task, seeds: int, tuning_seeds: int, out: Path | None, say: Callable[[str], None]) -> list[Row]:
    """Tunes each variant on seeds of its own, then trains it at every reported seed."""
    characters = read_characters()
    rows: list[Row] = []

    def tuned(variant: Variant, start: float) -> tuple[float, float]:
        def loss_at(lr: float) -> float:
            runs = [
                train(variant, replace(task, lr=lr, seed=TUNING_SEED + k), characters).loss for k in range(tuning_seeds)
            ]
            say(f"  {variant.name}, ratio {variant.ratio:g}, lr 2^{math.log2(lr):g}: {mean(runs):.4f}")
            return mean(runs)

        return best_lr(loss_at, start)

    def report(variant: Variant, lr: float) -> None:
        plot = out / f"{variant.name.replace(' ', '_')}_layers.png" if out is not None else None
        losses = [
            train(variant, replace(task, lr=lr, seed=seed), characters, plot if seed == 0 else None).loss
            for seed in range(seeds)
        ]
        rows.append(Row(variant.name, lr, variant.ratio, tuple(losses)))
        say(_line(rows[-1], rows[0]))

    static = Variant("static")
    lr, _ = tuned(static, START)
    report(static, lr)
    found = {ratio: tuned(Variant("static tuned", ratio), lr / math.sqrt(ratio)) for ratio in RATIOS[1:]}
    ratio = min(found, key=lambda r: found[r][1])
    report(Variant("static tuned", ratio), found[ratio][0])

    def dynamic(name: str, **options: Any) -> Variant:
        return Variant(name, options.pop("ratio", 1.0), {"every": 10, **options})

    for variant in (dynamic("dynamic centred"), dynamic("dynamic tuned", ratio=ratio)):
        report(variant, tuned(variant, lr if variant.ratio == 1 else found[ratio][0])[0])
    raw = dynamic("dynamic not centred", center=False)
    lr_raw, _ = tuned(raw, lr / 2)
    report(raw, lr_raw)
    profile = train(raw, replace(task, lr=lr_raw, seed=TUNING_SEED), characters).factors
    ramp = Variant("canned ramp", ramp=profile)
    report(ramp, tuned(ramp, lr_raw)[0])
    return rows


def _line(row: Row, static: Row) -> str:
    gains = [ours - theirs for ours, theirs in zip(row.losses, static.losses, strict=True)]
    at = f"lr 2^{math.log2(row.lr):g}, ratio {row.ratio:g}"
    return f"{row.name:20} {at:22} {_with_error(row.losses)}   against static {_with_error(gains, '+')}"


def _with_error(values: Sequence[float], sign: str = "") -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):{sign}.4f} +- {error:.4f}"


def plot_losses(rows: Sequence[Row], path: Path) -> None:
    """Loss of each variant against the static one's, seed by seed, with standard errors."""
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
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        task = Task(base_width=options.base_width, width=options.width, steps=options.steps)
        rows = compare(task, options.seeds, options.tuning_seeds, options.out, lambda line: print(line, flush=True))
    finally:
        torch.set_num_threads(threads)
    if options.out is not None:
        plot_losses(rows, options.out / "losses.png")
        (options.out / "losses.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return rows


if __name__ == "__main__":
    main()

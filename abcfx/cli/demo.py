"""`abcfx demo`: trains a small GPT at two widths, as written and transformed, with one learning rate."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from abcfx.cli.shared import PAGE_WIDTH, Command, make_table, print_json, print_text
from abcfx.examples import demo
from abcfx.examples.text import read_characters
from abcfx.report.console import progress_bar
from abcfx.report.text import render
from abcfx.support.files import writable_folder

SWEEP_SEEDS = 3
HELP = "Train a GPT on Python's own sources at two widths, as written and transformed, with one learning rate."


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx demo`."""
    task = demo.Task()
    for name, kind, what in (
        ("base-width", int, "width at which the learning rate was tuned"),
        ("width", int, "width to which it is carried"),
        ("lr", float, "learning rate; the default is the best of --sweep"),
        ("steps", int, "steps of each run"),
        ("seed", int, "of weights and order of text"),
    ):
        default = getattr(task, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what} (default: {default})")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (default: out)")
    parser.add_argument("--no-plot", action="store_true", help="draw no picture")
    parser.add_argument("--sweep", action="store_true", help="only tune: the base width at several learning rates")


def _run(arguments: argparse.Namespace, console: Console) -> None:
    """Run `abcfx demo`: train a GPT at two widths, untransformed and transformed, and print the losses."""
    task = demo.Task(arguments.base_width, arguments.width, arguments.lr, arguments.steps, arguments.seed)
    if arguments.sweep:
        _sweep(task, arguments.json, console)
        return
    picture = _picture(arguments, console)
    characters = read_characters()
    results = {width: demo.transform_gpt(task, width) for width in task.widths}
    if not arguments.json:
        print_text(render(results[task.width].outcome, min(PAGE_WIDTH, console.width)) + "\n", console)
    with progress_bar("training", 2 * len(task.widths) * task.steps) as step:
        trainees = [demo.standard(task, width) for width in task.widths]
        trainees += [demo.transformed(task, width, results[width]) for width in task.widths]
        runs = demo.train_all(trainees, characters, step)
    if picture is not None:
        demo.plot(task, runs, picture)
    if arguments.json:
        found = [{"model": run.name, "width": run.width, "lr": run.lr, "loss": run.loss} for run in runs]
        print_json({"task": dataclasses.asdict(task), "runs": found, "picture": picture and str(picture)}, console)
        return
    _print_losses(task, runs, console)
    if picture is not None:
        print_text(f"Curves: {picture}", console)


def _picture(arguments: argparse.Namespace, console: Console) -> Path | None:
    """Return the path of the picture that `abcfx demo` draws, or None for none; say so if matplotlib is missing."""
    if arguments.no_plot:
        return None
    if find_spec("matplotlib") is None:
        if not arguments.json:
            print_text("No picture: matplotlib is missing. To fix: pip install 'abcfx[plot]'\n", console)
        return None
    return writable_folder("--out", arguments.out) / "demo.png"


def _print_losses(task: demo.Task, runs: Sequence[demo.Run], console: Console) -> None:
    """Print the last loss of every run of the demo, and its difference to the same kind of model at the base width.

    Args:
        task: the text, model and training of the demo.
        runs: the training runs.
        console: where to print.
    """
    table = make_table("model", "width", "lr", "loss", f"against width {task.base_width}", left=("model",))
    base = {run.name: run.loss for run in runs if run.width == task.base_width}
    for run in runs:
        table.add_row(run.name, str(run.width), f"{run.lr:.4g}", f"{run.loss:.3f}", f"{run.loss - base[run.name]:+.3f}")
    console.print(
        f"Loss in nats per character, mean of the last tenth of {task.steps} steps, each on text not seen before. "
        f"What to look for: at width {task.base_width} the transform changes nothing, so both losses are the same; "
        f"at width {task.width}, with the same learning rate, the transformed model should be the best of all.\n"
    )
    console.print(table)


def _sweep(task: demo.Task, as_json: bool, console: Console) -> None:
    """Train the demo's model at the base width at several learning rates, with three seeds; print the losses."""
    characters = read_characters()
    seeds = range(task.seed, task.seed + SWEEP_SEEDS)
    table = make_table("lr", *(f"seed {seed}" for seed in seeds), "mean")
    means = {}
    with progress_bar("tuning", len(demo.LEARNING_RATES) * SWEEP_SEEDS * task.steps) as step:
        for lr in demo.LEARNING_RATES:
            tasks = [dataclasses.replace(task, lr=lr, seed=seed) for seed in seeds]
            runs = demo.train_all([demo.standard(t, t.base_width) for t in tasks], characters, step)
            means[lr] = sum(run.loss for run in runs) / len(runs)
            table.add_row(f"{lr:.4g}", *(f"{run.loss:.3f}" for run in runs), f"{means[lr]:.3f}")
    if as_json:
        print_json({"loss": means, "best": min(means, key=means.__getitem__)}, console)
        return
    console.print(f"The GPT as written at width {task.base_width}: loss after {task.steps} steps, nats per character\n")
    console.print(table)
    console.print(f"Best: --lr {min(means, key=means.__getitem__):g}")


COMMAND = Command("demo", HELP, _add_arguments, _run)

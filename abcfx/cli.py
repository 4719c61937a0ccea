"""The command `abcfx`: parses arguments, shows progress, prints; the only place of the library that prints."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from abcfx import demo
from abcfx.errors import AbcfxError
from abcfx.report import render

REPORT_WIDTH = 100
SWEEP_SEEDS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, or 1 with one readable message on stderr."""
    arguments = _parser().parse_args(argv)
    errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    try:
        command: Callable[[argparse.Namespace, Console], None] = arguments.run
        command(arguments, _console())
    except KeyboardInterrupt:
        errors.print("abcfx: interrupted")
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        kind = "" if isinstance(error, AbcfxError) else f"{type(error).__name__}: "
        errors.print(f"abcfx: {kind}{error}")
        if kind:
            errors.print("  --debug shows where")
        return 1
    return 0


def _console() -> Console:
    """Stdout: as wide as the terminal, or REPORT_WIDTH where there is none (a file, a pipe)."""
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=REPORT_WIDTH)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="abcfx", description="Hyperparameters that hold at every width of a model.")
    parser.add_argument("--version", action="version", version=f"abcfx {version('abcfx')}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands.add_parser("demo", parents=[common], help=_demo.__doc__, description=_demo.__doc__))
    return parser


# -- abcfx demo


def _add_demo(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace, console: Console) -> None:
    """Train a GPT on Python's own sources at two widths, as written and transformed, with one learning rate."""
    task = demo.Task(arguments.base_width, arguments.width, arguments.lr, arguments.steps, arguments.seed)
    if arguments.sweep:
        _sweep(task, console)
        return
    picture = _picture(arguments, console)
    characters = demo.read_characters()
    results = {width: demo.transform_gpt(task, width) for width in task.widths}
    console.print(render(results[task.width], min(REPORT_WIDTH, console.width)), soft_wrap=True)
    with _progress("training", 2 * len(task.widths) * task.steps) as step:
        trainees = [demo.standard(task, width) for width in task.widths]
        trainees += [demo.transformed(task, width, results[width]) for width in task.widths]
        runs = demo.train_all(trainees, characters, step)
    _print_losses(task, runs, console)
    if picture is not None:
        demo.plot(task, runs, picture)
        console.print(f"Curves: {picture}", soft_wrap=True)


def _picture(arguments: argparse.Namespace, console: Console) -> Path | None:
    """Where the picture will be; checked before the training, not after it."""
    if arguments.no_plot:
        return None
    if find_spec("matplotlib") is None:
        console.print("No picture: matplotlib is missing. To fix: pip install 'abcfx[plot]'\n", soft_wrap=True)
        return None
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "demo.png"


def _print_losses(task: demo.Task, runs: Sequence[demo.Run], console: Console) -> None:
    table = _table("model", "width", "lr", "loss", f"against width {task.base_width}")
    base = {run.name: run.loss for run in runs if run.width == task.base_width}
    for run in runs:
        table.add_row(run.name, str(run.width), f"{run.lr:.4g}", f"{run.loss:.3f}", f"{run.loss - base[run.name]:+.3f}")
    console.print(
        f"Loss in nats per character, mean of the last tenth of {task.steps} steps, each on text not seen before. "
        f"What to look for: at width {task.base_width} the transform changes nothing, so both losses are the same; "
        f"at width {task.width}, with the same learning rate, the transformed model should be the best of all.\n"
    )
    console.print(table)


def _sweep(task: demo.Task, console: Console) -> None:
    characters = demo.read_characters()
    seeds = range(task.seed, task.seed + SWEEP_SEEDS)
    table = _table("lr", *(f"seed {seed}" for seed in seeds), "mean")
    means = {}
    with _progress("tuning", len(demo.LEARNING_RATES) * SWEEP_SEEDS * task.steps) as step:
        for lr in demo.LEARNING_RATES:
            tasks = [dataclasses.replace(task, lr=lr, seed=seed) for seed in seeds]
            runs = demo.train_all([demo.standard(t, t.base_width) for t in tasks], characters, step)
            means[lr] = sum(run.loss for run in runs) / len(runs)
            table.add_row(f"{lr:.4g}", *(f"{run.loss:.3f}" for run in runs), f"{means[lr]:.3f}")
    console.print(f"The GPT as written at width {task.base_width}: loss after {task.steps} steps, nats per character\n")
    console.print(table)
    console.print(f"Best: --lr {min(means, key=means.__getitem__):g}")


# -- shared


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    return table


@contextmanager
def _progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; gives the function to call after each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=steps)
        yield lambda: progress.advance(bar)

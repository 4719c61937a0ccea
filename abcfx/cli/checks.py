"""`abcfx coord-check`, `transfer-check` and `tune`: the checks on a model named on the command line."""

from __future__ import annotations

import argparse
import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from abcfx.cli.load import FORMS, Named, assignments, one_or_by_role
from abcfx.cli.report import transform_options
from abcfx.cli.shared import Command, show_result
from abcfx.errors import InvalidInputError

COORD_HELP = """Train a few steps at several widths; check that every layer moves as it should. Status 0 only on PASS.

  abcfx coord-check models.py:make_gpt --widths 64,128,256 --batch make_tokens
  abcfx coord-check 'models.py:lambda width: GPT(width)' --widths 64,128,256 --batch make_tokens --plot coord.png"""
TRANSFER_HELP = """Train at several widths and learning rates; check that the best rate stays. Status 0 only on PASS.

  abcfx transfer-check models.py:make_gpt --widths 64,128,256,512 --batches make_batches --plot transfer.png
  abcfx transfer-check models.py:make_gpt --widths 32,64,128 --batches make_batches --seeds 1 --lrs 0.004,0.008,0.016"""
TUNE_HELP = """Find the base learning rate and a constant for each role at a small width.

  abcfx tune models.py:make_gpt --width 64 --batches make_batches --plot tune.png"""


@functools.cache
def _value(argument: str, given: str, beside: str | None) -> Any:
    """What a name stands for; its file is run once in every process."""
    return Named(argument, given, Named("MODEL", beside) if beside else None).value()


@dataclass(frozen=True)
class _Factory:
    """Builds the model of a width, in any process."""

    given: str
    kwargs: tuple[tuple[str, Any], ...]

    def __call__(self, width: int) -> nn.Module:
        factory = _value("MODEL", self.given, None)
        if isinstance(factory, nn.Module) or not callable(factory):
            raise InvalidInputError(
                f"MODEL: {self.given!r} is no function of the width.\n  To fix: 'models.py:lambda width: Model(width)'"
            )
        named = "width" in inspect.signature(factory).parameters
        width_alone: tuple[int, ...] = () if named else (width,)
        built: nn.Module = factory(*width_alone, **({"width": width} if named else {}), **dict(self.kwargs))
        return built


@dataclass(frozen=True)
class _Function:
    """A function of the user's, found again by its name in any process."""

    argument: str
    given: str
    beside: str

    def __call__(self, *args: Any) -> Any:
        return _value(self.argument, self.given, self.beside)(*args)


def _add_common(parser: argparse.ArgumentParser, lr: float, steps: int, seeds: int) -> None:
    parser.add_argument("model", metavar="MODEL", help=f"a function of the width: {FORMS}")
    parser.add_argument("--kwargs", metavar="K=V,...", help="other keyword arguments of the function")
    parser.add_argument("--loss", metavar="LOSS", help="a function of (output, batch); default: cross entropy")
    parser.add_argument("--optimizer", default="adamw", help="adamw (default), sgd, ... or hidden=muon,default=adamw")
    parser.add_argument("--lr", default=str(lr), help=f"learning rate at the base width, or by role (default: {lr:g})")
    parser.add_argument("--steps", type=int, default=steps, help=f"of each run (default: {steps})")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"number of seeds (default: {seeds})")
    parser.add_argument("--base-width", type=int, help="where lr was tuned (default: the smallest width)")
    parser.add_argument("--set", metavar="K=V", action="append", default=[], help="any other option of abcfx.transform")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figure to a .png, .svg or .pdf")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", required=True, help="a list, or a function of the seed; in MODEL's file")
    parser.add_argument("--backend", default="loky", help="of joblib (default: loky), or sequential")
    parser.add_argument("--jobs", type=int, default=-1, help="number of workers (default: all cores)")


def _widths(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _add_coord(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, 1e-3, 3, 3)
    parser.add_argument("--widths", type=_widths, required=True, help="at least two, as 64,128,256")
    parser.add_argument("--batch", required=True, help="a batch, or a function that returns one; in MODEL's file")
    parser.add_argument("--no-control", action="store_true", help="leave out the model as written")


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, 2.0**-8, 60, 2)
    _add_sweep(parser)
    parser.add_argument("--widths", type=_widths, required=True, help="at least two, as 64,128,256")
    parser.add_argument("--lrs", help="the grid, as 0.001,0.002,0.004 (default: 1/8 to 8 times --lr)")
    parser.add_argument("--no-control", action="store_true", help="leave out the model as written")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, 2.0**-8, 150, 2)
    _add_sweep(parser)
    parser.add_argument("--width", type=int, required=True, help="where to search")
    parser.add_argument("--roles", default="embedding,hidden,readout", help="of a constant each (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=80, help="settings to try (default: 80)")
    parser.add_argument("--method", default="coordinate", choices=("coordinate", "optuna"))


def _common(arguments: argparse.Namespace) -> dict[str, Any]:
    loss = _Function("--loss", arguments.loss, arguments.model) if arguments.loss else None
    return {
        "loss": loss,
        "optimizer": one_or_by_role("--optimizer", arguments.optimizer),
        "lr": one_or_by_role("--lr", arguments.lr),
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "base_width": arguments.base_width,
        **transform_options(arguments.set),
    }


def _sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    return _common(arguments) | {"backend": arguments.backend, "n_jobs": arguments.jobs}


def _make(arguments: argparse.Namespace) -> _Factory:
    return _Factory(arguments.model, tuple(assignments("--kwargs", arguments.kwargs).items()))


def _batches(arguments: argparse.Namespace) -> Any:
    found = _value("--batches", arguments.batches, arguments.model)
    return _Function("--batches", arguments.batches, arguments.model) if callable(found) else found


def _coord(arguments: argparse.Namespace, console: Console) -> bool:
    from abcfx.checks import coord_check

    batch = _value("--batch", arguments.batch, arguments.model)
    batch = batch() if callable(batch) else batch
    options = {"widths": arguments.widths, "control": not arguments.no_control} | _common(arguments)
    return show_result(coord_check(_make(arguments), batch, **options), arguments, console)


def _transfer(arguments: argparse.Namespace, console: Console) -> bool:
    from abcfx.checks import transfer_check

    options = {"widths": arguments.widths, "control": not arguments.no_control} | _sweep(arguments)
    options["lrs"] = [float(part) for part in arguments.lrs.split(",")] if arguments.lrs else None
    return show_result(transfer_check(_make(arguments), _batches(arguments), **options), arguments, console)


def _tune(arguments: argparse.Namespace, console: Console) -> bool:
    from abcfx.checks import tune

    options = {"width": arguments.width, "budget": arguments.budget, "method": arguments.method} | _sweep(arguments)
    options["roles"] = tuple(arguments.roles.split(","))
    show_result(tune(_make(arguments), _batches(arguments), **options), arguments, console)
    return True


COMMANDS = (
    Command("coord-check", COORD_HELP, _add_coord, _coord),
    Command("transfer-check", TRANSFER_HELP, _add_transfer, _transfer),
    Command("tune", TUNE_HELP, _add_tune, _tune),
)

"""`abcfx coord-check`, `transfer-check` and `tune`: the checks on a model named on the command line."""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, get_args

import torch
from rich.console import Console
from torch import nn

from abcfx.checks import coord_check, transfer_check, tune
from abcfx.checks.rate_search import SearchMethod
from abcfx.checks.sweep import Batches
from abcfx.cli.load import FORMS, Named
from abcfx.cli.options import add_choice, assignments, number, numbers, rates, whole_numbers, words
from abcfx.cli.report import transform_options
from abcfx.cli.shared import Command, show_result
from abcfx.errors import InvalidInputError
from abcfx.support.arguments import calling
from abcfx.support.batch_loss import Loss

COORD_HELP = """Train a few steps at several widths; check that every layer moves as it should. Status 0 only on PASS.

  abcfx coord-check models.py:make_gpt --widths 64,128,256 --batch make_tokens
  abcfx coord-check 'models.py:lambda width: GPT(width)' --widths 64,128,256 --batch make_tokens --plot coord.png"""
TRANSFER_HELP = """Train at several widths and learning rates; check that the best rate stays. Status 0 only on PASS.

  abcfx transfer-check models.py:make_gpt --widths 64,128,256,512 --batches make_batches --plot transfer.png
  abcfx transfer-check models.py:make_gpt --widths 32,64,128 --batches make_batches --seeds 1 --lrs 0.004,0.008,0.016"""
TUNE_HELP = """Find the base learning rate and a constant for each role at a small width.

  abcfx tune models.py:make_gpt --width 64 --batches make_batches --plot tune.png"""


class CommonOptions(TypedDict):
    """The keyword arguments that the command line hands to any of `coord_check`, `transfer_check` and `tune`."""

    loss: Loss | None
    optimizer: str | dict[str, str]
    steps: int
    seeds: int
    base_width: int | None


class SweepOptions(TypedDict):
    """Keyword arguments of `transfer_check` and `tune`, which train many models: how to spread work over processes."""

    backend: str
    n_jobs: int


@functools.cache
def _named(argument: str, given: str, beside: str | None) -> Named:
    """Return a Python expression given on the command line with its module, whose file runs once in each process.

    Args:
        argument: the option that the expression was given for, for messages.
        given: the expression, as "models.py:make_gpt".
        beside: the expression given as MODEL, in whose file names are looked up where `given` names none.
    """
    return Named(argument, given, _named("MODEL", beside, None) if beside else None)


@functools.cache
def _value(argument: str, given: str, beside: str | None = None) -> object:
    """Evaluate a Python expression given on the command line, once in every process, and return its value.

    Args:
        argument: the option that the expression was given for, for messages.
        given: the expression, as "models.py:make_gpt".
        beside: the expression given as MODEL, in whose file names are looked up where `given` names none.
    """
    return _named(argument, given, beside).value()


@dataclass(frozen=True)
class _Factory:
    """A function of the width that builds the user's model, and that can be sent to another process.

    Attributes:
        given: the expression for the user's own function, as "models.py:make_gpt".
        kwargs: other keyword arguments of that function.
    """

    given: str
    kwargs: tuple[tuple[str, object], ...]

    def __call__(self, width: int) -> nn.Module:
        """Build the user's model of a width, by calling the function that was named on the command line.

        Raises:
            InvalidInputError: the expression is no function.
        """
        factory = _value("MODEL", self.given)
        if isinstance(factory, nn.Module) or not callable(factory):
            raise InvalidInputError(
                f"MODEL: {self.given!r} is no function of the width.\n  To fix: 'models.py:lambda width: Model(width)'"
            )
        with calling("MODEL", self.given):
            if "width" in inspect.signature(factory).parameters:
                built: nn.Module = factory(width=width, **dict(self.kwargs))
            else:
                built = factory(width, **dict(self.kwargs))
        return built


@dataclass(frozen=True)
class _Loss:
    """A loss function of the user's that can be sent to another process, where it is found again by its name.

    Attributes:
        given: the expression for the function, as "my_loss".
        beside: the expression of MODEL, in whose file the function is looked up.
    """

    given: str
    beside: str

    def __call__(self, output: object, batch: object) -> torch.Tensor:
        """Return the user's loss of a model's output on a batch."""
        return _named("--loss", self.given, self.beside).loss()(output, batch)


@dataclass(frozen=True)
class _Batches:
    """A function from a seed to batches that can be sent to another process, where it is found again by its name.

    Attributes:
        given: the expression for the user's function, as "make_batches".
        beside: the expression of MODEL, in whose file the function is looked up.
    """

    given: str
    beside: str

    def __call__(self, seed: int) -> Iterable[object]:
        """Return the user's training batches for a seed."""
        function = _value("--batches", self.given, self.beside)
        assert callable(function)
        batches: Iterable[object] = function(seed)
        return batches


def _add_common(parser: argparse.ArgumentParser, lr: float, steps: int, seeds: int) -> None:
    """Declare the arguments that `coord-check`, `transfer-check` and `tune` share.

    Args:
        parser: the parser of the command.
        lr: default learning rate.
        steps: default number of training steps.
        seeds: default number of seeds.
    """
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


def _add_widths(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of commands that compare several widths: the widths, and `--no-control`."""
    parser.add_argument("--widths", type=whole_numbers, required=True, help="at least two, as 64,128,256")
    parser.add_argument("--no-control", action="store_true", help="leave out the model as written")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of commands that train many models: their batches, and the workers."""
    parser.add_argument("--batches", required=True, help="a list, or a function of the seed; in MODEL's file")
    parser.add_argument("--backend", default="loky", help="of joblib (default: loky), or sequential")
    parser.add_argument("--jobs", type=int, default=-1, help="number of workers (default: all cores)")


def _add_coord(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx coord-check`."""
    _add_common(parser, 1e-3, 3, 3)
    _add_widths(parser)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds for more seeds if in doubt (default: 30)")
    parser.add_argument("--batch", required=True, help="a batch, or a function that returns one; in MODEL's file")


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx transfer-check`."""
    _add_common(parser, 2.0**-8, 60, 2)
    _add_sweep(parser)
    _add_widths(parser)
    parser.add_argument("--lrs", help="the grid, as 0.001,0.002,0.004 (default: 1/8 to 8 times --lr)")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx tune`."""
    _add_common(parser, 2.0**-8, 150, 2)
    _add_sweep(parser)
    parser.add_argument("--width", type=int, required=True, help="where to search")
    parser.add_argument("--roles", default="embedding,hidden,readout", help="of a constant each (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=80, help="settings to try (default: 80)")
    add_choice(parser, "--method", get_args(SearchMethod), "coordinate", "how to search")


def _common(arguments: argparse.Namespace) -> CommonOptions:
    """Return the keyword arguments that `coord_check`, `transfer_check` and `tune` share, as the user gave them."""
    return {
        "loss": _Loss(arguments.loss, arguments.model) if arguments.loss else None,
        "optimizer": words("--optimizer", arguments.optimizer),
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "base_width": arguments.base_width,
    }


def _sweep(arguments: argparse.Namespace) -> SweepOptions:
    """Return the keyword arguments that say how training is spread over processes, as the user gave them."""
    return {"backend": arguments.backend, "n_jobs": arguments.jobs}


def _make(arguments: argparse.Namespace) -> _Factory:
    """Return the function of the width that the user named as MODEL on the command line."""
    return _Factory(arguments.model, tuple(assignments("--kwargs", arguments.kwargs).items()))


def _batches(arguments: argparse.Namespace) -> Batches:
    """Return the batches that the user named on the command line: a list, or a function of the seed that gives them.

    Raises:
        InvalidInputError: the name stands for something else.
    """
    found = _value("--batches", arguments.batches, arguments.model)
    if callable(found):
        return _Batches(arguments.batches, arguments.model)
    if not isinstance(found, Iterable):
        raise InvalidInputError(f"--batches: {arguments.batches!r} is neither a list nor a function of the seed.")
    return found


def _coord(arguments: argparse.Namespace, console: Console) -> bool:
    """Run `abcfx coord-check` and print its result; return whether the check passed."""
    batch = _value("--batch", arguments.batch, arguments.model)
    check = coord_check(
        _make(arguments),
        batch() if callable(batch) else batch,
        widths=arguments.widths,
        control=not arguments.no_control,
        lr=rates("--lr", arguments.lr),
        budget=arguments.budget,
        **_common(arguments),
        **transform_options(arguments.set),
    )
    return show_result(check, arguments, console)


def _transfer(arguments: argparse.Namespace, console: Console) -> bool:
    """Run `abcfx transfer-check` and print its result; return whether the check passed."""
    check = transfer_check(
        _make(arguments),
        _batches(arguments),
        widths=arguments.widths,
        control=not arguments.no_control,
        lr=rates("--lr", arguments.lr),
        lrs=numbers("--lrs", arguments.lrs) if arguments.lrs else None,
        **_common(arguments),
        **_sweep(arguments),
        **transform_options(arguments.set),
    )
    return show_result(check, arguments, console)


def _tune(arguments: argparse.Namespace, console: Console) -> bool:
    """Run `abcfx tune` and print the best learning rate and constants; return True."""
    tuned = tune(
        _make(arguments),
        _batches(arguments),
        width=arguments.width,
        roles=tuple(arguments.roles.split(",")),
        budget=arguments.budget,
        method=arguments.method,
        lr=number("--lr", arguments.lr),
        **_common(arguments),
        **_sweep(arguments),
        **transform_options(arguments.set),
    )
    show_result(tuned, arguments, console)
    return True


COMMANDS = (
    Command("coord-check", COORD_HELP, _add_coord, _coord),
    Command("transfer-check", TRANSFER_HELP, _add_transfer, _transfer),
    Command("tune", TUNE_HELP, _add_tune, _tune),
)

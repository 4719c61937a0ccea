"""`abcfx audit`: judges the parametrization that a model named on the command line already has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import torch
from rich.console import Console
from torch import nn

from abcfx.auditing import audit
from abcfx.auditing.comparison import DecayMode
from abcfx.auditing.run import MUP
from abcfx.capture.options import Capture
from abcfx.cli.load import FORMS, Named, example_inputs
from abcfx.cli.options import add_choice, assignments, whole_numbers
from abcfx.cli.shared import Command, print_json, print_text
from abcfx.errors import InvalidInputError
from abcfx.support.arguments import calling
from abcfx.support.files import writable_file

HELP = """Judge init, multipliers and rates that a model already has, without training. Status 0 only on PASS.

  abcfx audit models.py:make_gpt --optimizer make_optimizer --widths 64,256 --inputs make_tokens
  abcfx audit 'models.py:lambda width: GPT(width)' --optimizer make_optimizer --inputs make_tokens --html audit.html"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx audit`."""
    parser.add_argument("model", metavar="MODEL", help=f"a function of the width: {FORMS}")
    parser.add_argument("--kwargs", metavar="K=V,...", help="other keyword arguments of the function")
    parser.add_argument("--optimizer", required=True, help="a function of the model that builds its optimizer")
    parser.add_argument("--widths", type=whole_numbers, default=[64, 256], help="two (default: 64,256)")
    parser.add_argument(
        "--inputs", metavar="INPUTS", help="a tensor, tuple or dict of example inputs, or what returns it"
    )
    parser.add_argument("--outputs", help="which of the returned tensors a loss is made of, as logits")
    parser.add_argument("--parametrization", metavar="NAME", help="what counts as right: mup (default), or sp")
    add_choice(parser, "--decay", get_args(DecayMode), "independent", "what weight decay is to do")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the rows as one HTML file")


def _run(arguments: argparse.Namespace, console: Console) -> bool:
    """Run `abcfx audit` and print its result; return whether the audit passed."""
    if arguments.html:
        writable_file("--html", arguments.html)
    named = Named("MODEL", arguments.model)
    make_optimizer = Named("--optimizer", arguments.optimizer, named).value()
    if not callable(make_optimizer):
        raise InvalidInputError(f"--optimizer: {arguments.optimizer!r} is no function of the model.")
    args, kwargs = example_inputs(Named("--inputs", arguments.inputs, named) if arguments.inputs else None)
    result = audit(
        _make(named, assignments("--kwargs", arguments.kwargs)),
        cast(Callable[[nn.Module], torch.optim.Optimizer], make_optimizer),
        args,
        kwargs,
        widths=arguments.widths,
        parametrization=arguments.parametrization or MUP,
        decay=arguments.decay,
        capture=Capture(outputs=arguments.outputs or ()),
    )
    if arguments.html:
        result.to_html(arguments.html)
    if arguments.json:
        print_json(result.to_dict(), console)
    else:
        print_text(str(result), console)
    return bool(result)


def _make(named: Named, kwargs: dict[str, object]) -> Callable[[int], nn.Module]:
    """Return the function of the width that builds the user's model.

    Raises:
        InvalidInputError: the expression on the command line is no function.
    """
    factory = named.value()
    if isinstance(factory, nn.Module) or not callable(factory):
        raise InvalidInputError(
            f"MODEL: {named.given!r} is no function of the width.\n  To fix: 'models.py:lambda width: Model(width)'"
        )

    def make(width: int) -> nn.Module:
        """Build the model of a width."""
        with calling("MODEL", named.given):
            return cast(nn.Module, factory(width, **kwargs))

    return make


COMMAND = Command("audit", HELP, _add_arguments, _run)

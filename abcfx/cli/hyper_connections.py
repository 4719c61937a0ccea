"""`abcfx hyper-connections`: runs the six diagnostics, over widths or on a model named on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from abcfx.cli.load import FORMS, Named, example_inputs, load_weights
from abcfx.cli.options import add_choice, assignments, whole_numbers
from abcfx.cli.shared import Command, show_result
from abcfx.errors import InvalidInputError
from abcfx.hyper_connections import diagnose
from abcfx.hyper_connections.judge import INIT_EXPONENTS

HELP = """Diagnose hyper-connections, drawn at several widths or those of a model. Status 0 only on PASS.

  abcfx hyper-connections --init constant --plot hyper.png
  abcfx hyper-connections models.py:make_model --inputs make_tokens --checkpoint model.pt"""
WIDTHS = "64,128,256,512,1024"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx hyper-connections`."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"a model whose own are diagnosed: {FORMS}")
    parser.add_argument("--kwargs", metavar="K=V,...", help="keyword arguments of MODEL's factory")
    parser.add_argument("--inputs", metavar="INPUTS", help="what MODEL is called with, or a function that returns it")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="a state_dict to load into MODEL")
    parser.add_argument("--widths", type=whole_numbers, default=WIDTHS, help=f"of a stream, drawn (default: {WIDTHS})")
    add_choice(parser, "--init", tuple(INIT_EXPONENTS), "mup", "std of the generator over width")
    for name, default, what in (
        ("streams", 4, "number of streams"),
        ("iters", 20, "Sinkhorn iterations"),
        ("samples", 30, "tokens at each width, or of each hyper-connection of MODEL"),
        ("seed", 0, "of everything drawn"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    for name, number, what in (
        ("scale", 0.1, "of gates and mix, drawn"),
        ("base", 0.0, "of gates and mix, drawn"),
        ("lr", 1e-3, "learning rate of the step"),
        ("rate-exponent", 1.0, "the generator's rate is ~ width^-this"),
    ):
        parser.add_argument(f"--{name}", type=float, default=number, help=f"{what} (default: {number:g})")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the six panels to a .png, .svg or .pdf")


def _run(arguments: argparse.Namespace, console: Console) -> bool:
    """Run `abcfx hyper-connections` on a model or on drawn ones, print the diagnostics; return whether they pass."""
    common = {name: getattr(arguments, name) for name in ("iters", "samples", "lr", "seed")}
    if arguments.model is None:
        if arguments.inputs or arguments.checkpoint:
            raise InvalidInputError("hyper-connections: --inputs and --checkpoint are for a MODEL; none was given.")
        drawn = {name: getattr(arguments, name) for name in ("streams", "init", "scale", "base", "rate_exponent")}
        return show_result(diagnose(arguments.widths, **drawn, **common), arguments, console)
    named = Named("MODEL", arguments.model)
    model = named.build(assignments("--kwargs", arguments.kwargs))
    if arguments.checkpoint:
        load_weights("--checkpoint", model, arguments.checkpoint)
    args, kwargs = example_inputs(Named("--inputs", arguments.inputs, named) if arguments.inputs else None)
    return show_result(diagnose(model=model, args=args, kwargs=kwargs, **common), arguments, console)


COMMAND = Command("hyper-connections", HELP, _add_arguments, _run)

"""`abcfx verify-growth`: runs the seven checks of a growth on two models and their weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from torch import nn

from abcfx.cli.load import FORMS, SEED, Named, load_weights
from abcfx.cli.options import add_choice
from abcfx.cli.shared import Command, print_json, print_text
from abcfx.growing.check_result import CheckName
from abcfx.growing.fill.depth import BLOCK_ORDERS

HELP = """Check that a large model is a small one grown, by whatever code. The status is 0 only on PASS.

  abcfx verify-growth 'models.py:GPT(64)' 'GPT(128)' --batch make_batch --small-weights s.pt --large-weights l.pt
  abcfx verify-growth models.py:trained models.py:grown --batch make_batch --loss my_loss --checks C0,C1,C4"""
CHECKS = ",".join(get_args(CheckName))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx verify-growth`."""
    parser.add_argument("small", metavar="SMALL", help=f"the model that was grown: {FORMS}")
    parser.add_argument("large", metavar="LARGE", help="the model that it was grown into; looked up in SMALL's file")
    parser.add_argument(
        "--batch",
        metavar="BATCH",
        required=True,
        help="real inputs: a tensor, a dict of keyword inputs, (inputs, targets), or what returns one",
    )
    for which in ("small", "large"):
        parser.add_argument(
            f"--{which}-weights", metavar="FILE", type=Path, help=f"a state_dict to load into {which.upper()}"
        )
    parser.add_argument("--loss", metavar="LOSS", help="a function of (output, batch); default: cross entropy")
    add_choice(parser, "--block-order", BLOCK_ORDERS, "stack", "where new blocks were put")
    parser.add_argument("--checks", default=CHECKS, help=f"which to run (default: {CHECKS})")


def _run(arguments: argparse.Namespace, console: Console) -> bool:
    """Run `abcfx verify-growth` and print its result; return whether all checks passed."""
    from abcfx.growing import verify_growth

    named = Named("SMALL", arguments.small)
    small = _filled(named, "--small-weights", arguments.small_weights)
    large = _filled(Named("LARGE", arguments.large, named), "--large-weights", arguments.large_weights)
    torch.manual_seed(SEED)
    batch = Named("--batch", arguments.batch, named).value()
    checked = verify_growth(
        small,
        large,
        batch() if callable(batch) and not isinstance(batch, torch.Tensor) else batch,
        loss=Named("--loss", arguments.loss, named).loss() if arguments.loss else None,
        block_order=arguments.block_order,
        checks=tuple(part.strip() for part in arguments.checks.split(",")),
        raises=False,
    )
    print_json(checked.to_dict(), console) if arguments.json else print_text(str(checked), console)
    return bool(checked)


def _filled(named: Named, argument: str, weights: Path | None) -> nn.Module:
    """Build the model that the user named, and load a state_dict into it if the option `argument` names a file."""
    model = named.build({})
    if weights is not None:
        load_weights(argument, model, weights)
    return model


COMMAND = Command("verify-growth", HELP, _add_arguments, _run)

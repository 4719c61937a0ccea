"""`abcfx report`: transforms a model named on the command line and prints what was found, in the form asked for."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import cast

from rich.console import Console

from abcfx.capture.options import Capture
from abcfx.cli.load import FORMS, Named, example_inputs
from abcfx.cli.options import assignments, plain_value, rates, words
from abcfx.cli.shared import PAGE_WIDTH, Command, print_json, print_text
from abcfx.errors import InvalidInputError
from abcfx.exponents.options import Parametrization
from abcfx.pipeline import TransformOptions, transform
from abcfx.plan.options import Overrides, Schedule
from abcfx.report.text import render
from abcfx.support.files import writable_file
from abcfx.transformed import Transformed

HELP = """Transform a model and print the report, an explanation, a picture, or JSON.

  abcfx report models.py:make_gpt --kwargs width=256 --base-kwargs width=64 --inputs make_tokens
  abcfx report 'models.py:GPT(width=256)' --base 'GPT(width=64)' --inputs 'torch.zeros(2, 64).long()' --html gpt.html
  abcfx report models.py:make_gpt --explain blocks.0.attn.qkv --set alignment=no --set depth=completep"""


OPTION_OBJECTS: dict[str, type] = {
    "parametrization": Parametrization,
    "overrides": Overrides,
    "schedule": Schedule,
    "capture": Capture,
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx report`."""
    parser.add_argument("model", metavar="MODEL", help=FORMS)
    parser.add_argument("--kwargs", metavar="K=V,...", help="keyword arguments of the factory, or a JSON object")
    parser.add_argument("--base", metavar="BASE", help="the same at the width where lr was tuned; in MODEL's file")
    parser.add_argument("--base-kwargs", metavar="K=V,...", help="the base is MODEL's factory called with these")
    parser.add_argument(
        "--inputs", metavar="INPUTS", help="a tensor, tuple or dict of example inputs, or what returns it"
    )
    parser.add_argument("--optimizer", default="adamw", help="adamw (default), sgd, ... or hidden=muon,default=adamw")
    parser.add_argument("--lr", help="learning rate at the base width, or hidden=0.02,default=0.01")
    parser.add_argument(
        "--set", metavar="K=V", action="append", default=[], help="any other option of abcfx.transform; may be repeated"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the interactive report, one file")
    parser.add_argument("--mermaid", action="store_true", help="print the layer DAG as a Mermaid graph")
    parser.add_argument(
        "--explain", metavar="NAME", action="append", default=[], help="explain a parameter in words; may be repeated"
    )


def _run(arguments: argparse.Namespace, console: Console) -> None:
    """Run `abcfx report`: transform a model, then print the report, explanations, a graph or JSON, as asked for."""
    if arguments.html:
        writable_file("--html", arguments.html)
    result = _transformed(arguments)
    explained = [result.explain(name) for name in arguments.explain]
    if arguments.html:
        result.to_html(arguments.html)
    if arguments.json:
        print_json([each.to_dict() for each in explained] if explained else result.to_dict(), console)
        return
    for each in explained:
        console.print(each) if console.is_terminal else print_text(str(each), console)
        console.print()
    if arguments.mermaid:
        print_text(result.to_mermaid(), console)
    if arguments.html:
        print_text(f"Report: {arguments.html}", console)
    if not (explained or arguments.mermaid or arguments.html):
        print_text(render(result.outcome, min(PAGE_WIDTH, console.width)), console)


def _transformed(arguments: argparse.Namespace) -> Transformed:
    """Build model, base and inputs as the user named them, and return the transformed model."""
    named = Named("MODEL", arguments.model)
    base = None
    if arguments.base and arguments.base_kwargs and not callable(Named("--base", arguments.base, named).value()):
        raise InvalidInputError("--base is a module already; leave out --base-kwargs, or name a factory")
    if arguments.base or arguments.base_kwargs:
        of_base = Named("--base", arguments.base, named) if arguments.base else named
        base = of_base.build(assignments("--base-kwargs", arguments.base_kwargs))
    model = named.build(assignments("--kwargs", arguments.kwargs))
    inputs = Named("--inputs", arguments.inputs, named) if arguments.inputs else None
    args, kwargs = example_inputs(inputs)
    options = transform_options(arguments.set)
    lr = None if arguments.lr is None else rates("--lr", arguments.lr)
    optimizer = words("--optimizer", arguments.optimizer)
    return transform(model, args, kwargs, base=base, optimizer=optimizer, lr=lr, **options)


def _flat_options() -> dict[str, type | None]:
    """Return the name of every option that `--set` takes, with the option class that it is a field of, or None."""
    flat: dict[str, type | None] = dict.fromkeys(("weight_decay", "eps", "apply", "init"))
    for owner in OPTION_OBJECTS.values():
        flat |= dict.fromkeys((each.name for each in fields(owner)), owner)
    return flat


def transform_options(given: list[str]) -> TransformOptions:
    """Return keyword arguments of `transform` for options that `--set` gave as name=value.

    The fields of option classes are given by their own names: depth=completep, batch_ratio=4.

    Args:
        given: the options, one text each.

    Raises:
        InvalidInputError: `transform` has no such option.
    """
    flat = _flat_options()
    found: dict[str, object] = {}
    parts: dict[type, dict[str, object]] = {}
    for each in given:
        name, equals, text = each.partition("=")
        name = {"parametrization": "table", "capture": "method"}.get(name, name)
        if not equals or name not in flat:
            raise InvalidInputError(f"--set {each}: expected name=value, with one of {', '.join(flat)}")
        owner = flat[name]
        (found if owner is None else parts.setdefault(owner, {}))[name] = plain_value(text)
    found |= {key: owner(**parts[owner]) for key, owner in OPTION_OBJECTS.items() if owner in parts}
    return cast(TransformOptions, found)  # transform checks every value


COMMAND = Command("report", HELP, _add_arguments, _run)

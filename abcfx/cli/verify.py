"""`abcfx verify`: runs the sections of the verification, prints their verdicts, writes the document with its figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from abcfx.cli.shared import Command, print_json, print_text
from abcfx.errors import InvalidInputError
from abcfx.report.console import progress_bar
from abcfx.support.figures import new_figure
from abcfx.support.files import writable_folder
from abcfx.verification import PARTS, document, verify

HELP = """Verify the system on this machine: sixteen sections, each PASS or FAIL; half a minute to two minutes.

Exit status 0 only if every section passes. --write docs writes docs/verification.md and docs/verification.png."""
PAGE, PICTURE = "verification.md", "verification.png"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `abcfx verify`."""
    parser.add_argument("--only", metavar="N", help="sections to run, as 3 or 1,4-6 (default: all)")
    parser.add_argument("--details", action="store_true", help="show the claims and tables of every section")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"write {PAGE} and {PICTURE} there")
    parser.add_argument("--list", action="store_true", help="list the sections and run none")


def _run(arguments: argparse.Namespace, console: Console) -> bool | None:
    """Run `abcfx verify`: verify the package, print or write the evidence; return whether all sections passed.

    The result is None for `--list`, which runs nothing.
    """
    if arguments.list:
        _list(arguments.json, console)
        return None
    only = None if arguments.only is None else _numbers(arguments.only)
    picture = None
    if arguments.write is not None:
        if only is not None:
            raise InvalidInputError("--write needs all sections; leave --only out")
        new_figure(1, 1)  # raises now, not after the run, if matplotlib is missing
        picture = writable_folder("--write", arguments.write) / PICTURE
    with progress_bar("verifying", len(PARTS) if only is None else len(only)) as step:
        found = verify(only, picture=picture, on_section=step, raise_errors=arguments.debug)
    if arguments.write is not None:
        (arguments.write / PAGE).write_text(document(found, PICTURE), encoding="utf-8")
    if arguments.json:
        print_json(found.to_dict(), console)
    else:
        if arguments.details:
            for section in found:
                console.print(section.details())
        console.print(found)
        if arguments.write is not None:
            print_text(f"Written: {arguments.write / PAGE}, {arguments.write / PICTURE}", console)
    return bool(found)


def _list(as_json: bool, console: Console) -> None:
    """Print numbers and titles of all sections of the verification, as text or JSON."""
    if as_json:
        print_json([{"number": part.number, "title": part.title, "tested": part.tested} for part in PARTS], console)
        return
    for part in PARTS:
        print_text(f"{part.number:2} {part.title}", console)


def _numbers(given: str) -> set[int]:
    """Read numbers of sections of the verification from text such as "3" or "1,4-6".

    Raises:
        InvalidInputError: the text is something else, or names no section.
    """
    found: set[int] = set()
    for part in given.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise InvalidInputError(f"--only {given}: expected numbers of sections, as 3 or 1,4-6; --list shows them")
        end = last if dash else first
        if max(len(first), len(end)) > 9 or int(end) > len(PARTS) or int(first) < 1:
            raise InvalidInputError(f"--only {given}: sections are 1 to {len(PARTS)}; --list shows them")
        found.update(range(int(first), int(end) + 1))
    if not found:
        raise InvalidInputError(f"--only {given}: no section in that range; --list shows them")
    return found


COMMAND = Command("verify", HELP, _add_arguments, _run)

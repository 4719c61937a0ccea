"""`abcfx verify`: runs the sections of the verification, prints their verdicts, writes the document with its figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.text import Text

from abcfx.cli.shared import Command, make_table, print_json, print_text
from abcfx.errors import InvalidInputError
from abcfx.report.console import VERDICT_STYLES, progress_bar
from abcfx.support.figures import new_figure
from abcfx.verification import PARTS, Section, Verification, document, verify
from abcfx.verification.evidence import FAIL, PASS

HELP = """Verify the system on this machine: sixteen sections, each PASS or FAIL; half a minute to two minutes.

Exit status 0 only if every section passes. --write docs writes docs/verification.md and docs/verification.png."""
PAGE, PICTURE = "verification.md", "verification.png"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="N", help="sections to run, as 3 or 1,4-6 (default: all)")
    parser.add_argument("--details", action="store_true", help="show the checks and tables of every section")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"write {PAGE} and {PICTURE} there")
    parser.add_argument("--list", action="store_true", help="list the sections and run none")


def _run(arguments: argparse.Namespace, console: Console) -> bool | None:
    if arguments.list:
        _list(arguments.json, console)
        return None
    only = None if arguments.only is None else _numbers(arguments.only)
    picture = None
    if arguments.write is not None:
        if only is not None:
            raise InvalidInputError("--write needs all sections; leave --only out")
        new_figure(1, 1)  # raises now, not after the run, if matplotlib is missing
        arguments.write.mkdir(parents=True, exist_ok=True)
        picture = arguments.write / PICTURE
    with progress_bar("verifying", len(PARTS) if only is None else len(only)) as step:
        found = verify(only, picture=picture, on_section=step, raise_errors=arguments.debug)
    if arguments.write is not None:
        (arguments.write / PAGE).write_text(document(found, PICTURE), encoding="utf-8")
    if arguments.json:
        print_json(found.to_dict(), console)
    else:
        _print(found, arguments.details, console)
        if arguments.write is not None:
            print_text(f"Written: {arguments.write / PAGE}, {arguments.write / PICTURE}", console)
    return bool(found)


def _list(as_json: bool, console: Console) -> None:
    if as_json:
        print_json([{"number": part.number, "title": part.title, "tested": part.tested} for part in PARTS], console)
        return
    for part in PARTS:
        print_text(f"{part.number:2} {part.title}", console)


def _numbers(given: str) -> set[int]:
    found: set[int] = set()
    for part in given.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise InvalidInputError(f"--only {given}: expected numbers of sections, as 3 or 1,4-6; --list shows them")
        found.update(range(int(first), int(last if dash else first) + 1))
    if not found:
        raise InvalidInputError(f"--only {given}: no section in that range; --list shows them")
    return found


def _print(found: Verification, details: bool, console: Console) -> None:
    if details:
        for section in found:
            _print_section(section, console)
    table = make_table("", "section", "verdict", "checks", "CPU s", left=("section", "verdict"))
    for section in found:
        checks = section.evidence.checks
        held = f"{len(checks) - len(section.failed)} of {len(checks)}"
        verdict = Text(section.verdict, VERDICT_STYLES[section.verdict])
        table.add_row(str(section.number), section.title, verdict, held, f"{section.seconds:.1f}")
    console.print(table)
    for section in found:
        for check in section.failed:
            console.print(f"FAIL {section.number} {section.title}: {check.claim}: {check.found}")
    seconds = sum(section.seconds for section in found)
    console.print(Text(f"\nverification: {found.verdict}, {seconds:.0f} s of CPU time", VERDICT_STYLES[found.verdict]))


def _print_section(section: Section, console: Console) -> None:
    console.print(f"{section.number}. {section.title}\n")
    console.print(f"{section.tested}\n")
    for table in section.evidence.tables:
        words = [column for k, column in enumerate(table.columns) if any(row[k][:1].isalpha() for row in table.rows)]
        shown = make_table(*table.columns, left=words)
        for row in table.rows:
            shown.add_row(*row)
        console.print(f"{table.caption}:")
        console.print(shown)
        console.print()
    for check in section.evidence.checks:
        found = f": {check.found}" if check.found else ""
        print_text(f"{PASS if check.passed else FAIL} {check.claim}{found}", console)
    console.print()


COMMAND = Command("verify", HELP, _add_arguments, _run)

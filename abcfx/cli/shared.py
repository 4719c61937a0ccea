"""Shared by all commands: how one is declared, the console, tables, JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from abcfx.support.text import finite

PAGE_WIDTH = 100


class Command(NamedTuple):
    """A subcommand of the program `abcfx`, such as `abcfx report`: its name, its help, and the functions that do it.

    Attributes:
        name: the word by which the command is called.
        help: the text of `--help`; its first line goes into the list of commands.
        add_arguments: declares the arguments on a parser.
        run: runs the command and returns False if a check does not pass.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], bool | None]


class Result(Protocol):
    """The part of a check's result that a command needs to print, save or draw it."""

    def to_json(self) -> str:
        """Return the result of the check as JSON text."""

    def plot(self, path: str | None = None) -> object:
        """Draw the result of the check, and write the picture to a file if a path is given."""


def make_console(file: TextIO | None = None) -> Console:
    """Make the rich console that commands print to: as wide as the terminal, or 100 columns for a file or a pipe.

    Args:
        file: a file to print to instead of standard output.
    """
    console = Console(file=file, markup=False, highlight=False)
    return console if console.is_terminal else Console(file=file, markup=False, highlight=False, width=PAGE_WIDTH)


def print_text(text: str, console: Console) -> None:
    """Print text whose lines are broken already; the console breaks no more of them."""
    console.print(text.rstrip("\n"), soft_wrap=True)


def print_json(data: object, console: Console) -> None:
    """Print data as JSON that every parser reads: numbers that are not finite become null."""
    print_text(json.dumps(finite(data), indent=2, allow_nan=False), console)


def show_result(result: Result, arguments: argparse.Namespace, console: Console) -> bool:
    """Draw the result of a check (`--plot FILE`), print it (`--json`: as JSON), and return whether it passed."""
    if arguments.plot is not None:
        result.plot(str(arguments.plot))
    if arguments.json:
        print_json(json.loads(result.to_json()), console)
    elif console.is_terminal:
        console.print(result)
    else:
        print_text(str(result), console)
    return bool(result)


def make_table(*columns: str, left: Sequence[str] = ()) -> Table:
    """Make an empty table without lines between rows: columns in `left` are aligned left, numbers right."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table

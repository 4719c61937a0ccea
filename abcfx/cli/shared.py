"""What commands share: how one is declared, the console, tables, JSON, a progress bar."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from abcfx.support.text import finite

PAGE_WIDTH = 100


class Command(NamedTuple):
    """A subcommand. `help`: its first line goes into the list of commands. `run` returns False where a check fails."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], bool | None]


def make_console() -> Console:
    """Stdout: as wide as the terminal, or PAGE_WIDTH where there is none (a file, a pipe)."""
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=PAGE_WIDTH)


def print_text(text: str, console: Console) -> None:
    """Text whose lines are as they should be."""
    console.print(text.rstrip("\n"), soft_wrap=True)


def print_json(data: Any, console: Console) -> None:
    """JSON that every parser reads: numbers that are not finite become null."""
    print_text(json.dumps(finite(data), indent=2, allow_nan=False), console)


def show_result(result: Any, arguments: argparse.Namespace, console: Console) -> bool:
    """Draws (--plot) and prints (--json) the result of a check; True where it passes."""
    if arguments.plot:
        result.plot(str(arguments.plot))
    if arguments.json:
        print_json(json.loads(result.to_json()), console)
    elif console.is_terminal:
        console.print(result)
    else:
        print_text(str(result), console)
    return bool(result)


def make_table(*columns: str, left: Sequence[str] = ()) -> Table:
    """A flat table; numbers to the right, the columns in `left` to the left."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table

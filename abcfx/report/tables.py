"""Flat text tables of the printed report, and numbers as it writes them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from abcfx.report.console import text_of

Section: TypeAlias = Sequence[str | Table]


def number(value: float | None) -> str:
    """Write a number with three digits; "-" for None."""
    return "-" if value is None else f"{value + 0.0:.3g}"


def per_use(by_node: Mapping[str, float], unused: float) -> str:
    """Write the number that all uses of a parameter have, or one number for each use if they differ, for a table.

    Args:
        by_node: the number at each node that uses the parameter.
        unused: the number to write if there is no use.
    """
    distinct = set(by_node.values())
    return "\n/".join(map(number, by_node.values() if len(distinct) > 1 else distinct or [unused]))


def flat_table(*columns: str, left: Iterable[str] = (), flexible: str | None = None) -> Table:
    """Make an empty table without lines between rows.

    Args:
        columns: titles of the columns.
        left: the columns that are aligned left; the others hold numbers and are aligned right.
        flexible: the one column whose text may be wrapped.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for column in columns:
        wraps = column == flexible
        table.add_column(
            column, justify="left" if column in left else "right", no_wrap=not wraps, min_width=8 if wraps else None
        )
    return table


def section_text(section: Section, width: int) -> str:
    """Write paragraphs (wrapped, with a hanging indent) and tables as plain text in lines of `width` columns."""
    lines: list[str] = []
    for part in section:
        if isinstance(part, str):
            start = len(part) - len(part.lstrip())
            lines += textwrap.wrap(part, width, subsequent_indent=" " * (start + 2), break_on_hyphens=False) or [""]
        else:
            lines += _drawn(part, width)
    return "\n".join(line.rstrip() for line in lines)


def _drawn(table: Table, width: int) -> list[str]:
    """Draw a table as lines of text, of `width` columns or, where its numbers would not fit, wider."""
    console = Console(width=1000, color_system=None, markup=False, emoji=False, highlight=False)
    least = Measurement.get(console, console.options, table).minimum
    return [line for line in text_of(table, width=max(width, least)).splitlines() if line.strip()]

"""`Explanation`: what `result.explain(name)` returns, to print or to read field by field."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from abcfx.plan.spec import SpecRow
from abcfx.report.constraints import Constraint, Loosened
from abcfx.report.dim_growth import DimGrowth

WIDTH = 100
FORMULA_INDENT = " " * 6


class Line(NamedTuple):
    """A line of the explanation of a parameter: a sentence or a formula."""

    text: str
    is_formula: bool = False


class Paragraph(NamedTuple):
    """A paragraph of the explanation of a parameter: a title and the lines under it."""

    title: str
    lines: tuple[Line, ...]

    @classmethod
    def of(cls, title: str, lines: Iterable[str | Line]) -> Paragraph:
        """Make a paragraph of an explanation from a title and lines; plain strings among the lines are sentences."""
        return cls(title, tuple(line if isinstance(line, Line) else Line(line) for line in lines))

    def to_dict(self) -> dict[str, object]:
        """Return title and lines of the paragraph as JSON-able values."""
        return {"title": self.title, "lines": [line._asdict() for line in self.lines]}


@dataclass(frozen=True)
class Explanation:
    """An explanation why a parameter has its role ("hidden", ...), learning rate and other numbers.

    `print` it, or read the fields.

    Attributes:
        name: name of the parameter, as in the spec.
        aliases: other names of the same, tied parameter.
        role: its role, such as "hidden".
        why: what made it so.
        dims: how each dim grows.
        constraints: the constraints that keep its c (learning rate m^-c; m, the width ratio) from being smaller; none
            if c is given or follows by rule.
        loosened: c, and the sum of all c, with alignments of 1/2 at this parameter's layers alone; None if no alignment
            is in its constraints.
        row: its row of the spec.
        paragraphs: all of it in words.
    """

    name: str
    aliases: tuple[str, ...]
    role: str
    why: str
    dims: tuple[DimGrowth, ...]
    constraints: tuple[Constraint, ...]
    loosened: Loosened | None
    row: SpecRow
    paragraphs: tuple[Paragraph, ...]

    def to_dict(self) -> dict[str, object]:
        """Return all fields of the explanation of a parameter as JSON-able values."""
        return {
            "name": self.name,
            "aliases": list(self.aliases),
            "role": self.role,
            "why": self.why,
            "dims": [each._asdict() for each in self.dims],
            "constraints": [each.to_dict() for each in self.constraints],
            "loosened": None if self.loosened is None else self.loosened._asdict(),
            "row": dict(self.row),
            "paragraphs": [each.to_dict() for each in self.paragraphs],
        }

    def __str__(self) -> str:
        """Return the explanation of a parameter as text, wrapped to 100 columns."""
        lines = [self.name]
        for title, body in self.paragraphs:
            lines += ["", title]
            for text, is_formula in body:
                indent = FORMULA_INDENT if is_formula else "  "
                lines += textwrap.wrap(
                    text, WIDTH, initial_indent=indent, subsequent_indent="    ", break_on_hyphens=False
                ) or [""]
        return "\n".join(lines)

    def __rich__(self) -> Group:
        """Return the explanation of a parameter as a rich renderable, for a coloured print."""
        parts: list[RenderableType] = [Text(self.name, style="bold")]
        for title, body in self.paragraphs:
            parts += [
                Text(f"\n{title}", style="bold cyan"),
                *(Padding(Text(line.text), (0, 0, 0, len(FORMULA_INDENT) if line.is_formula else 2)) for line in body),
            ]
        return Group(*parts)

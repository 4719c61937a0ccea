"""The result of `verify`: sections with verdicts, printed as a table or in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from abcfx.report.console import VERDICT_STYLES, text_of, verdict_text
from abcfx.support.verdict import CheckResult, CheckRow, Verdict
from abcfx.verification.evidence import Evidence, Table


@dataclass(frozen=True, kw_only=True)
class Section(CheckRow):
    """One section of `verify` after its run: a topic, the claims about it, and whether all of them hold.

    A section also has `name` (its title), `verdict` and `reason` (the claims that do not hold).

    Attributes:
        number: position among all sections, from 1.
        tested: what the section tests, and why.
        evidence: claims and tables.
        seconds: CPU time of its run.
    """

    number: int
    tested: str
    evidence: Evidence = field(repr=False)
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Return the section as plain data: number, title, verdict, seconds, claims with their numbers, and tables."""
        return {
            "number": self.number,
            "title": self.name,
            "verdict": self.verdict.value,
            "seconds": round(self.seconds, 2),
            "claims": [claim.to_dict() for claim in self.evidence.claims],
            "tables": [vars(table) for table in self.evidence.tables],
        }

    def details(self) -> RenderableType:
        """Return the section in full, to be printed: what it tests, its tables, and every claim."""
        parts: list[RenderableType] = [Text(f"{self.number}. {self.name}\n"), Text(f"{self.tested}\n")]
        for table in self.evidence.tables:
            parts += [Text(f"{table.caption}:"), _shown(table), Text()]
        parts += [Text(str(claim), overflow="fold") for claim in self.evidence.claims]
        return Group(*parts, Text())


@dataclass(frozen=True, kw_only=True)
class Verification(CheckResult[Section]):
    """Result of `verify`, which tests that the package does what it says; true if every section that ran passes.

    Printing it shows a table of sections and the claims that do not hold.

    Attributes:
        rows: the sections that ran, in order.
    """

    TITLE: ClassVar[str] = "verification"

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections of `verify` that ran, in order; another name of `rows`."""
        return self.rows

    @property
    def seconds(self) -> float:
        """CPU time of all sections of `verify` together."""
        return sum(section.seconds for section in self.rows)

    def __iter__(self) -> Iterator[Section]:
        return iter(self.rows)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        """Return what is printed: a table of sections, the claims that do not hold, and the verdict."""
        table = _table("", "section", "verdict", "claims", "CPU s", left=("section", "verdict"))
        failed: list[Text] = []
        for section in self.rows:
            claims = section.evidence.claims
            held = f"{len(claims) - len(section.evidence.failed)} of {len(claims)}"
            cells = (verdict_text(section.verdict), held, f"{section.seconds:.1f}")
            table.add_row(str(section.number), section.name, *cells)
            for claim in section.evidence.failed:
                failed.append(Text(f"FAIL {section.number} {section.name}: {claim.name}: {claim.reason}"))
        summary = f"\n{self.TITLE}: {self.verdict}, {self.seconds:.0f} s of CPU time"
        return Group(table, *failed, Text(summary, VERDICT_STYLES[self.verdict]))


def section_result(number: int, title: str, tested: str, evidence: Evidence, seconds: float) -> Section:
    """Make the `Section` of the result from what it collected: it passes if it has claims and all of them hold.

    Args:
        number: position among all sections, from 1.
        title: heading of the section.
        tested: what it tests, and why.
        evidence: its claims and tables.
        seconds: CPU time of its run.
    """
    reason = "; ".join(claim.name for claim in evidence.failed)
    if evidence.verdict is Verdict.FAIL and not reason:
        reason = "it makes no claim"
    return Section(
        name=title,
        verdict=evidence.verdict,
        reason=reason,
        number=number,
        tested=tested,
        evidence=evidence,
        seconds=seconds,
    )


def _shown(table: Table) -> RichTable:
    """Lay out a table for printing: columns with words to the left, columns of numbers to the right."""
    words = [column for k, column in enumerate(table.columns) if any(row[k][:1].isalpha() for row in table.rows)]
    shown = _table(*table.columns, left=words)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _table(*columns: str, left: tuple[str, ...] | list[str]) -> RichTable:
    """Make an empty table for the printed result of `verify`.

    Args:
        columns: headings.
        left: those of them that are aligned to the left; the others are aligned to the right.
    """
    table = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table

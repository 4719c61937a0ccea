"""The result of a verification: sections with verdicts, printed as a table or in full."""

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
    """One section of a verification after its run; `name` is its title, `reason` lists the claims that do not hold.

    Attributes:
        number: position among all sections, from 1.
        tested: what the section tests, and why.
        evidence: claims and tables.
        seconds: CPU time.
    """

    number: int
    tested: str
    evidence: Evidence = field(repr=False)
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Return number, title, verdict, every claim with its numbers and every table as plain data."""
        return {
            "number": self.number,
            "title": self.name,
            "verdict": self.verdict.value,
            "seconds": round(self.seconds, 2),
            "claims": [claim.to_dict() for claim in self.evidence.claims],
            "tables": [vars(table) for table in self.evidence.tables],
        }

    def details(self) -> RenderableType:
        """Return the section in full: what it tests, its tables, and every claim."""
        parts: list[RenderableType] = [Text(f"{self.number}. {self.name}\n"), Text(f"{self.tested}\n")]
        for table in self.evidence.tables:
            parts += [Text(f"{table.caption}:"), _shown(table), Text()]
        parts += [Text(str(claim), overflow="fold") for claim in self.evidence.claims]
        return Group(*parts, Text())


@dataclass(frozen=True, kw_only=True)
class Verification(CheckResult[Section]):
    """Result of `verify`; true if every section that ran passes.

    Attributes:
        rows: the sections that ran, in order.
    """

    TITLE: ClassVar[str] = "verification"

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections that ran, in order."""
        return self.rows

    @property
    def seconds(self) -> float:
        """CPU time of all sections."""
        return sum(section.seconds for section in self.rows)

    def __iter__(self) -> Iterator[Section]:
        return iter(self.rows)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
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
    """Make the result of a section out of its evidence."""
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
    """Lay a table out: columns of words to the left, columns of numbers to the right."""
    words = [column for k, column in enumerate(table.columns) if any(row[k][:1].isalpha() for row in table.rows)]
    shown = _table(*table.columns, left=words)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _table(*columns: str, left: tuple[str, ...] | list[str]) -> RichTable:
    table = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table

"""The evidence that a section of `verify` collects: claims that hold or do not, and tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from abcfx.support.verdict import CheckRow, Verdict

NAMES_SHOWN = 2


@dataclass
class Table:
    """A table of text, shown with a section of the report of `verify`.

    Attributes:
        caption: what stands above the table.
        columns: headings of the columns.
        rows: cells as text.
    """

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row of cells to the table; floats are written with four digits, everything else as `str` does."""
        self.rows.append(tuple(number(cell) if isinstance(cell, float) else str(cell) for cell in cells))


@dataclass
class Evidence:
    """What one section of `verify` found: claims about the package that hold or not, and tables of numbers.

    Attributes:
        claims: a row for each claim, named by it, with PASS if it holds and FAIL if not; the reason holds the numbers
            that decided it, in either case.
        tables: numbers to be shown with the section.
    """

    claims: list[CheckRow] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """PASS if the section of `verify` has made claims and all of them hold, else FAIL."""
        holds = bool(self.claims) and all(claim.verdict is Verdict.PASS for claim in self.claims)
        return Verdict.PASS if holds else Verdict.FAIL

    @property
    def failed(self) -> list[CheckRow]:
        """The claims of the section that do not hold."""
        return [claim for claim in self.claims if claim.verdict is Verdict.FAIL]

    def check(self, claim: str, holds: bool, found: str = "") -> None:
        """Add one claim, and whether it holds, to the evidence of a section of `verify`.

        Args:
            claim: the claim as a sentence.
            holds: whether it holds.
            found: the numbers that decided it, as text.
        """
        self.claims.append(CheckRow(name=claim, verdict=Verdict.PASS if holds else Verdict.FAIL, reason=found))

    def close(self, claim: str, found: Sequence[float], expected: Sequence[float], within: float = 1e-9) -> None:
        """Add the claim that some numbers are the expected ones, each within a tolerance.

        Args:
            claim: the claim as a sentence.
            found: the numbers.
            expected: what they should be.
            within: largest difference allowed.
        """
        holds = len(found) == len(expected) and all(
            abs(ours - theirs) <= within for ours, theirs in zip(found, expected, strict=True)
        )
        self.check(claim, holds, numbers(found) + ("" if holds else f", expected {numbers(expected)}"))

    def no_exception(self, claim: str, exceptions: Sequence[str], cases: int = 1) -> None:
        """Add a claim about many cases; it holds if no case is an exception to it, and if there are cases at all.

        Args:
            claim: the claim as a sentence.
            exceptions: descriptions of the cases for which it does not hold; the first two are shown.
            cases: number of cases that were looked at.
        """
        more = f" and {len(exceptions) - NAMES_SHOWN} more" if len(exceptions) > NAMES_SHOWN else ""
        found = "; ".join(exceptions[:NAMES_SHOWN]) + more if exceptions else "all"
        self.check(claim, not exceptions and cases > 0, found)

    def table(self, caption: str, *columns: str) -> Table:
        """Add an empty table to the evidence and return it, to be filled with `add`.

        Args:
            caption: what stands above the table.
            columns: headings of the columns.
        """
        self.tables.append(Table(caption, columns))
        return self.tables[-1]


def number(value: float) -> str:
    """Write a number with four digits, and one that is 0 but for rounding errors as "0"."""
    return f"{value + 0.0:.4g}" if abs(value) > 5e-13 else "0"


def numbers(values: Sequence[float]) -> str:
    """Write numbers with four digits each, separated by commas."""
    return ", ".join(map(number, values))

"""The evidence that a section collects: claims that hold or do not, and tables of the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from abcfx.support.verdict import CheckRow, Verdict

NAMES_SHOWN = 2


@dataclass
class Table:
    """Rows of text under a caption."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row; numbers are written with four digits."""
        self.rows.append(tuple(number(cell) if isinstance(cell, float) else str(cell) for cell in cells))


@dataclass
class Evidence:
    """The claims and the tables of one section, in the order in which they were added.

    Attributes:
        claims: a row for each claim, named by it. Its reason holds the numbers that decided it, also where it holds.
        tables: numbers to be shown with the section.
    """

    claims: list[CheckRow] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """PASS if there are claims and all of them hold, else FAIL."""
        holds = bool(self.claims) and all(claim.verdict is Verdict.PASS for claim in self.claims)
        return Verdict.PASS if holds else Verdict.FAIL

    @property
    def failed(self) -> list[CheckRow]:
        """The claims that do not hold."""
        return [claim for claim in self.claims if claim.verdict is Verdict.FAIL]

    def check(self, claim: str, holds: bool, found: str = "") -> None:
        """Add a claim, whether it holds, and the numbers that say so."""
        self.claims.append(CheckRow(name=claim, verdict=Verdict.PASS if holds else Verdict.FAIL, reason=found))

    def close(self, claim: str, found: Sequence[float], expected: Sequence[float], within: float = 1e-9) -> None:
        """Add the claim that numbers are the expected ones, up to a tolerance."""
        holds = len(found) == len(expected) and all(
            abs(ours - theirs) <= within for ours, theirs in zip(found, expected, strict=True)
        )
        self.check(claim, holds, numbers(found) + ("" if holds else f", expected {numbers(expected)}"))

    def no_exception(self, claim: str, exceptions: Sequence[str], cases: int = 1) -> None:
        """Add a claim about many cases; the first exceptions to it are named, and there must be cases at all."""
        more = f" and {len(exceptions) - NAMES_SHOWN} more" if len(exceptions) > NAMES_SHOWN else ""
        found = "; ".join(exceptions[:NAMES_SHOWN]) + more if exceptions else "all"
        self.check(claim, not exceptions and cases > 0, found)

    def table(self, caption: str, *columns: str) -> Table:
        """Add an empty table and return it."""
        self.tables.append(Table(caption, columns))
        return self.tables[-1]


def number(value: float) -> str:
    """Write a number with four digits; rounding errors around zero are 0, without a sign."""
    return f"{value + 0.0:.4g}" if abs(value) > 5e-13 else "0"


def numbers(values: Sequence[float]) -> str:
    """Write numbers with four digits, separated by commas."""
    return ", ".join(map(number, values))

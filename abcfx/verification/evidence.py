"""What a verification is made of: checks and tables of a section, sections with a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PASS, FAIL = "PASS", "FAIL"


class Check(NamedTuple):
    """One claim, whether it holds, and the figures that say so."""

    claim: str
    passed: bool
    found: str


@dataclass
class Table:
    """Rows of text under a caption."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append(tuple(number(cell) if isinstance(cell, float) else str(cell) for cell in cells))


@dataclass
class Evidence:
    """What one section found."""

    checks: list[Check] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def check(self, claim: str, passed: bool, found: str = "") -> None:
        self.checks.append(Check(claim, bool(passed), found))

    def close(self, claim: str, found: Sequence[float], expected: Sequence[float], within: float = 1e-9) -> None:
        """Numbers that should be those expected."""
        passed = len(found) == len(expected) and all(
            abs(ours - theirs) <= within for ours, theirs in zip(found, expected, strict=True)
        )
        told = numbers(found) + ("" if passed else f", expected {numbers(expected)}")
        self.check(claim, passed, told)

    def table(self, caption: str, *columns: str) -> Table:
        self.tables.append(Table(caption, columns))
        return self.tables[-1]


class Part(NamedTuple):
    """A section as it is written down: `tested` says what and why; `run` finds the evidence."""

    number: int
    title: str
    tested: str
    run: Callable[[Any], Evidence]


@dataclass(frozen=True)
class Section:
    """A section as it came out."""

    number: int
    title: str
    tested: str
    evidence: Evidence
    seconds: float

    @property
    def verdict(self) -> str:
        """PASS where there are checks and all of them hold."""
        checks = self.evidence.checks
        return PASS if checks and all(check.passed for check in checks) else FAIL

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.evidence.checks if not check.passed]


@dataclass(frozen=True)
class Verification:
    """The sections that ran; true where each of them passed."""

    sections: tuple[Section, ...]

    def __bool__(self) -> bool:
        return bool(self.sections) and all(section.verdict == PASS for section in self.sections)

    def __iter__(self) -> Iterator[Section]:
        return iter(self.sections)

    @property
    def verdict(self) -> str:
        return PASS if self else FAIL

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: verdicts, every check with its figures, every table."""
        return {
            "check": "verify",
            "verdict": self.verdict,
            "sections": [
                {
                    "number": section.number,
                    "title": section.title,
                    "verdict": section.verdict,
                    "seconds": round(section.seconds, 2),
                    "checks": [check._asdict() for check in section.evidence.checks],
                    "tables": [vars(table) for table in section.evidence.tables],
                }
                for section in self.sections
            ],
        }


def number(value: float) -> str:
    """Four digits; no minus before zero."""
    return f"{value + 0.0:.4g}" if abs(value) > 5e-13 else "0"


def numbers(values: Sequence[float]) -> str:
    return ", ".join(map(number, values))

"""Verdicts of checks, and the one protocol that the result of every check follows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from abcfx.errors import CheckFailedError
from abcfx.support.figures import draw_verdicts, new_figure, save
from abcfx.support.text import finite, to_pandas

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class HasDict(Protocol):
    """A row of a check's result that can be turned into plain data, for JSON and DataFrames."""

    def to_dict(self) -> dict[str, object]:
        """Return the row of the result as a dict of plain data."""


AnyRow = TypeVar("AnyRow", bound=HasDict)


@dataclass(frozen=True, kw_only=True)
class RowsResult(Generic[AnyRow]):
    """A result that consists of rows, with the ways in which it is handed on: plain data, JSON, a DataFrame.

    Attributes:
        TITLE: name of the check, for its report.
        rows: the rows in the order in which they are reported.
    """

    TITLE: ClassVar[str]
    rows: tuple[AnyRow, ...] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """Return the title and the rows of the result as plain data."""
        return {"check": self.TITLE, "rows": [row.to_dict() for row in self.rows]}

    def to_json(self) -> str:
        """Return the result as JSON text; numbers that are not finite become null."""
        return json.dumps(finite(self.to_dict()), allow_nan=False)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows of the result as a pandas DataFrame.

        Raises:
            InvalidInputError: pandas is not installed.
        """
        return to_pandas([row.to_dict() for row in self.rows])


class Verdict(str, Enum):
    """An outcome of a check or of one of its rows; the members stand from the worst to the best.

    FAIL: the row is wrong. INCONCLUSIVE: the measurement cannot tell. WEAK: no fault, but not what was hoped for. PASS:
    the row is right. SKIP: there was nothing to judge; the reason says why.
    """

    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    WEAK = "WEAK"
    PASS = "PASS"
    SKIP = "SKIP"

    def __str__(self) -> str:
        """Return the verdict as a word, such as "PASS"."""
        return self.value


WORST_FIRST = tuple(Verdict)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts, from FAIL to PASS; SKIP only if there are none but skipped ones.

    Example:
        >>> print(worst([Verdict.PASS, Verdict.SKIP]), worst([Verdict.PASS, Verdict.WEAK]), worst([]))
        PASS WEAK SKIP
    """
    return min(verdicts, key=WORST_FIRST.index, default=Verdict.SKIP)


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One thing that a check judged, with the verdict; checks with more to say derive a row class of their own.

    Attributes:
        name: the layer, parameter or claim that was judged.
        verdict: the outcome.
        reason: why it is not PASS, with the numbers that decided it.
        fix: the line to write, where one is known.
    """

    name: str
    verdict: Verdict
    reason: str = ""
    fix: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the row (name, verdict, reason and fix) as a dict of plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the row (verdict, name, reason and fix) as text."""
        text = f"{self.verdict} {self.name}" + (f": {self.reason}" if self.reason else "")
        return f"{text}\n  To fix: {self.fix}" if self.fix else text


CheckRowType = TypeVar("CheckRowType", bound=CheckRow)


@dataclass(frozen=True, kw_only=True)
class CheckResult(RowsResult[CheckRowType]):
    """The result of a check: a verdict over rows. It is true on PASS alone, so `assert result` works as a test.

    Attributes:
        rows: everything that was judged, in the order in which it is reported.

    Example:
        >>> result = CheckResult(rows=(CheckRow(name="head", verdict=Verdict.FAIL, reason="lr = 1, expected 0.5"),))
        >>> bool(result)
        False
        >>> print(result)
        check: FAIL
        FAIL head: lr = 1, expected 0.5
    """

    TITLE: ClassVar[str] = "check"

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of any row of the check; SKIP without rows."""
        return worst(row.verdict for row in self.rows)

    @property
    def failed(self) -> tuple[CheckRowType, ...]:
        """The rows of the check whose verdict is FAIL."""
        return tuple(row for row in self.rows if row.verdict is Verdict.FAIL)

    def __bool__(self) -> bool:
        """Whether the verdict of the check is PASS."""
        return self.verdict is Verdict.PASS

    def raise_if_failed(self) -> None:
        """Raise an error if the verdict of the check is FAIL.

        Raises:
            CheckFailedError: its text has the rows that fail, with their reasons and what to write.
        """
        if self.verdict is Verdict.FAIL:
            raise CheckFailedError("\n".join([f"The {self.TITLE} failed.", *map(str, self.failed)]))

    def to_dict(self) -> dict[str, object]:
        """Return the verdict, the names of the rows that fail, and all rows as plain data."""
        verdicts = {"verdict": self.verdict.value, "failed": [row.name for row in self.failed]}
        return {"check": self.TITLE, **verdicts, **super().to_dict()}

    def plot(self, path: str | None = None) -> Figure:
        """Draw the rows of the check with their verdicts.

        Args:
            path: where to write the figure; its ending chooses the format (.png, .svg, .pdf).

        Raises:
            InvalidInputError: matplotlib is not installed.
        """
        figure = new_figure(8, 1 + 0.25 * len(self.rows))
        draw_verdicts(figure.subplots(), [(row.name, row.verdict.value) for row in self.rows])
        figure.suptitle(f"{self.TITLE}: {self.verdict}", size=11)
        return save(figure, path)

    def __str__(self) -> str:
        """Return the verdict of the check and all its rows as text."""
        return "\n".join([f"{self.TITLE}: {self.verdict}", *map(str, self.rows)])

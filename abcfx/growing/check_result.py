"""The result of checking a growth, and its printed report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Table

from abcfx.report.console import text_of
from abcfx.support.verdict import CheckResult, CheckRow, Verdict

CheckName = Literal["C0", "C1", "C2", "C3", "C4", "C5", "C6"]
TITLES: dict[CheckName, str] = {
    "C0": "sanity",
    "C1": "constants and geometry",
    "C2": "routers",
    "C3": "symmetry",
    "C4": "layers",
    "C5": "trajectory",
    "C6": "outputs",
}


@dataclass(frozen=True, kw_only=True)
class GrowthCheckRow(CheckRow):
    """The outcome of one of the seven checks that a grown (larger) model computes and trains as the small one.

    Attributes:
        check: number of the check, such as "C2"; `name` also has the title.
        value: the worst number measured.
        tolerance: the largest, or for C3 the least, value that passes.
        node: op or tensor where the value was measured.
        path: module path, or name of the parameter.
        details: lines for the report.
    """

    check: CheckName
    value: float | None = None
    tolerance: float | None = None
    node: str = ""
    path: str = ""
    details: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return the row of this check of a grown model as a dict of plain data."""
        return asdict(self) | {"verdict": self.verdict.value, "details": list(self.details)}

    def __str__(self) -> str:
        """Return the row of this check of a grown model as text: verdict, name, place, reason and fix."""
        where = f" at {self.path}" if self.path else ""
        node = f" ({self.node})" if self.node else ""
        reason = f": {self.reason}" if self.reason else ""
        fix = f"\n  To fix: {self.fix}" if self.fix else ""
        return f"{self.verdict} {self.name}{where}{node}{reason}{fix}"


def judged(
    check: CheckName,
    verdict: Verdict,
    reason: str = "",
    fix: str = "",
    *,
    value: float | None = None,
    tolerance: float | None = None,
    node: str = "",
    path: str = "",
    details: tuple[str, ...] | list[str] = (),
) -> GrowthCheckRow:
    """Make the result row of one check of a grown model; the arguments are the attributes of `GrowthCheckRow`."""
    return GrowthCheckRow(
        name=f"{check} {TITLES[check]}",
        verdict=verdict,
        reason=reason,
        fix=fix,
        check=check,
        value=value,
        tolerance=tolerance,
        node=node,
        path=path,
        details=tuple(details),
    )


@dataclass(frozen=True, kw_only=True)
class GrowthCheckResult(CheckResult[GrowthCheckRow]):
    """The result of `verify_growth`: one row for each check, in the order of causes. It is true on PASS alone.

    Read the first row that fails; later ones are often its consequences. `result["C4"]` is the row of that check.
    """

    TITLE: ClassVar[str] = "growth check"

    def __getitem__(self, check: str) -> GrowthCheckRow:
        """Return the row of one check of a growth (a large model filled from a small one), by a name such as "C4"."""
        return next(row for row in self.rows if row.check == check)

    def __iter__(self) -> Iterator[GrowthCheckRow]:
        """Yield the rows of the checks of a growth (a large model filled from a small one) in order."""
        return iter(self.rows)

    @property
    def first_failure(self) -> GrowthCheckRow | None:
        """The row of the first check that failed of a growth (a large model filled from a small one), or None."""
        return next(iter(self.failed), None)

    def __str__(self) -> str:
        """Return the printed report of the checks of a growth (a large model filled from a small one)."""
        return text_of(*self._lines(), width=100)

    def _lines(self) -> Iterator[RenderableType]:
        """Yield the parts of the printed report on checks of a growth: the details of each, then a table of all.

        A growth is a large model that was filled from a small one.
        """
        for row in self.rows:
            yield Rule(f"{row.name}: {row.verdict}", align="left")
            for line in (*row.details, row.reason, f"To fix: {row.fix}" if row.fix else ""):
                if line:
                    yield f"  {line}"
        yield Rule("summary", align="left")
        table = Table("check", "verdict", "value", "tolerance", "where", box=SIMPLE_HEAD, pad_edge=False)
        for row in self.rows:
            numbers = ("" if number is None else f"{number:.2g}" for number in (row.value, row.tolerance))
            table.add_row(row.name, row.verdict.value, *numbers, row.path or row.node)
        yield table
        yield f"verdict: {self.verdict}"

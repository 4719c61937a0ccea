"""The result of `diagnose`: numbers, slopes over width and verdicts of six diagnostics of hyper-connections.

A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.hyper_connections.figures import plot_diagnosis
from abcfx.hyper_connections.rows import Diagnostic, DiagnosticRow, LawSlope, Measurement
from abcfx.report.console import VERDICT_STYLES, text_of, verdict_text
from abcfx.support.choices import choose
from abcfx.support.figures import save
from abcfx.support.verdict import WORST_FIRST, CheckResult, Verdict, worst

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REASONS_SHOWN = 3
MODULES_SHOWN = 4  # of a model with more hyper-connections, only the smallest and largest numbers are printed


@dataclass(frozen=True, kw_only=True)
class Diagnosis(CheckResult[DiagnosticRow]):
    """Result of `diagnose`, which tests hyper-connections: residual connections over n streams with learned mixing.

    `bool(result)` is true if the verdict is PASS; printing it shows numbers, slopes and verdicts.

    Attributes:
        rows: verdicts, one for each diagnostic, or for each diagnostic and each hyper-connection of a user's model.
        measurements: every measured number, by diagnostic, quantity, and width or module.
        slopes: how quantities grow with width (as width^slope), for hyper-connections drawn at several widths; empty
            for a user's model.
        settings: the options that `diagnose` was called with.
    """

    TITLE: ClassVar[str] = "hyper-connections"
    measurements: tuple[Measurement, ...] = field(repr=False)
    slopes: tuple[LawSlope, ...]
    settings: Mapping[str, object]

    def status(self, diagnostic: str) -> Verdict:
        """Return the worst verdict of one diagnostic, such as "spectrum"; refuse an unknown one."""
        choose("diagnostic", diagnostic, Diagnostic)
        return worst(row.verdict for row in self.rows if row.diagnostic == diagnostic)

    def values(self, diagnostic: str, quantity: str) -> dict[int | str | None, float]:
        """Return the mean of one measured quantity by width, or by module path for a user's model.

        Args:
            diagnostic: such as "spectrum".
            quantity: such as "norm".

        Raises:
            InvalidInputError: the diagnostic has no such quantity; the message lists those that there are.
        """
        found = [each for each in self.measurements if (each.diagnostic, each.quantity) == (diagnostic, quantity)]
        if not found:
            choose("diagnostic", diagnostic, Diagnostic)
            known = dict.fromkeys(each.quantity for each in self.measurements if each.diagnostic == diagnostic)
            choose(f"{diagnostic}: quantity", quantity, known)
        return {each.place: each.mean for each in found}

    def to_dict(self) -> dict[str, object]:
        """Return the result as plain data: verdict, rows, failed rows, settings, exponents of width, measurements."""
        return super().to_dict() | {
            "settings": dict(self.settings),
            "slopes": [each.to_dict() for each in self.slopes],
            "measurements": [each.to_dict() for each in self.measurements],
        }

    def plot(self, path: str | None = None) -> Figure:
        """Draw six panels, one for each diagnostic: its numbers over width, or over the hyper-connections of a model.

        Args:
            path: where to write the figure; its ending chooses the format (.png, .svg, .pdf).

        Raises:
            InvalidInputError: matplotlib is not installed.
        """
        verdicts = {diagnostic: self.status(diagnostic) for diagnostic in Diagnostic}
        return save(plot_diagnosis(f"{self.TITLE}: {self.verdict}", self.measurements, verdicts), path)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        """Return what is printed: a headline, tables of numbers and exponents of width, a line per diagnostic."""
        head = Text(f"{self.TITLE}: ").append(verdict_text(self.verdict))
        shown = ", ".join(f"{key} {_setting(value)}" for key, value in self.settings.items())
        head.append(f"\n{shown}\n")
        many = len({each.module for each in self.measurements} - {None}) > MODULES_SHOWN
        parts: list[RenderableType] = [head, self._extremes() if many else self._numbers(), Text()]
        if self.slopes:
            parts += [self._slopes(), Text()]
        return Group(*parts, *self._reasons())

    def _reasons(self) -> list[Text]:
        """Return printed lines with the verdict and reason of each diagnostic.

        For a model with many hyper-connections, up to three of the worst are shown and the others counted.

        A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
        """
        lines = []
        for diagnostic in Diagnostic:
            mine = [row for row in self.rows if row.diagnostic is diagnostic]
            mine.sort(key=lambda row: WORST_FIRST.index(row.verdict))
            shown = [row for row in mine if row.verdict is not Verdict.PASS][:REASONS_SHOWN] or mine[:1]
            for row in shown:
                fix = f". To fix: {row.fix}" if row.fix else ""
                lines.append(Text.assemble(verdict_text(row.verdict), f" {row.name}: {row.reason}{fix}"))
            if left := mine[len(shown) :]:
                counts = Counter(row.verdict for row in left)
                lines.append(Text(f"     and {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}"))
        return lines

    def _numbers(self) -> Table:
        """Make a table of means over samples: a line for each quantity, a column for each width or module."""
        columns = list(dict.fromkeys(each.place for each in self.measurements))
        table = _table()
        for place in columns:
            table.add_column("any width" if place is None else str(place), justify="right", overflow="fold")
        for diagnostic in Diagnostic:
            for quantity, mine in self._by_quantity(diagnostic, table).items():
                cells = {each.place: each.mean for each in mine}
                table.add_row(f"  {quantity}", *(_number(cells.get(place)) for place in columns))
        return table

    def _extremes(self) -> Table:
        """Make a table with a line for each quantity: its smallest and largest mean over a model's modules."""
        table = _table()
        for name in ("smallest", "largest"):
            table.add_column(name, justify="right")
        table.add_column("in", overflow="fold")
        for diagnostic in Diagnostic:
            for quantity, mine in self._by_quantity(diagnostic, table).items():
                mine.sort(key=lambda each: each.mean)
                table.add_row(f"  {quantity}", _number(mine[0].mean), _number(mine[-1].mean), mine[-1].module)
        return table

    def _by_quantity(self, diagnostic: Diagnostic, table: Table) -> dict[str, list[Measurement]]:
        """Return one diagnostic's measurements by name of the quantity; if there are any, write its heading too.

        Args:
            diagnostic: the diagnostic.
            table: the table that is being made.
        """
        found: dict[str, list[Measurement]] = {}
        for each in self.measurements:
            if each.diagnostic is diagnostic:
                found.setdefault(each.quantity, []).append(each)
        if found:
            table.add_row(Text(diagnostic.heading, "bold"))
        return found

    def _slopes(self) -> Table:
        """Make a table of how quantities of hyper-connections grow with width: measured slopes, and those predicted.

        A prediction follows from the scaling of the initial weights and the learning rate.
        """
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column("slope over width", no_wrap=True)
        for name in ("measured", "law of the init"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in self.slopes:
            measured = "zero" if each.mean is None else f"{each.mean:+.3f} ± {each.error:.3f}"
            style = "" if each.agrees else VERDICT_STYLES[Verdict.FAIL]
            table.add_row(f"{each.diagnostic.words}: {each.quantity}", Text(measured, style), f"{each.law:+.2f}")
        return table


def _table() -> Table:
    """Make an empty table whose first column is for the names of quantities."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("mean over samples", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    """Format a number with three digits; None becomes ""."""
    return "" if value is None else f"{value:.3g}"


def _setting(value: object) -> str:
    """Format the value of an option for printing; the items of a tuple are separated by spaces."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""The result of a coordinate check: slopes with verdicts, by layer, as text, figure or data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.checks.plots import plot_coord
from abcfx.checks.slopes import CHANGE, INIT, UPDATE, Measurement, Slope
from abcfx.checks.variants import STANDARD, TRANSFORMED, Variant
from abcfx.report.console import text_of, verdict_text
from abcfx.support.figures import save
from abcfx.support.verdict import CheckResult, CheckRow, Verdict, worst

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATISTICS = (INIT, UPDATE, CHANGE)
NAMES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LayerRow(CheckRow):
    """One layer of the transformed model, with the worst verdict of its slopes.

    Attributes:
        cause: the earlier layer that is to blame, if this layer fails only because of what comes into it.
    """

    cause: str | None = None


@dataclass(frozen=True, kw_only=True)
class CoordCheck(CheckResult[LayerRow]):
    """Result of `coord_check`; true if the verdict is PASS.

    Attributes:
        rows: one for each layer, in the order in which layers run.
        widths: in increasing order.
        base_width: where transformed and standard model are the same.
        seeds: those of the transformed model.
        steps: optimizer steps after which updates and changes are judged.
        slopes: in the order in which layers run, transformed model first.
        measurements: every value that slopes are fitted to.
    """

    TITLE: ClassVar[str] = "coordinate check"
    widths: tuple[int, ...]
    base_width: int
    seeds: tuple[int, ...]
    steps: int
    slopes: tuple[Slope, ...]
    measurements: tuple[Measurement, ...] = field(repr=False)

    @property
    def control(self) -> Verdict | None:
        """The worst verdict of the model as written, which should fail; None without a control."""
        found = [each for each in self.slopes if each.model == STANDARD]
        return worst(_verdicts(found)) if found else None

    @property
    def nodes(self) -> dict[str, Verdict]:
        """Layer -> its worst verdict, in the order in which layers run."""
        return {row.name: row.verdict for row in self.rows}

    @property
    def failed(self) -> tuple[LayerRow, ...]:
        """The layers that fail by a fault of their own, in the order in which they run."""
        return tuple(row for row in super().failed if row.cause is None)

    def slope(self, node: str, statistic: str = UPDATE, model: Variant = TRANSFORMED) -> Slope:
        """Return the slope that is judged. Raises KeyError for a layer or a statistic that was not seen."""
        found = self._find(node, statistic, model)
        if found is None:
            raise KeyError(f"{node!r} has no {statistic!r} of the {model} model; there are {', '.join(self.nodes)}.")
        return found

    def _find(self, node: str, statistic: str, model: Variant = TRANSFORMED) -> Slope | None:
        step = 0 if statistic == INIT else self.steps
        wanted = (node, statistic, model, step)
        return next((s for s in self.slopes if (s.node, s.statistic, s.model, s.step) == wanted), None)

    def to_dict(self) -> dict[str, object]:
        """Return verdicts, layers and slopes as plain data."""
        return super().to_dict() | {
            "control": self.control,
            "widths": self.widths,
            "base_width": self.base_width,
            "seeds": self.seeds,
            "steps": self.steps,
            "nodes": self.nodes,
            "slopes": [each.to_dict() for each in self.slopes],
        }

    def plot(self, path: str | None = None) -> Figure:
        """Draw every statistic over width, transformed and as written, and the slopes of updates with their intervals.

        Args:
            path: where to write the figure; its ending chooses the format (.png, .svg, .pdf).

        Raises:
            InvalidInputError: matplotlib is not installed.
        """
        last = [each for each in self.slopes if each.step == self.steps]
        values = [each for each in self.measurements if each.step == self.steps]
        title = f"{self.TITLE}: {self.verdict}, {len(self.seeds)} seeds, after {self.steps} steps"
        return save(plot_coord(title, self.nodes, last, values), path)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        reasons = [Text(f"  {line}", overflow="fold") for line in self._reasons()]
        return Group(self._headline(), Text(), self._table(), Text(), *reasons)

    def _headline(self) -> Text:
        control = "" if self.control is None else f"; the model as written: {self.control}"
        text = Text(f"{self.TITLE}: ").append(verdict_text(self.verdict)).append(control)
        widths = ", ".join(map(str, self.widths))
        text.append(f"\nwidths {widths} (base {self.base_width}), {len(self.seeds)} seeds, {self.steps} steps\n")
        return text.append(
            "Slopes of log2 RMS over log2 width ± standard error. init: W0 x, update: (W - W0) x,\n"
            "change: W x - W0 x0; "
            "expected: of the update; as written: the same update in standard parametrization."
        )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column("layer", overflow="fold")
        for name in (*STATISTICS, "expected", "as written"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict")
        for row in self.rows:
            of_logits = self._find(row.name, UPDATE) is None
            statistic = CHANGE if of_logits else UPDATE
            cells = [_shown(self._find(row.name, each)) for each in STATISTICS]
            expected = _interval(self._find(row.name, statistic))
            control = _shown(self._find(row.name, statistic, STANDARD))
            table.add_row(row.name, *cells, expected, control, verdict_text(row.verdict))
        return table

    def _reasons(self) -> list[str]:
        """Return a line for each slope that did not pass; layers that were skipped for one reason share a line."""
        told = [slope for slope in self.slopes if slope.model == TRANSFORMED and slope.reason]
        silent = (Verdict.PASS, Verdict.SKIP, None)
        lines = [f"{slope.verdict} {slope.node}: {slope.reason}" for slope in told if slope.verdict not in silent]
        skipped: dict[str, list[str]] = {}
        for slope in told:
            if slope.verdict is Verdict.SKIP:
                skipped.setdefault(slope.reason, []).append(slope.node)
        for reason, nodes in skipped.items():
            more = f" and {len(nodes) - NAMES_SHOWN} more" if len(nodes) > NAMES_SHOWN else ""
            lines.append(f"{Verdict.SKIP} {', '.join(nodes[:NAMES_SHOWN])}{more}: {reason}")
        return lines


def layer_rows(slopes: Iterable[Slope]) -> tuple[LayerRow, ...]:
    """Sum up the judged slopes of the transformed model, layer by layer."""
    by_node: dict[str, list[Slope]] = {}
    for each in slopes:
        if each.model == TRANSFORMED:
            by_node.setdefault(each.node, []).append(each)
    return tuple(_layer_row(node, own) for node, own in by_node.items())


def _layer_row(node: str, slopes: list[Slope]) -> LayerRow:
    verdict = worst(_verdicts(slopes))
    deciding = [each for each in slopes if each.verdict is verdict]
    causes = {each.cause for each in deciding}
    unjudged = "" if _verdicts(slopes) else "the exponents predict nothing of it"
    return LayerRow(
        name=node,
        verdict=verdict,
        reason="; ".join(dict.fromkeys(each.reason for each in deciding if each.reason)) or unjudged,
        cause=None if None in causes else next(iter(causes), None),
    )


def _verdicts(slopes: Iterable[Slope]) -> list[Verdict]:
    return [each.verdict for each in slopes if each.verdict is not None]


def _shown(slope: Slope | None) -> str:
    if slope is None:
        return ""
    if slope.mean is None:
        return "zero" if slope.verdict is Verdict.SKIP else "-"
    return f"{slope.mean:+.2f} ± {slope.error:.2f}"


def _interval(slope: Slope | None) -> str:
    return "" if slope is None or slope.interval is None else str(slope.interval)

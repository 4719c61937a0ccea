"""The result of a coordinate check (how each layer's size and change depend on width): verdicts, text, figure, data."""

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
from abcfx.errors import InvalidInputError
from abcfx.report.console import text_of, verdict_text
from abcfx.support.figures import save
from abcfx.support.text import shown
from abcfx.support.verdict import CheckResult, CheckRow, Verdict, worst

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATISTICS = (INIT, UPDATE, CHANGE)
NAMES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LayerRow(CheckRow):
    """One layer in the result of a coordinate check: its name, and the worst verdict on how it scales with width.

    A row also has `name` (the layer's parameter, or an attention), `verdict`, `reason` (why it is not PASS) and `fix`.

    Attributes:
        cause: name of an earlier layer, if this layer fails only because the input that it gets from there is too large
            or small; else None.
    """

    cause: str | None = None


@dataclass(frozen=True, kw_only=True)
class CoordCheck(CheckResult[LayerRow]):
    """Result of `coord_check`, which trains a model at several widths and judges how its layers scale with width.

    `bool(result)` is true if the verdict is PASS; printing it shows a table of slopes and verdicts.

    Attributes:
        rows: one for each layer of the transformed model, in the order in which layers run.
        widths: the widths at which the model was trained, in increasing order.
        base_width: the width at which `transform` changes nothing.
        seeds: the seeds with which the transformed model was trained.
        steps: number of optimizer steps after which updates and changes are judged.
        slopes: for each layer the exponents with which its rms at init, its update and its change grow with width;
            those of the transformed model come first, then those of the user's unchanged model.
        measurements: every value that the slopes are fitted to.
        advice: what would decide the layers that are INCONCLUSIVE; "" if there are none.
    """

    TITLE: ClassVar[str] = "coordinate check"
    widths: tuple[int, ...]
    base_width: int
    seeds: tuple[int, ...]
    steps: int
    slopes: tuple[Slope, ...]
    measurements: tuple[Measurement, ...] = field(repr=False)
    advice: str = ""

    @property
    def control(self) -> Verdict | None:
        """The worst verdict of the user's unchanged model, trained for comparison; it should be FAIL.

        None if the unchanged model was not trained.
        """
        found = [each for each in self.slopes if each.model == STANDARD]
        return worst(_verdicts(found)) if found else None

    @property
    def nodes(self) -> dict[str, Verdict]:
        """The worst verdict of each layer of the transformed model, by layer name, in the order in which layers run."""
        return {row.name: row.verdict for row in self.rows}

    @property
    def failed(self) -> tuple[LayerRow, ...]:
        """The rows of layers that fail by themselves, not because an earlier layer feeds them a wrong input."""
        return tuple(row for row in super().failed if row.cause is None)

    def slope(self, node: str, statistic: str = UPDATE, model: Variant = TRANSFORMED) -> Slope:
        """Return the exponent with which one measured number of one layer grows with width, at the step that is judged.

        Args:
            node: name of the layer, as in the printed table.
            statistic: "init" (rms of the output at init), "update" (rms of dW x) or "change" (of the output since
                init).
            model: "transformed", or "standard" for the user's unchanged model.

        Raises:
            InvalidInputError: this was not measured for that model.
        """
        found = self._find(node, statistic, model)
        if found is None:
            raise InvalidInputError(
                f"slope: no {shown(statistic)} of the {shown(model)} model was measured for {shown(node)}.\n"
                f"  Expected one of the layers {', '.join(self.nodes)}; 'init', 'update' or 'change'; and "
                f"'transformed' or 'standard'.\n  To fix: slope({next(iter(self.nodes))!r})"
            )
        return found

    def _find(self, node: str, statistic: str, model: Variant = TRANSFORMED) -> Slope | None:
        """Return the exponent with which a number of a layer grows with width, or None if it was not measured.

        Args:
            node: name of the layer.
            statistic: the number: the rms "init" (of the output at step 0), or "update" or "change" at the last step.
            model: "transformed", or "standard" for the user's unchanged model.
        """
        step = 0 if statistic == INIT else self.steps
        wanted = (node, statistic, model, step)
        return next((s for s in self.slopes if (s.node, s.statistic, s.model, s.step) == wanted), None)

    def to_dict(self) -> dict[str, object]:
        """Return the result as plain data: verdict, failed layers, settings, verdict by layer and all slopes.

        A slope is the exponent with which the rms of a layer's output at init, update or change grows with width. The
        keys beside those of every check ("check", "verdict", "failed", "rows") are "control" (worst verdict of the
        user's unchanged model, or None), "widths", "base_width", "seeds", "steps", "nodes", "advice" (what would
        decide it) and "slopes".
        """
        return super().to_dict() | {
            "control": self.control,
            "widths": self.widths,
            "base_width": self.base_width,
            "seeds": self.seeds,
            "steps": self.steps,
            "nodes": self.nodes,
            "advice": self.advice,
            "slopes": [each.to_dict() for each in self.slopes],
        }

    def plot(self, path: str | None = None) -> Figure:
        """Draw each layer's update and change over width, in the transformed and the unchanged model, with slopes.

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
        """Return what is printed: a headline, a table of the layers, and a line for each layer that did not pass."""
        reasons = [Text(f"  {line}", overflow="fold") for line in self._reasons()]
        return Group(self._headline(), Text(), self._table(), Text(), *reasons)

    def _headline(self) -> Text:
        """Return the first printed lines: the verdicts, the settings, and what the columns of the table mean."""
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
        """Return the printed table, with a line for each layer: slopes (exponents of width) and the verdict.

        Columns: the measured slopes, the expected slope of the update, and the update's slope in the user's unchanged
        model.

        For attention logits, which have no weight and so no update, the last two columns speak of their change since
        init.
        """
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
        """Return a printed line for each slope (exponent of width) of the transformed model that did not pass.

        Layers that were skipped for the same reason share one line.
        """
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
        return [*lines, self.advice] if self.advice else lines


def layer_rows(slopes: Iterable[Slope]) -> tuple[LayerRow, ...]:
    """Sum up measured slopes, exponents of width, into one row for each layer, with its worst verdict and the reasons.

    Slopes of the user's unchanged model are left out. Layers keep the order in which their first slope comes.
    """
    by_node: dict[str, list[Slope]] = {}
    for each in slopes:
        if each.model == TRANSFORMED:
            by_node.setdefault(each.node, []).append(each)
    return tuple(_layer_row(node, own) for node, own in by_node.items())


def _layer_row(node: str, slopes: list[Slope]) -> LayerRow:
    """Make the row of one layer from its slopes (exponents of width): worst verdict, the reasons for it, and the cause.

    Args:
        node: name of the layer.
        slopes: its slopes. The row's cause is an earlier layer that feeds it a wrong input, named only if every slope
            with the worst verdict blames an earlier layer.
    """
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
    """Return the verdicts of those slopes (exponents of width) that were judged, not only measured."""
    return [each.verdict for each in slopes if each.verdict is not None]


def _shown(slope: Slope | None) -> str:
    """Format a measured slope (exponent of width) for the table: "+0.50 ± 0.02", "zero" for values of 0, or ""."""
    if slope is None:
        return ""
    if slope.mean is None:
        return "zero" if slope.verdict is Verdict.SKIP else "-"
    return f"{slope.mean:+.2f} ± {slope.error:.2f}"


def _interval(slope: Slope | None) -> str:
    """Format the expected interval of a slope (exponent of width), such as "-0.50 to +0.00"; "" if none is expected."""
    return "" if slope is None or slope.interval is None else str(slope.interval)

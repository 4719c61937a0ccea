"""What a coordinate check returns: slopes with verdicts, by layer, printed, drawn or handed on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.checks.expected_slopes import CHANGE, INIT, UPDATE
from abcfx.checks.slopes import FAIL, INFO, PASS, SKIP, Slope, worst
from abcfx.checks.sweep_models import STANDARD, TRANSFORMED
from abcfx.report.console import VERDICT_STYLES, text_of
from abcfx.support.text import to_pandas

STATISTICS = (INIT, UPDATE, CHANGE)
NAMES_SHOWN = 3


@dataclass(frozen=True)
class CoordCheck:
    """Result of `coord_check`; true where the verdict is PASS.

    Attributes:
        widths: in increasing order.
        base_width: where transformed and standard model are the same.
        seeds: those of the transformed model.
        steps: optimizer steps after which updates and changes are judged.
        slopes: in the order in which layers run, transformed model first.
        rows: a dict for every value: model, width, seed, step, node, statistic, value.
    """

    widths: tuple[int, ...]
    base_width: int
    seeds: tuple[int, ...]
    steps: int
    slopes: list[Slope]
    rows: list[dict[str, Any]] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The worst verdict of any layer of the transformed model."""
        return worst([each.verdict for each in self.slopes if each.model == TRANSFORMED])

    @property
    def control(self) -> str | None:
        """The worst verdict of the model as written, which should fail; None without a control."""
        found = [each.verdict for each in self.slopes if each.model == STANDARD]
        return worst(found) if found else None

    @property
    def nodes(self) -> dict[str, str]:
        """Layer -> its worst verdict, in the order in which layers run."""
        return self._verdicts(TRANSFORMED)

    @property
    def failed(self) -> list[str]:
        """Layers that fail by a fault of their own, in the order in which they run."""
        found = [s.node for s in self.slopes if s.model == TRANSFORMED and s.verdict == FAIL and s.cause is None]
        return list(dict.fromkeys(found))

    def slope(self, node: str, statistic: str = UPDATE, model: str = TRANSFORMED) -> Slope:
        """The slope that is judged. Raises KeyError for a layer or a statistic that was not seen."""
        step = 0 if statistic == INIT else self.steps
        for each in self.slopes:
            if (each.node, each.statistic, each.model, each.step) == (node, statistic, model, step):
                return each
        raise KeyError(f"{node!r} has no {statistic!r} of the {model} model; there are {', '.join(self.nodes)}.")

    def __bool__(self) -> bool:
        return self.verdict == PASS

    def to_pandas(self) -> Any:
        """`rows` as a DataFrame. Raises InvalidInputError without pandas."""
        return to_pandas(self.rows)

    def to_json(self) -> str:
        """Verdicts and slopes."""
        return json.dumps(
            {
                "check": "coord",
                "verdict": self.verdict,
                "control": self.control,
                "failed": self.failed,
                "widths": self.widths,
                "base_width": self.base_width,
                "seeds": self.seeds,
                "steps": self.steps,
                "nodes": self.nodes,
                "slopes": [each.row() for each in self.slopes],
                "notes": self.notes,
            }
        )

    def plot(self, path: str | None = None) -> Any:
        """Every statistic over width, transformed and as written, and the slopes of updates, as a matplotlib figure."""
        from abcfx.checks.plots import plot_coord

        return plot_coord(self, path)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._headline(), Text(), self._table(), Text()]
        parts += [Text(f"  {line}", overflow="fold") for line in self._reasons()]
        parts += [Text(f"note: {note}") for note in self.notes]
        return Group(*parts)

    def _headline(self) -> Text:
        control = "" if self.control is None else f"; the model as written: {self.control}"
        text = Text("coordinate check: ").append(self.verdict, VERDICT_STYLES[self.verdict]).append(control)
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
        for node, verdict in self.nodes.items():
            logits = self._find(node, UPDATE) is None
            judged = self._find(node, CHANGE if logits else UPDATE)
            cells = [_shown(self._find(node, statistic)) for statistic in STATISTICS]
            control = self._find(node, CHANGE if logits else UPDATE, STANDARD)
            table.add_row(
                node,
                *cells,
                _interval(judged),
                _shown(control),
                Text(verdict or "-", VERDICT_STYLES.get(verdict, "dim")),
            )
        return table

    def _reasons(self) -> list[str]:
        mine = [s for s in self.slopes if s.model == TRANSFORMED and s.reason]
        lines = [f"{s.verdict} {s.node}: {s.reason}" for s in mine if s.verdict not in (PASS, SKIP, INFO)]
        skipped: dict[str, list[str]] = {}
        for s in mine:
            if s.verdict == SKIP:
                skipped.setdefault(s.reason, []).append(s.node)
        for reason, nodes in skipped.items():
            more = f" and {len(nodes) - NAMES_SHOWN} more" if len(nodes) > NAMES_SHOWN else ""
            lines.append(f"{SKIP} {', '.join(nodes[:NAMES_SHOWN])}{more}: {reason}")
        return lines

    def _find(self, node: str, statistic: str, model: str = TRANSFORMED) -> Slope | None:
        try:
            return self.slope(node, statistic, model)
        except KeyError:
            return None

    def _verdicts(self, model: str) -> dict[str, str]:
        found: dict[str, list[str]] = {}
        for each in self.slopes:
            if each.model == model:
                found.setdefault(each.node, []).append(each.verdict)
        return {node: worst(verdicts) for node, verdicts in found.items()}


def _shown(slope: Slope | None) -> str:
    if slope is None:
        return ""
    if slope.mean is None:
        return "zero" if slope.verdict == SKIP else "-"
    return f"{slope.mean:+.2f} ± {slope.error:.2f}"


def _interval(slope: Slope | None) -> str:
    if slope is None or slope.low is None or slope.high is None:
        return ""
    same = slope.high - slope.low < 0.005
    return f"{slope.high:+.2f}" if same else f"{slope.low:+.2f} .. {slope.high:+.2f}"

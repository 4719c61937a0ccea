"""What `diagnose` returns: rows, slopes over width and verdicts of the six diagnostics; printed, drawn or handed on."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.report.console import text_of
from abcfx.support.text import to_pandas

PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"
REASONS_SHOWN = 3
MODULES_SHOWN = 4
WORST_FIRST = (FAIL, WARN, PASS, SKIP)
COLOURS = {PASS: "bold green", WARN: "bold yellow", FAIL: "bold red", SKIP: "dim"}
DIAGNOSTICS = {
    "sinkhorn_error": "1 Sinkhorn error",
    "spectrum": "2 spectrum of the mix",
    "quotient_jacobian": "3 quotient Jacobian",
    "sensitivity": "4 dynamic sensitivity",
    "logit_update": "5 logit update per step",
    "gate_statistics": "6 gates",
}


@dataclass(frozen=True)
class Row:
    """One number of one diagnostic, over samples (tokens or matrices).

    Attributes:
        diagnostic: a key of DIAGNOSTICS.
        quantity: what was measured; "at logit std 1", "sgd: ..." and the like where there are several.
        width: None where width plays no part.
        module: path of the hyper-connection in the user's model; None for drawn ones.
    """

    diagnostic: str
    quantity: str
    width: int | None
    module: str | None
    mean: float
    sd: float
    smallest: float
    largest: float
    samples: int


@dataclass(frozen=True)
class LawSlope:
    """Slope of log2 of a quantity over log2 width: mean over samples, standard error, and what the init predicts."""

    diagnostic: str
    quantity: str
    mean: float | None
    error: float
    law: float

    @property
    def agrees(self) -> bool:
        return self.mean is None or abs(self.mean - self.law) <= 0.1 + 2 * self.error


@dataclass(frozen=True)
class Verdict:
    """PASS, WARN, FAIL or SKIP of one diagnostic, with the numbers that decided it and what to change."""

    diagnostic: str
    status: str
    reason: str
    module: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`; false where any diagnostic fails.

    Attributes:
        rows: every number, by diagnostic, quantity and width or module.
        slopes: over width, of drawn hyper-connections.
        verdicts: one for each diagnostic, and module.
        settings: what was asked for.
    """

    rows: list[Row] = field(repr=False)
    slopes: list[LawSlope]
    verdicts: list[Verdict]
    settings: dict[str, Any]

    @property
    def verdict(self) -> str:
        return worst(each.status for each in self.verdicts)

    def __bool__(self) -> bool:
        return self.verdict != FAIL

    def status(self, diagnostic: str) -> str:
        """The worst verdict of one diagnostic. Raises KeyError for one that there is not."""
        if diagnostic not in DIAGNOSTICS:
            raise KeyError(f"{diagnostic!r}; there are {', '.join(DIAGNOSTICS)}.")
        return worst(each.status for each in self.verdicts if each.diagnostic == diagnostic)

    def values(self, diagnostic: str, quantity: str) -> dict[int | str | None, float]:
        """Width (or module) -> mean."""
        found = [row for row in self.rows if (row.diagnostic, row.quantity) == (diagnostic, quantity)]
        if not found:
            known = dict.fromkeys(row.quantity for row in self.rows if row.diagnostic == diagnostic)
            raise KeyError(f"{diagnostic}: there is no {quantity!r}; there are {', '.join(known)}.")
        return {row.module or row.width: row.mean for row in found}

    def to_pandas(self) -> Any:
        """`rows` as a DataFrame. Raises InvalidInputError without pandas."""
        return to_pandas([asdict(row) for row in self.rows])

    def to_json(self) -> str:
        """Everything; numbers that are not finite become null."""
        found = {
            "check": "hyper-connections",
            "verdict": self.verdict,
            "settings": self.settings,
            "verdicts": [asdict(each) for each in self.verdicts],
            "slopes": [asdict(each) | {"agrees": each.agrees} for each in self.slopes],
            "rows": [asdict(each) for each in self.rows],
        }
        return json.dumps(_finite(found), allow_nan=False)

    def plot(self, path: str | None = None) -> Any:
        """Six panels, one for each diagnostic, over width (or over the modules of a model), as a matplotlib figure."""
        from abcfx.hyper_connections.figures import plot_diagnosis

        return plot_diagnosis(self, path)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        head = Text("hyper-connections: ").append(self.verdict, COLOURS[self.verdict])
        shown = ", ".join(f"{key} {_setting(value)}" for key, value in self.settings.items())
        head.append(f"\n{shown}\n")
        parts: list[RenderableType] = [head, self._numbers(), Text()]
        if self.slopes:
            parts += [self._slopes(), Text()]
        return Group(*parts, *self._reasons())

    def _reasons(self) -> list[Text]:
        """A line for each diagnostic; of a model with many hyper-connections, the worst verdicts of each."""
        lines = []
        for diagnostic, title in DIAGNOSTICS.items():
            mine = sorted(
                (v for v in self.verdicts if v.diagnostic == diagnostic), key=lambda v: WORST_FIRST.index(v.status)
            )
            shown = [v for v in mine if v.status != PASS][:REASONS_SHOWN] or mine[:1]
            for each in shown:
                where = f" of {each.module}" if each.module else ""
                lines.append(
                    Text.assemble((f"{each.status:4}", COLOURS[each.status]), f" {title}{where}: {each.reason}")
                )
            if left := mine[len(shown) :]:
                counts = Counter(each.status for each in left)
                lines.append(Text(f"     and {', '.join(f'{n} {status}' for status, n in counts.items())}"))
        return lines

    def _numbers(self) -> Table:
        """A line for each quantity, a column for each width or module; means over samples."""
        columns = list(dict.fromkeys(row.module or row.width for row in self.rows))
        if len({row.module for row in self.rows} - {None}) > MODULES_SHOWN:
            return self._extremes()
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column("mean over samples", no_wrap=True)
        for each in columns:
            table.add_column("any width" if each is None else str(each), justify="right", overflow="fold")
        for diagnostic, title in DIAGNOSTICS.items():
            mine = [row for row in self.rows if row.diagnostic == diagnostic]
            if mine:
                table.add_row(Text(title, "bold"))
            for quantity in dict.fromkeys(row.quantity for row in mine):
                cells = {row.module or row.width: row.mean for row in mine if row.quantity == quantity}
                table.add_row(f"  {quantity}", *(_number(cells.get(each)) for each in columns))
        return table

    def _extremes(self) -> Table:
        """A line for each quantity: its smallest and largest mean over the hyper-connections of a model."""
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column("mean over samples", no_wrap=True)
        for name in ("smallest", "largest"):
            table.add_column(name, justify="right")
        table.add_column("in", overflow="fold")
        for diagnostic, title in DIAGNOSTICS.items():
            mine = [row for row in self.rows if row.diagnostic == diagnostic]
            table.add_row(Text(title, "bold"))
            for quantity in dict.fromkeys(row.quantity for row in mine):
                rows = sorted((row for row in mine if row.quantity == quantity), key=lambda row: row.mean)
                table.add_row(f"  {quantity}", _number(rows[0].mean), _number(rows[-1].mean), rows[-1].module)
        return table

    def _slopes(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column("slope over width", no_wrap=True)
        for name in ("measured", "law of the init"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in self.slopes:
            measured = "zero" if each.mean is None else f"{each.mean:+.3f} ± {each.error:.3f}"
            table.add_row(
                f"{DIAGNOSTICS[each.diagnostic][2:]}: {each.quantity}",
                Text(measured, "" if each.agrees else COLOURS[FAIL]),
                f"{each.law:+.2f}",
            )
        return table


def worst(statuses: Iterable[str]) -> str:
    return min(statuses, key=WORST_FIRST.index, default=SKIP)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

"""The result of a transfer check: loss over learning rate at each width, the shift of the minimum, the regret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.checks.curves import Curve, Shift
from abcfx.checks.plots import plot_transfer
from abcfx.checks.variants import SHOWN, STANDARD, TRANSFORMED, Variant
from abcfx.plan.options import ByRole
from abcfx.report.console import text_of, verdict_text
from abcfx.support.figures import save
from abcfx.support.verdict import CheckResult, CheckRow, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainingRun(NamedTuple):
    """One run of the sweep: `factor` multiplies the planned rates; `lr` is absolute, None for rates by role."""

    model: Variant
    width: int
    seed: int
    factor: float
    lr: float | None
    loss: float
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class TransferCheck(CheckResult[CheckRow]):
    """Result of `transfer_check`; true if the verdict is PASS.

    Attributes:
        rows: the three claims: "grid" holds every minimum, its "shift" is small, and the "loss" falls with width.
        widths: in increasing order.
        base_width: where transformed and standard model are the same.
        seeds: of the runs.
        steps: of each run.
        lr: as given.
        centre: the rate (absolute) that factor 1 stands for; None for rates by role.
        curves: transformed model first, in order of width.
        shifts: by model, "transformed" and "standard".
        runs: every training run.
    """

    TITLE: ClassVar[str] = "transfer check"
    widths: tuple[int, ...]
    base_width: int
    seeds: tuple[int, ...]
    steps: int
    lr: ByRole
    centre: float | None
    curves: tuple[Curve, ...]
    shifts: Mapping[Variant, Shift]
    runs: tuple[TrainingRun, ...] = field(repr=False)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the check did not pass; empty if it did."""
        return tuple(row.reason for row in self._wanting())

    def _wanting(self) -> list[CheckRow]:
        return [row for row in self.rows if row.verdict not in (Verdict.PASS, Verdict.SKIP)]

    @property
    def shift(self) -> Shift:
        """The shift of the transformed model's best rate."""
        return self.shifts[TRANSFORMED]

    @property
    def control(self) -> Shift | None:
        """The shift of the best rate of the model as written, which should be away from 0; None without a control."""
        return self.shifts.get(STANDARD)

    @property
    def regret(self) -> tuple[float, float]:
        """(regret, standard error) of the smallest width's best rate at the largest width."""
        curve = self.curve(self.widths[-1])
        return curve.regret, curve.regret_error

    def curve(self, width: int, model: Variant = TRANSFORMED) -> Curve:
        """Return the curve of a model at a width. Raises KeyError if there is none."""
        for each in self.curves:
            if (each.width, each.model) == (width, model):
                return each
        raise KeyError(f"there is no curve of the {model} model at width {width}; widths are {self.widths}.")

    def to_dict(self) -> dict[str, object]:
        """Return verdict, shifts and curves as plain data."""
        return super().to_dict() | {
            "reasons": self.reasons,
            "shifts": {model: shift._asdict() for model, shift in self.shifts.items()},
            "widths": self.widths,
            "base_width": self.base_width,
            "seeds": self.seeds,
            "steps": self.steps,
            "lr": dict(self.lr) if isinstance(self.lr, Mapping) else self.lr,
            "curves": [curve.to_dict() for curve in self.curves],
        }

    def plot(self, path: str | None = None) -> Figure:
        """Draw loss over learning rate, one line for each width, with its minimum.

        Args:
            path: where to write the figure; its ending chooses the format (.png, .svg, .pdf).

        Raises:
            InvalidInputError: matplotlib is not installed.
        """
        title = f"{self.TITLE}: {self.verdict}, {len(self.seeds)} seeds"
        return save(plot_transfer(title, self.curves, self.shifts, self.centre), path)

    def rate(self, factor: float) -> str:
        """Return a factor as it is shown: a rate, or a multiple of rates by role."""
        return f"{factor:.3g} x" if self.centre is None else f"{self.centre * factor:.3g}"

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        reasons = [Text(f"  {row.verdict} {row.reason}") for row in self._wanting()]
        return Group(self._headline(), Text(), self._table(), Text(), *reasons)

    def _headline(self) -> Text:
        text = Text(f"{self.TITLE}: ").append(verdict_text(self.verdict))
        text.append(f"; widths {', '.join(map(str, self.widths))} (base {self.base_width})")
        text.append(f", {len(self.seeds)} seeds, {self.steps} steps\n")
        for model, shift in self.shifts.items():
            text.append(f"{SHOWN[model]}: log2 of the best rate moves by {shift.mean:+.2f} ± {shift.error:.2f}")
            text.append(" per octave of width\n")
        return text.append("regret: loss at the best rate of the smallest width, minus the best loss at this width.")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        for name in ("model", "width", "best lr", "best loss", "regret", "grid"):
            table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
        for curve in self.curves:
            table.add_row(
                SHOWN[curve.model],
                str(curve.width),
                self.rate(curve.best) + (" (edge)" if curve.on_edge else ""),
                f"{curve.loss:.4f} ± {curve.error:.4f}",
                f"{curve.regret:.4f} ± {curve.regret_error:.4f}",
                f"{self.rate(curve.factors[0])} .. {self.rate(curve.factors[-1])}",
            )
        return table

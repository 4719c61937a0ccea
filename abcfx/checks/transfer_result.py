"""The result of a transfer check: loss over learning rate at each width, and how far the best learning rate moves."""

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
from abcfx.errors import InvalidInputError
from abcfx.plan.options import ByRole
from abcfx.report.console import text_of, verdict_text
from abcfx.support.figures import save
from abcfx.support.text import shown
from abcfx.support.verdict import CheckResult, CheckRow, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainingRun(NamedTuple):
    """One training run of a transfer check (is the best learning rate the same at every width?), as plain data.

    Attributes:
        model: "transformed", or "standard" for the user's unchanged model.
        width, seed: of the model.
        factor: number that multiplied all planned learning rates.
        lr: the absolute base rate, factor included; None where rates differ by role of parameter ("embedding",
            "hidden", ...).
        loss: mean loss over the last fifth of the steps.
        diverged: whether the loss is not finite, or above 1.5 times the first one.
    """

    model: Variant
    width: int
    seed: int
    factor: float
    lr: float | None
    loss: float
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class TransferCheck(CheckResult[CheckRow]):
    """Result of `transfer_check`, which measures whether the best learning rate stays the same over widths.

    `bool(result)` is true if the verdict is PASS; printing it shows the best rate at each width.

    Attributes:
        rows: the verdicts: "grid" (every best rate lies inside the rates tried), "shift" (it moves little with width)
            and "loss" (wider is not worse).
        widths: the widths at which models were trained, in increasing order.
        base_width: the width at which `transform` changes nothing.
        seeds: seeds of the runs.
        steps: number of optimizer steps of each run.
        lr: the base learning rate as it was given: a number, or a dict by role of parameter ("embedding", "hidden",
            ...).
        centre: the absolute rate that factor 1 stands for; None where rates differ by role.
        curves: loss over learning rate, those of the transformed model first, in order of width.
        shifts: how the best rate moves with width, by model: "transformed", and "standard" for the user's unchanged
            model.
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
        """The reason of each row that is neither PASS nor SKIP; empty if the check passed."""
        return tuple(row.reason for row in self._wanting())

    def _wanting(self) -> list[CheckRow]:
        """Return the rows of the transfer check whose verdict is neither PASS nor SKIP."""
        return [row for row in self.rows if row.verdict not in (Verdict.PASS, Verdict.SKIP)]

    @property
    def shift(self) -> Shift:
        """How far the best learning rate of the transformed model moves: log2 of the rate per doubling of the width."""
        return self.shifts[TRANSFORMED]

    @property
    def control(self) -> Shift | None:
        """How far the best rate of the user's unchanged model moves per doubling of width; None if not trained.

        It is there for comparison, and is expected to be far from 0.
        """
        return self.shifts.get(STANDARD)

    @property
    def regret(self) -> tuple[float, float]:
        """(regret, its standard error): the loss that the smallest width's best rate costs at the largest width."""
        curve = self.curve(self.widths[-1])
        return curve.regret, curve.regret_error

    def curve(self, width: int, model: Variant = TRANSFORMED) -> Curve:
        """Return the losses over learning rate of one model variant at one width.

        Args:
            width: one of `widths`.
            model: "transformed", or "standard" for the user's unchanged model.

        Raises:
            InvalidInputError: there is no such curve.
        """
        for each in self.curves:
            if (each.width, each.model) == (width, model):
                return each
        raise InvalidInputError(
            f"curve: none of the {shown(model)} model at width {shown(width)} was measured.\n"
            f"  Expected a width of {self.widths}, and 'transformed' or 'standard'.\n  To fix: curve({self.widths[0]})"
        )

    def to_dict(self) -> dict[str, object]:
        """Return the result as plain data: verdict, rows, reasons, settings, shifts by model, and all curves.

        The keys beside those of every check ("check", "verdict", "failed", "rows") are "reasons", "shifts", "widths",
        "base_width", "seeds", "steps", "lr" and "curves".
        """
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
        """Draw final loss over learning rate, one curve for each width, with its minimum marked by a star.

        Args:
            path: where to write the figure; its ending chooses the format (.png, .svg, .pdf).

        Raises:
            InvalidInputError: matplotlib is not installed.
        """
        title = f"{self.TITLE}: {self.verdict}, {len(self.seeds)} seeds"
        return save(plot_transfer(title, self.curves, self.shifts, self.centre), path)

    def rate(self, factor: float) -> str:
        """Format a learning-rate factor for the report: as an absolute rate, or as "2 x".

        The latter is for rates that differ by role of parameter ("embedding", "hidden", ...).
        """
        return f"{factor:.3g} x" if self.centre is None else f"{self.centre * factor:.3g}"

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        """Return what is printed: a headline, a table with a line for each model and width, and what did not pass."""
        reasons = [Text(f"  {row.verdict} {row.reason}") for row in self._wanting()]
        return Group(self._headline(), Text(), self._table(), Text(), *reasons)

    def _headline(self) -> Text:
        """Return the first printed lines: verdict, widths, and how far the best learning rate of each model moves."""
        text = Text(f"{self.TITLE}: ").append(verdict_text(self.verdict))
        text.append(f"; widths {', '.join(map(str, self.widths))} (base {self.base_width})")
        text.append(f", {len(self.seeds)} seeds, {self.steps} steps\n")
        for model, shift in self.shifts.items():
            text.append(f"{SHOWN[model]}: log2 of the best rate moves by {shift.mean:+.2f} ± {shift.error:.2f}")
            text.append(" per octave of width\n")
        return text.append("regret: loss at the best rate of the smallest width, minus the best loss at this width.")

    def _table(self) -> Table:
        """Return the printed table: for each model and width the best rate, loss, regret and range of rates tried."""
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

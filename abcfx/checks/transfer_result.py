"""What a transfer check returns: loss over learning rate at each width, the shift of the minimum, the regret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.checks.slopes import PASS
from abcfx.checks.sweep_models import STANDARD, TRANSFORMED
from abcfx.plan.options import ByRole
from abcfx.report.console import VERDICT_STYLES, text_of
from abcfx.support.text import to_pandas


class Shift(NamedTuple):
    """log2 of the best rate per octave of width: of the mean curves, its standard error over seeds, and by seed."""

    mean: float
    error: float
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Loss over learning rate of one model at one width.

    Attributes:
        factors: on the planned rates, in increasing order.
        losses, errors: mean over seeds and its standard error, at each factor.
        best: factor at the minimum of the parabola.
        loss, error: of the best factor of the grid.
        on_edge: the minimum lies on an edge of the grid, even after it has grown.
        regret: loss at the factor that is the best at the smallest width, minus `loss`; paired over seeds.
    """

    model: str
    width: int
    factors: tuple[float, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...]
    best: float
    loss: float
    error: float
    on_edge: bool
    regret: float
    regret_error: float


@dataclass(frozen=True)
class TransferCheck:
    """Result of `transfer_check`; true where the verdict is PASS.

    Attributes:
        lr: as given. `centre`: the rate that factor 1 stands for; None for rates by role.
        curves: transformed model first, in order of width.
        shifts: by model, "transformed" and "standard".
        reasons: in words, why it did not pass.
        rows: a dict for every run: model, width, seed, factor, lr, loss, diverged.
    """

    widths: tuple[int, ...]
    base_width: int
    seeds: tuple[int, ...]
    steps: int
    lr: ByRole
    centre: float | None
    curves: list[Curve]
    shifts: dict[str, Shift]
    verdict: str
    reasons: tuple[str, ...]
    rows: list[dict[str, Any]] = field(repr=False)

    @property
    def shift(self) -> Shift:
        """Of the transformed model."""
        return self.shifts[TRANSFORMED]

    @property
    def control(self) -> Shift | None:
        """Of the model as written."""
        return self.shifts.get(STANDARD)

    @property
    def regret(self) -> tuple[float, float]:
        """(regret, standard error) of the smallest width's best rate at the largest width."""
        curve = self.curve(self.widths[-1])
        return curve.regret, curve.regret_error

    def curve(self, width: int, model: str = TRANSFORMED) -> Curve:
        """Raises KeyError for a width or model that was not trained."""
        for each in self.curves:
            if (each.width, each.model) == (width, model):
                return each
        raise KeyError(f"no curve of the {model} model at width {width}; widths are {self.widths}.")

    def __bool__(self) -> bool:
        return self.verdict == PASS

    def to_pandas(self) -> Any:
        """`rows` as a DataFrame. Raises InvalidInputError without pandas."""
        return to_pandas(self.rows)

    def to_json(self) -> str:
        """Verdict, shifts and curves."""
        return json.dumps(
            {
                "check": "transfer",
                "verdict": self.verdict,
                "reasons": self.reasons,
                "shifts": {model: shift._asdict() for model, shift in self.shifts.items()},
                "widths": self.widths,
                "base_width": self.base_width,
                "seeds": self.seeds,
                "steps": self.steps,
                "lr": self.lr if isinstance(self.lr, float | int) else dict(self.lr),
                "curves": [asdict(curve) for curve in self.curves],
            }
        )

    def plot(self, path: str | None = None) -> Any:
        """Loss over learning rate, one line for each width, with its minimum; as a matplotlib figure."""
        from abcfx.checks.plots import plot_transfer

        return plot_transfer(self, path)

    def rate(self, factor: float) -> str:
        """A factor as it is shown: a rate, or a multiple of rates by role."""
        return f"{factor:.3g} x" if self.centre is None else f"{self.centre * factor:.3g}"

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._headline(), Text(), self._table(), Text()]
        parts += [Text(f"  {self.verdict} {reason}") for reason in self.reasons]
        return Group(*parts)

    def _headline(self) -> Text:
        text = Text("transfer check: ").append(self.verdict, VERDICT_STYLES[self.verdict])
        text.append(f"; widths {', '.join(map(str, self.widths))} (base {self.base_width})")
        text.append(f", {len(self.seeds)} seeds, {self.steps} steps\n")
        names = {TRANSFORMED: "transformed", STANDARD: "as written"}
        for model, shift in self.shifts.items():
            text.append(f"{names[model]}: log2 of the best rate moves by {shift.mean:+.2f} ± {shift.error:.2f}")
            text.append(" per octave of width\n")
        return text.append("regret: loss at the best rate of the smallest width, minus the best loss at this width.")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        for name in ("model", "width", "best lr", "best loss", "regret", "grid"):
            table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
        for curve in self.curves:
            table.add_row(
                "transformed" if curve.model == TRANSFORMED else "as written",
                str(curve.width),
                self.rate(curve.best) + (" (edge)" if curve.on_edge else ""),
                f"{curve.loss:.4f} ± {curve.error:.4f}",
                f"{curve.regret:.4f} ± {curve.regret_error:.4f}",
                f"{self.rate(curve.factors[0])} .. {self.rate(curve.factors[-1])}",
            )
        return table

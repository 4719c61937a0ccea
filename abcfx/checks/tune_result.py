"""The result of a search for learning rates: rates by role, what they gain, and every setting that was tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.checks.plots import plot_trials
from abcfx.report.console import text_of
from abcfx.support.figures import save
from abcfx.support.verdict import RowsResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Trial(NamedTuple):
    """One setting: rates (absolute) by role, the loss as a mean over seeds, and its standard error."""

    rates: Mapping[str, float]
    loss: float
    error: float

    def to_dict(self) -> dict[str, object]:
        """Return the rate of each role, loss and error as plain data."""
        return {**self.rates, "loss": self.loss, "error": self.error}


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuned(RowsResult[Trial], Mapping[str, float]):
    """Result of `tune`: a mapping of role, and "default" for all others, to an absolute learning rate.

    Attributes:
        rows: every setting of the search, in the order in which they were tried: the loss surface.
        rates: the same mapping as a plain dict.
        single: the best rate (absolute) for all parameters alike.
        width: where the search took place.
        steps: of each run.
        seeds: of the search.
        fresh_seeds: which the search has not seen, if `batches` was a function of the seed.
        loss: of `rates`, mean over `fresh_seeds`.
        single_loss: of `single`, mean over `fresh_seeds`.
        gain: by how much `rates` are better than `single`; paired over `fresh_seeds`.
        gain_error: standard error of `gain`.
    """

    TITLE: ClassVar[str] = "tune"
    rates: dict[str, float]
    single: float
    width: int
    steps: int
    seeds: tuple[int, ...]
    fresh_seeds: tuple[int, ...]
    loss: float
    single_loss: float
    gain: float
    gain_error: float

    def __getitem__(self, role: str) -> float:
        return self.rates[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rates)

    def __len__(self) -> int:
        return len(self.rates)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every setting of the search: the same as `rows`."""
        return self.rows

    def to_dict(self) -> dict[str, object]:
        """Return rates, gain and trials as plain data."""
        return {
            "check": self.TITLE,
            "rates": self.rates,
            "single": self.single,
            "width": self.width,
            "steps": self.steps,
            "seeds": self.seeds,
            "fresh_seeds": self.fresh_seeds,
            "loss": self.loss,
            "single_loss": self.single_loss,
            "gain": self.gain,
            "gain_error": self.gain_error,
            "trials": [trial.to_dict() for trial in self.rows],
        }

    def plot(self, path: str | None = None) -> Figure:
        """Draw loss over the rate of each role: all trials, and the lowest loss at each rate.

        Args:
            path: where to write the figure; its ending chooses the format (.png, .svg, .pdf).

        Raises:
            InvalidInputError: matplotlib is not installed.
        """
        gain = f"gain {self.gain:.3f} ± {self.gain_error:.3f} over one rate"
        title = f"{self.TITLE}, width {self.width}, {len(self.seeds)} seeds: {gain}; late trials bright"
        rates, losses = [trial.rates for trial in self.rows], [trial.loss for trial in self.rows]
        return save(plot_trials(title, rates, losses, self.rates), path)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        head = Text(f"{self.TITLE}: width {self.width}, {len(self.rows)} settings, {len(self.seeds)} seeds, ")
        head.append(f"{self.steps} steps\n").append(f"gain over one rate for all: {self.gain:.4f} ± ", "bold")
        head.append(f"{self.gain_error:.4f}", "bold").append(f" on seeds {', '.join(map(str, self.fresh_seeds))}")
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        table.add_column("role")
        table.add_column("lr", justify="right")
        table.add_column("over default", justify="right")
        for role, rate in self.rates.items():
            table.add_row(role, f"{rate:.4g}", f"{rate / self.rates['default']:.3g}")
        table.add_row("one for all", f"{self.single:.4g}", "")
        return Group(head, Text(), table)

"""The result of `tune`, a search for learning rates: rates by role of parameter, their gain, every setting tried."""

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
    """One setting that a search for learning rates tried.

    Attributes:
        rates: role of parameter ("default", "embedding", ...) -> absolute learning rate.
        loss: final loss, mean over seeds.
        error: standard error of the mean.
    """

    rates: Mapping[str, float]
    loss: float
    error: float

    def to_dict(self) -> dict[str, object]:
        """Return a dict with the learning rate of each role, "loss" and "error"."""
        return {**self.rates, "loss": self.loss, "error": self.error}


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuned(RowsResult[Trial], Mapping[str, float]):
    """Result of `tune`: a mapping of role of parameter (and "default" for all others) to an absolute learning rate.

    Attributes:
        rows: every setting that was tried, in order, with its loss.
        rates: the mapping as a plain dict.
        single: the best rate (absolute) if all parameters share one.
        width: width of the model that was searched on.
        steps: number of optimizer steps of each run.
        seeds: seeds of the search.
        fresh_seeds: seeds of the final comparison; new ones if `batches` was a function of the seed, else those of the
            search.
        loss: final loss with `rates`, mean over `fresh_seeds`.
        single_loss: final loss with `single`, mean over `fresh_seeds`.
        gain: `single_loss` minus `loss`: how much better separate rates are.
        gain_error: standard error of `gain`, from the difference for each seed.
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
        """Every setting of learning rates that was tried, in order; another name of `rows`."""
        return self.rows

    def to_dict(self) -> dict[str, object]:
        """Return a dict of all attributes under their names, the rows as "trials", and "check": "tune"."""
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
        """Draw the loss over the rate of each role: a point for every setting tried, a line for the lowest losses.

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
        """Return what is printed: the settings of the search, the gain, and a table of the rate of each role."""
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

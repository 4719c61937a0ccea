"""What a search for learning rates returns: rates by role, what they gain, and every setting that was tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abcfx.report.console import text_of
from abcfx.support.text import to_pandas


class Trial(NamedTuple):
    """One setting: rates (absolute) by role, the loss as a mean over seeds, and its standard error."""

    rates: dict[str, float]
    loss: float
    error: float


@dataclass(frozen=True, eq=False)
class Tuned(Mapping[str, float]):
    """Result of `tune`: a mapping of role, and "default" for all others, to an absolute learning rate.

    Attributes:
        rates: the same as a plain dict.
        single: the best rate for all parameters alike.
        loss, single_loss: of `rates` and of `single`, on `fresh_seeds`.
        gain, gain_error: what `rates` are better by, paired over `fresh_seeds`, and its standard error.
        fresh_seeds: which the search has not seen (where `batches` was a function of the seed).
        trials: every setting of the search: the loss surface.
    """

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
    trials: list[Trial] = field(repr=False)

    def __getitem__(self, role: str) -> float:
        return self.rates[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rates)

    def __len__(self) -> int:
        return len(self.rates)

    @property
    def rows(self) -> list[dict[str, float]]:
        """A dict for every trial: the rate of each role, loss, error."""
        return [{**trial.rates, "loss": trial.loss, "error": trial.error} for trial in self.trials]

    def to_pandas(self) -> Any:
        """`rows` as a DataFrame. Raises InvalidInputError without pandas."""
        return to_pandas(self.rows)

    def to_json(self) -> str:
        """Rates, gain and trials."""
        names = ("rates", "single", "width", "steps", "seeds", "fresh_seeds", "loss", "single_loss", "gain")
        found = {name: getattr(self, name) for name in (*names, "gain_error")}
        return json.dumps({"check": "tune", **found, "trials": self.rows})

    def plot(self, path: str | None = None) -> Any:
        """Loss over the rate of each role, all trials and the envelope, as a matplotlib figure."""
        from abcfx.checks.plots import plot_tuned

        return plot_tuned(self, path)

    def __str__(self) -> str:
        return text_of(self.__rich__())

    def __rich__(self) -> RenderableType:
        head = Text(f"tune: width {self.width}, {len(self.trials)} settings, {len(self.seeds)} seeds, ")
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

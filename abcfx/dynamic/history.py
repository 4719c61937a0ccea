"""The history of measured alignments and learning rates: a row for each layer and measurement, and a figure of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

from abcfx.errors import InvalidInputError
from abcfx.support.figures import depth_colour, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS: Mapping[Literal["alpha", "omega", "u", "lr"], str] = {
    "alpha": "alpha (dW x0)",
    "omega": "omega (W0 dx)",
    "u": "u (dW dx)",
    "lr": "learning rate",
}
_MOST_NAMES = 8  # with more layers the legend names the first and the last alone


class HistoryRow(TypedDict):
    """What was measured of one layer at one moment of training.

    For a layer y = W x, with W0 and x0 at the start and dW, dx the changes since: an alignment exponent is 1/2 if the
    factors of a product are independent, 1 if they line up fully.

    Attributes:
        step: number of optimizer steps taken so far.
        parameter: name of the layer's weight.
        node: name of the layer in the graph of layers; it differs from the parameter's where a weight is used twice.
        alpha, omega, u: measured alignment exponents of dW x0, W0 dx and dW dx, neither clipped nor smoothed; None if a
            factor is zero.
        c: exponent of the learning rate n^-c (n: fan_in) that is solved for the smoothed alignments; None for a weight
            that does not learn.
        lr: absolute learning rate of the next step, as the scheduler has set it so far, times the present factor.
    """

    step: int
    parameter: str
    node: str
    alpha: float | None
    omega: float | None
    u: float | None
    c: float | None
    lr: float


def plot_history(history: Sequence[HistoryRow], path: str | None = None) -> Figure:
    """Draw alignment exponents and learning rate over training steps: a line for each layer, early layers dark.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        history: the rows of `DynamicAlignment.history`.
        path: where to write the figure; the file name's ending chooses the format (.png, .svg, .pdf).

    Raises:
        InvalidInputError: there is no row yet, or matplotlib is not installed.
    """
    if not history:
        raise InvalidInputError("plot: nothing has been measured yet; the first measure comes after the warm-up.")
    figure = new_figure(12, 3.4)
    from matplotlib.lines import Line2D

    nodes = list(dict.fromkeys(row["node"] for row in history))
    colours = [depth_colour(i, len(nodes)) for i in range(len(nodes))]
    for axis, (key, label) in zip(figure.subplots(1, 4), _PANELS.items(), strict=True):
        for node, colour in zip(nodes, colours, strict=True):
            points = [(row["step"], row[key]) for row in history if row["node"] == node and row[key] is not None]
            axis.plot([step for step, _ in points], [value for _, value in points], color=colour, lw=1.2)
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("step")
        if key == "lr":
            axis.set_yscale("log")
        else:
            axis.axhline(0.5, color="0.8", lw=0.8, zorder=0)
            axis.axhline(1.0, color="0.8", lw=0.8, zorder=0)
    named = range(len(nodes)) if len(nodes) <= _MOST_NAMES else (0, len(nodes) - 1)
    handles = [Line2D([], [], color=colours[i], label=nodes[i]) for i in named]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return save(figure, path)

"""Figures of the coordinate check, the transfer check and the search for learning rates; they need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from abcfx.checks.curves import Curve, Shift
from abcfx.checks.slopes import CHANGE, ERRORS, TOLERANCE, UPDATE, Measurement, Slope, standard_error
from abcfx.checks.variants import SHOWN, STANDARD, TRANSFORMED, Variant
from abcfx.support.figures import VERDICT_COLOURS, depth_colour, new_figure
from abcfx.support.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_BARS = 60  # layers in one panel whose names can still be read
Colour = tuple[float, float, float]


def plot_coord(
    title: str, verdicts: Mapping[str, Verdict], slopes: Sequence[Slope], measurements: Sequence[Measurement]
) -> Figure:
    """Draw a coordinate check: curves of each layer's update and change over width, and a chart of the curves' slopes.

    Curves are relative to the value at the smallest width; a row of panels for each model, transformed and unchanged.

    Args:
        title: heading of the figure.
        verdicts: verdict of each layer, in the order in which layers run.
        slopes: slopes over width at the step that is judged.
        measurements: the measured values at the same step.
    """
    by_layer = _judged(slopes)
    nodes = [node for node in verdicts if (TRANSFORMED, node) in by_layer]
    worst_first = sorted(nodes, key=lambda node: verdicts[node] is Verdict.PASS)[:MOST_BARS]
    bars = [node for node in nodes if node in worst_first]
    models = [model for model in SHOWN if any(each.model == model for each in slopes)]
    figure = new_figure(13, max(5.6, 0.22 * len(bars) + 1.6))
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.25, 1])[0]
    grid = left.subplots(len(models), 2, sharex=True, sharey=True, squeeze=False)
    colours = {node: depth_colour(i, len(nodes)) for i, node in enumerate(nodes)}
    for row, model in zip(grid, models, strict=True):
        for axis, statistic in zip(row, (UPDATE, CHANGE), strict=True):
            _draw_curves(axis, [m for m in measurements if (m.model, m.statistic) == (model, statistic)], colours)
            axis.set_title(f"{SHOWN[model]}: {'update dW x' if statistic == UPDATE else 'change since init'}", size=10)
    for axis in grid[-1]:
        axis.set_xlabel("width")
    for row in grid:
        row[0].set_ylabel("RMS / RMS at the smallest width")
    _draw_bars(right.subplots(), bars, by_layer, verdicts)
    figure.suptitle(f"{title}; early layers dark", size=11)
    return figure


def _judged(slopes: Sequence[Slope]) -> dict[tuple[Variant, str], Slope]:
    """Return (model, layer) -> the exponent of width of the layer's update; for attention logits, of their change."""
    found = {(each.model, each.node): each for each in slopes if each.statistic == CHANGE}
    return found | {(each.model, each.node): each for each in slopes if each.statistic == UPDATE}


def _draw_curves(axis: Axes, measurements: Sequence[Measurement], colours: Mapping[str, Colour]) -> None:
    """Draw one curve for each layer: mean over seeds by width, relative to the smallest width, with error bands.

    Layers with a value that is zero or negative are left out, since both axes are logarithmic.

    Args:
        axis: where to draw.
        measurements: for one model, values of one rms of each layer, such as that of its update.
        colours: colour of each layer.
    """
    by_node: dict[str, dict[int, list[float]]] = {}
    for each in measurements:
        by_node.setdefault(each.node, {}).setdefault(each.width, []).append(each.value)
    for node, colour in colours.items():
        by_width = by_node.get(node, {})
        if not by_width or any(min(values) <= 0 for values in by_width.values()):
            continue
        widths, means = list(by_width), [fmean(values) for values in by_width.values()]
        errors = [standard_error(values) for values in by_width.values()]
        axis.plot(widths, [mean / means[0] for mean in means], color=colour, lw=1.3, marker="o", ms=2.5)
        low = [(m - e) / means[0] for m, e in zip(means, errors, strict=True)]
        high = [(m + e) / means[0] for m, e in zip(means, errors, strict=True)]
        axis.fill_between(widths, low, high, color=colour, alpha=0.15, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    ticks = sorted({each.width for each in measurements})
    axis.set_xticks(ticks, [str(width) for width in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _draw_bars(
    axis: Axes, nodes: Sequence[str], slopes: Mapping[tuple[Variant, str], Slope], verdicts: Mapping[str, Verdict]
) -> None:
    """Draw one line for each layer: a grey bar for the allowed exponents of width, a point for the measured one.

    The point has error bars of two standard errors and the colour of the layer's verdict; a cross marks the slope of
    the user's unchanged model.

    Args:
        axis: where to draw.
        nodes: names of the layers, from top to bottom.
        slopes: slope by (model, layer).
        verdicts: verdict by layer.
    """
    for y, node in enumerate(nodes):
        slope, written = slopes[TRANSFORMED, node], slopes.get((STANDARD, node))
        if slope.low is not None and slope.high is not None:
            tolerance = TOLERANCE[slope.statistic]
            span = slope.high - slope.low + 2 * tolerance
            axis.barh(y, span, left=slope.low - tolerance, height=0.8, color="0.9", zorder=0)
        if slope.mean is not None:
            colour = VERDICT_COLOURS[verdicts[node]]
            axis.errorbar(slope.mean, y, xerr=ERRORS * slope.error, fmt="o", ms=4, color=colour, capsize=2)
        if written is not None and written.mean is not None:
            axis.plot(written.mean, y, "x", color="0.35", ms=5)
    axis.set_yticks(range(len(nodes)), nodes, size=8 if len(nodes) < 40 else 6)
    axis.invert_yaxis()
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set_xlabel("slope over log2 width; grey: allowed; x: as written")
    axis.set_title("update dW x (logits: change), by layer", size=10)
    axis.grid(alpha=0.3, axis="x")


def plot_transfer(title: str, curves: Sequence[Curve], shifts: Mapping[Variant, Shift], centre: float | None) -> Figure:
    """Draw final loss over learning rate, a curve for each width and a panel for each model; stars mark minima.

    Args:
        title: heading of the figure.
        curves: loss over learning rate of each model and width, in order of width; narrow ones are drawn dark.
        shifts: how the best rate moves with width, by model ("transformed", "standard").
        centre: the absolute rate that factor 1 stands for; None if rates differ by role of parameter ("embedding",
            "hidden", ...), and factors are shown.
    """
    figure = new_figure(5.6 * len(shifts), 4.4)
    row = figure.subplots(1, len(shifts), sharey=True, squeeze=False)[0]
    unit = centre or 1.0
    for axis, (model, shift) in zip(row, shifts.items(), strict=True):
        own = [curve for curve in curves if curve.model == model]
        for i, curve in enumerate(own):
            colour, rates = depth_colour(i, len(own)), [unit * factor for factor in curve.factors]
            label = str(curve.width)
            axis.errorbar(rates, curve.losses, curve.errors, color=colour, marker="o", ms=3, lw=1.3, label=label)
            axis.plot(unit * curve.best, curve.loss, "*", color=colour, ms=13, mec="white", zorder=5)
        axis.set_title(f"{SHOWN[model]}: {shift.mean:+.2f} ± {shift.error:.2f} log2 per octave", size=10)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("learning rate" if centre else "factor on tuned rates")
        axis.grid(alpha=0.3)
    lowest, highest = min(curve.loss for curve in curves), max(curve.loss for curve in curves)
    margin = highest - lowest + 0.1
    row[0].set_ylim(lowest - 0.1 * margin, highest + 3 * margin)
    row[0].set_ylabel("loss, mean over seeds")
    row[-1].legend(title="width", frameon=False)
    figure.suptitle(title, size=11)
    return figure


def plot_trials(
    title: str, trials: Sequence[Mapping[str, float]], losses: Sequence[float], chosen: Mapping[str, float]
) -> Figure:
    """Draw the loss of every tried setting over the rate of each role: early trials dark, the chosen rate in red.

    Args:
        title: heading of the figure.
        trials: absolute rate of each role ("embedding", "hidden", ...) in each trial, in the order in which they were
            tried.
        losses: loss of each trial.
        chosen: the rate of each role that the search ended with.
    """
    figure = new_figure(3.4 * len(chosen), 3.6)
    row = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for axis, (role, rate) in zip(row, chosen.items(), strict=True):
        rates = [trial[role] for trial in trials]
        axis.scatter(rates, losses, c=range(len(rates)), cmap="viridis", s=14)
        lowest: dict[float, float] = {}
        for tried, loss in zip(rates, losses, strict=True):
            lowest[tried] = min(loss, lowest.get(tried, loss))
        axis.plot(*zip(*sorted(lowest.items()), strict=True), color="0.7", lw=1, zorder=0)
        axis.axvline(rate, color="tab:red", lw=1)
        axis.set_xscale("log", base=2)
        axis.set_title(role, size=10)
        axis.set_xlabel("learning rate")
        axis.grid(alpha=0.3)
    in_order = sorted(losses)
    span = in_order[len(in_order) // 2] - in_order[0]
    row[0].set_ylim(in_order[0] - 0.1 * span, in_order[0] + 2 * span)
    row[0].set_ylabel("loss, mean over seeds")
    figure.suptitle(title, size=11)
    return figure

"""Figures of checks; need the extra `plot` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from abcfx.checks.expected_slopes import CHANGE, UPDATE
from abcfx.checks.slopes import TOLERANCE
from abcfx.checks.sweep_models import STANDARD, TRANSFORMED
from abcfx.support.figures import VERDICT_COLOURS, depth_colour, new_figure, save

if TYPE_CHECKING:
    from abcfx.checks.coord_result import CoordCheck
    from abcfx.checks.transfer_result import TransferCheck
    from abcfx.checks.tune_result import Tuned

TITLES = {TRANSFORMED: "transformed", STANDARD: "as written"}
MOST_BARS = 60  # of them: names that can still be read


def plot_coord(check: CoordCheck, path: str | None = None) -> Any:
    """Updates and changes of every layer over width, relative to the smallest; and slopes of updates with intervals."""
    nodes = [node for node in check.nodes if _judged(check, node) is not None]
    models = [TRANSFORMED] + ([STANDARD] if check.control is not None else [])
    bars = sorted(nodes, key=lambda node: check.nodes[node] == "PASS")[:MOST_BARS]
    bars = [node for node in nodes if node in bars]
    figure = new_figure(13, max(5.6, 0.22 * len(bars) + 1.6))
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.25, 1])[0]
    grid = left.subplots(len(models), 2, sharex=True, sharey=True, squeeze=False)
    colours = {node: depth_colour(i, len(nodes)) for i, node in enumerate(nodes)}
    for row, model in zip(grid, models, strict=True):
        for axis, statistic in zip(row, (UPDATE, CHANGE), strict=True):
            _draw_curves(axis, check, model, statistic, colours)
            axis.set_title(f"{TITLES[model]}: {'update dW x' if statistic == UPDATE else 'change since init'}", size=10)
    for axis in grid[-1]:
        axis.set_xlabel("width")
    for row in grid:
        row[0].set_ylabel(f"RMS / RMS at width {check.widths[0]}")
    _draw_bars(right.subplots(), check, bars)
    figure.suptitle(
        f"coordinate check: {check.verdict}, {len(check.seeds)} seeds, after {check.steps} steps; early layers dark",
        size=11,
    )
    return save(figure, path)


def _judged(check: CoordCheck, node: str) -> str | None:
    """The statistic that says most of a layer: its update, or the change of attention logits."""
    for statistic in (UPDATE, CHANGE):
        if any(s.node == node and s.statistic == statistic and s.step == check.steps for s in check.slopes):
            return statistic
    return None


def _draw_curves(axis: Any, check: CoordCheck, model: str, statistic: str, colours: Mapping[str, Any]) -> None:
    for node, colour in colours.items():
        by_width = _values(check, model, node, statistic)
        if not by_width or any(min(values) <= 0 for values in by_width.values()):
            continue
        means = [fmean(values) for values in by_width.values()]
        errors = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in by_width.values()]
        scaled = [mean / means[0] for mean in means]
        axis.plot(list(by_width), scaled, color=colour, lw=1.3, marker="o", ms=2.5)
        low = [(m - e) / means[0] for m, e in zip(means, errors, strict=True)]
        high = [(m + e) / means[0] for m, e in zip(means, errors, strict=True)]
        axis.fill_between(list(by_width), low, high, color=colour, alpha=0.15, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(check.widths, [str(width) for width in check.widths])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _values(check: CoordCheck, model: str, node: str, statistic: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for row in check.rows:
        if (row["model"], row["node"], row["statistic"], row["step"]) == (model, node, statistic, check.steps):
            found.setdefault(row["width"], []).append(row["value"])
    return found


def _written(check: CoordCheck, node: str, statistic: str) -> float | None:
    """Slope of the model as written; None without a control, or where it was zero."""
    found = (s for s in check.slopes if (s.model, s.node, s.statistic) == (STANDARD, node, statistic))
    return next((s.mean for s in found if s.step == check.steps), None)


def _draw_bars(axis: Any, check: CoordCheck, nodes: Sequence[str]) -> None:
    """One row for each layer: allowed slopes in grey, measured with two standard errors, as written as a cross."""
    for y, node in enumerate(nodes):
        statistic = _judged(check, node)
        assert statistic is not None
        slope = check.slope(node, statistic)
        if slope.low is not None and slope.high is not None:
            tolerance = TOLERANCE[statistic]
            span = slope.high - slope.low + 2 * tolerance
            axis.barh(y, span, left=slope.low - tolerance, height=0.8, color="0.9", zorder=0)
        if slope.mean is not None:
            colour = VERDICT_COLOURS.get(check.nodes[node], "0.5")
            axis.errorbar(slope.mean, y, xerr=2 * slope.error, fmt="o", ms=4, color=colour, capsize=2)
        if (written := _written(check, node, statistic)) is not None:
            axis.plot(written, y, "x", color="0.35", ms=5)
    axis.set_yticks(range(len(nodes)), nodes, size=8 if len(nodes) < 40 else 6)
    axis.invert_yaxis()
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set_xlabel("slope over log2 width; grey: allowed; x: as written")
    axis.set_title("update dW x (logits: change), by layer", size=10)
    axis.grid(alpha=0.3, axis="x")


def plot_transfer(check: TransferCheck, path: str | None = None) -> Any:
    """Loss over learning rate for each width, narrow ones dark; a star is the minimum of each."""
    models = list(check.shifts)
    figure = new_figure(5.6 * len(models), 4.4)
    row = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    lowest = min(curve.loss for curve in check.curves)
    for axis, model in zip(row, models, strict=True):
        for i, width in enumerate(check.widths):
            curve, colour = check.curve(width, model), depth_colour(i, len(check.widths))
            rates = [(check.centre or 1.0) * factor for factor in curve.factors]
            axis.errorbar(rates, curve.losses, curve.errors, color=colour, marker="o", ms=3, lw=1.3, label=str(width))
            axis.plot((check.centre or 1.0) * curve.best, curve.loss, "*", color=colour, ms=13, mec="white", zorder=5)
        shift = check.shifts[model]
        axis.set_title(f"{TITLES[model]}: {shift.mean:+.2f} ± {shift.error:.2f} log2 per octave", size=10)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("learning rate" if check.centre else "factor on tuned rates")
        axis.grid(alpha=0.3)
    worst_best = max(curve.loss for curve in check.curves)
    row[0].set_ylim(lowest - 0.1 * (worst_best - lowest + 0.1), worst_best + 3 * (worst_best - lowest + 0.1))
    row[0].set_ylabel(f"loss, mean of {len(check.seeds)} seeds")
    row[-1].legend(title="width", frameon=False)
    figure.suptitle(f"transfer check: {check.verdict}", size=11)
    return save(figure, path)


def plot_tuned(tuned: Tuned, path: str | None = None) -> Any:
    """Loss of every trial over the rate of each role; coloured by order, the chosen rate marked."""
    roles = list(tuned.rates)
    figure = new_figure(3.4 * len(roles), 3.6)
    row = figure.subplots(1, len(roles), sharey=True, squeeze=False)[0]
    losses = sorted(trial.loss for trial in tuned.trials)
    top = losses[len(losses) // 2] + (losses[len(losses) // 2] - losses[0])
    for axis, role in zip(row, roles, strict=True):
        rates = [trial.rates[role] for trial in tuned.trials]
        values = [trial.loss for trial in tuned.trials]
        axis.scatter(rates, values, c=range(len(rates)), cmap="viridis", s=14)
        lowest: dict[float, float] = {}
        for rate, value in zip(rates, values, strict=True):
            lowest[rate] = min(value, lowest.get(rate, value))
        axis.plot(*zip(*sorted(lowest.items()), strict=True), color="0.7", lw=1, zorder=0)
        axis.axvline(tuned.rates[role], color="tab:red", lw=1)
        axis.set_xscale("log", base=2)
        axis.set_title(role, size=10)
        axis.set_xlabel("learning rate")
        axis.grid(alpha=0.3)
    row[0].set_ylim(losses[0] - 0.1 * (top - losses[0]), top)
    row[0].set_ylabel(f"loss, mean of {len(tuned.seeds)} seeds")
    figure.suptitle(
        f"tune, width {tuned.width}: gain {tuned.gain:.3f} ± {tuned.gain_error:.3f} over one rate; late trials bright",
        size=11,
    )
    return save(figure, path)

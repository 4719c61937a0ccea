"""The figure of `diagnose`, with a panel for each of its six diagnostics of hyper-connections; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from abcfx.hyper_connections.rows import OPTIMIZERS, SPREADS, Diagnostic, Measurement, Quantity
from abcfx.support.figures import new_figure
from abcfx.support.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOGARITHMIC = {
    Diagnostic.SINKHORN_ERROR,
    Diagnostic.SENSITIVITY,
    Diagnostic.LOGIT_UPDATE,
    Diagnostic.QUOTIENT_JACOBIAN,
}
_SHOWN: Mapping[Diagnostic, Sequence[str]] = {
    Diagnostic.SINKHORN_ERROR: ("worst", "rows"),
    Diagnostic.SPECTRUM: ("norm", "second"),
    Diagnostic.QUOTIENT_JACOBIAN: ("largest", "smallest", "leak"),
    Diagnostic.SENSITIVITY: ("mix", "read", "write", "mix_typical", "read_typical", "write_typical"),
    Diagnostic.LOGIT_UPDATE: ("weight", "scale", "base"),
    Diagnostic.GATES: ("read", "write", "read_saturated", "write_saturated"),
}
_LINES = {  # drawn as a line over all widths: measured on logits alone
    Diagnostic.SINKHORN_ERROR: "worst",
    Diagnostic.SPECTRUM: "second",
    Diagnostic.QUOTIENT_JACOBIAN: "leak",
}
_LEAST = 1e-9  # lower end of an axis of numbers that may be as small as rounding errors


def plot_diagnosis(title: str, measurements: Sequence[Measurement], verdicts: Mapping[Diagnostic, Verdict]) -> Figure:
    """Draw the result of `diagnose`: each diagnostic's numbers over width, or over a model's hyper-connections.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        title: heading of the figure.
        measurements: every measured number; means over samples are drawn.
        verdicts: worst verdict of each diagnostic, for the headings of the panels.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    figure = new_figure(13, 7)
    modules = list(dict.fromkeys(each.module for each in measurements if each.module is not None))
    for axis, diagnostic in zip(figure.subplots(2, 3).flat, Diagnostic, strict=True):
        mine = [each for each in measurements if each.diagnostic is diagnostic]
        drawn = _draw_curves(axis, diagnostic, mine, modules) + _draw_lines(axis, diagnostic, mine)
        axis.set_title(f"{diagnostic.heading}: {verdicts[diagnostic]}", size=10)
        if diagnostic in _LOGARITHMIC:
            axis.set_yscale("log")
            if diagnostic in _LINES:
                axis.set_ylim(_LEAST, 3)
        if modules:
            axis.set_xlabel("hyper-connection, in the order of the model")
        else:
            axis.set_xscale("log", base=2)
            axis.set_xlabel("width")
        if drawn:
            axis.legend(fontsize=7, frameon=False)
    figure.suptitle(title, size=11)
    return figure


def _draw_curves(
    axis: Axes, diagnostic: Diagnostic, measurements: Sequence[Measurement], modules: Sequence[str]
) -> int:
    """Draw one diagnostic's quantities as curves over widths, or over the modules of a model.

    Quantities that are zero somewhere are left out of panels with a logarithmic axis.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Args:
        axis: where to draw.
        diagnostic: the diagnostic.
        measurements: its measured numbers.
        modules: paths of the model's hyper-connections in order; empty if hyper-connections were drawn by width.

    Returns:
        The number of curves.
    """
    drawn = 0
    for optimizer in OPTIMIZERS if diagnostic is Diagnostic.LOGIT_UPDATE else ("",):
        for name in _SHOWN[diagnostic]:
            quantity = Quantity(diagnostic, name, optimizer)
            points = [each for each in measurements if each.of == quantity]
            if not points or (diagnostic in _LOGARITHMIC and any(each.mean <= 0 for each in points)):
                continue
            x = [modules.index(each.module) if each.module else each.width or 0 for each in points]
            style = "--" if optimizer == "adam" or name.endswith("typical") else "-"
            axis.plot(x, [each.mean for each in points], style, marker="o", ms=3, lw=1.2, label=quantity.label)
            drawn += 1
    return drawn


def _draw_lines(axis: Axes, diagnostic: Diagnostic, measurements: Sequence[Measurement]) -> int:
    """Draw horizontal lines for one diagnostic's numbers that were measured on random logits and depend on no width.

    Args:
        axis: where to draw.
        diagnostic: the diagnostic.
        measurements: its measured numbers.

    Returns:
        The number of lines.
    """
    drawn = 0
    for spread, style in zip(SPREADS, (":", "-."), strict=True):
        quantity = Quantity(diagnostic, _LINES.get(diagnostic, ""), spread=spread)
        for each in measurements:
            if each.of == quantity:
                axis.axhline(each.mean, ls=style, color="0.4", lw=1.2, label=quantity.label)
                drawn += 1
    return drawn

"""Figures of what was measured; needs the extra `plot` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from abcfx.errors import InvalidInputError

LABELS = {"alpha": "alpha (dW x)", "omega": "omega (W dx)", "u": "u (dW dx)", "lr": "learning rate"}


def plot_history(history: Sequence[Mapping[str, Any]], path: str | None = None) -> Any:
    """Alignments and learning rate of every layer over training steps: one line per layer, early layers dark.

    Args:
        history: rows of `DynamicAlignment.history`.
        path: where to write the figure, by its ending (.png, .svg, .pdf).

    Raises:
        InvalidInputError: nothing has been measured yet, or matplotlib is not installed.
    """
    if not history:
        raise InvalidInputError("plot: nothing has been measured yet; the first measure comes after the warm-up.")
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise InvalidInputError("plot needs matplotlib.\n  To fix: pip install 'abcfx[plot]'") from error
    nodes = list(dict.fromkeys(row["node"] for row in history))
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots(1, 4)
    depths = [i / max(1, len(nodes) - 1) for i in range(len(nodes))]
    colors = [(0.1 + 0.75 * depth, 0.25, 0.75 - 0.55 * depth) for depth in depths]
    for axis, (key, label) in zip(axes, LABELS.items(), strict=True):
        for node, color in zip(nodes, colors, strict=True):
            rows = [row for row in history if row["node"] == node and row[key] is not None]
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], color=color, lw=1.2)
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("step")
        if key == "lr":
            axis.set_yscale("log")
        else:
            axis.axhline(0.5, color="0.8", lw=0.8, zorder=0)
            axis.axhline(1.0, color="0.8", lw=0.8, zorder=0)
    shown = [0, *([len(nodes) - 1] if len(nodes) > 1 else [])] if len(nodes) > 8 else range(len(nodes))
    handles = [Line2D([], [], color=colors[i], label=nodes[i]) for i in shown]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    if path is not None:
        figure.savefig(path)
    return figure

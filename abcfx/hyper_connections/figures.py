"""The figure of a diagnosis: six panels; needs the extra `plot` (matplotlib)."""

from __future__ import annotations

from typing import Any

from abcfx.hyper_connections.diagnosis import DIAGNOSTICS, Diagnosis
from abcfx.support.figures import new_figure

LOG = ("sinkhorn_error", "sensitivity", "logit_update", "quotient_jacobian")
SHOWN = {
    "sinkhorn_error": ("worst", "rows"),
    "spectrum": ("norm", "second"),
    "quotient_jacobian": ("largest", "smallest", "leak"),
    "sensitivity": ("mix", "read", "write", "mix_typical", "read_typical", "write_typical"),
    "logit_update": ("sgd weight", "sgd scale", "sgd base", "adam weight", "adam scale", "adam base"),
    "gate_statistics": ("read", "write", "read_saturated", "write_saturated"),
}
ANY_WIDTH = {"sinkhorn_error": "worst", "spectrum": "second", "quotient_jacobian": "leak"}
LEAST = 1e-9  # of the axis of what may be as small as rounding


def plot_diagnosis(diagnosis: Diagnosis, path: str | None = None) -> Any:
    """One panel for each diagnostic: means over samples, over width; over modules, in order, for a model.

    Args:
        path: where to write the figure, by its ending (.png, .svg, .pdf).

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    figure = new_figure(13, 7)
    modules = list(dict.fromkeys(row.module for row in diagnosis.rows if row.module is not None))
    for axis, (name, title) in zip(figure.subplots(2, 3).flat, DIAGNOSTICS.items(), strict=True):
        drawn = 0
        for quantity in SHOWN[name]:
            rows = [row for row in diagnosis.rows if (row.diagnostic, row.quantity) == (name, quantity)]
            x = [modules.index(row.module) if row.module else row.width for row in rows]
            if rows and not (name in LOG and any(row.mean <= 0 for row in rows)):
                style = "--" if quantity.startswith("adam") or quantity.endswith("typical") else "-"
                axis.plot(x, [row.mean for row in rows], style, marker="o", ms=3, lw=1.2, label=quantity)
                drawn += 1
        for spread, style in ((1, ":"), (3, "-.")):
            quantity = f"{ANY_WIDTH.get(name)} at logit std {spread}"
            for row in diagnosis.rows:
                if (row.diagnostic, row.quantity) == (name, quantity):
                    axis.axhline(row.mean, ls=style, color="0.4", lw=1.2, label=quantity)
                    drawn += 1
        axis.set_title(f"{title}: {diagnosis.status(name)}", size=10)
        if name in LOG:
            axis.set_yscale("log")
            if name in ANY_WIDTH:
                axis.set_ylim(LEAST, 3)
        if modules:
            axis.set_xlabel("hyper-connection, in the order of the model")
        else:
            axis.set_xscale("log", base=2)
            axis.set_xlabel("width")
        if drawn:
            axis.legend(fontsize=7, frameon=False)
    figure.suptitle(f"hyper-connections: {diagnosis.verdict}", size=11)
    if path is not None:
        figure.savefig(path)
    return figure

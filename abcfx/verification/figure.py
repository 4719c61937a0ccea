"""Section "Figure" of `verify`: the numbers in its six panels are checked, and drawn (needs matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from abcfx.checks.variants import STANDARD, TRANSFORMED
from abcfx.support.figures import depth_colour, new_figure
from abcfx.verification.evidence import Evidence, number
from abcfx.verification.studies import Studies, slope
from abcfx.verification.widths import C

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    "c against alignment",
    "learning rate against width",
    "activation magnitude",
    "loss with dynamic alignment",
    "alpha per layer",
    "learning rate per layer",
)
ROLE_COLOURS = {"embedding": "#1f6fb2", "hidden": "#3b7d23", "readout": "#b35a00"}
WINDOW = 10  # steps over which a noisy loss is averaged


def figure(studies: Studies) -> Evidence:
    """Check the numbers behind a figure of six panels, such as loss against learning rate at each width, and draw it.

    It is drawn only if `studies.picture` names a file.

    Args:
        studies: the training runs and solutions that sections share, and `picture`, the file to draw to (or None).

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    levels = studies.alignments
    off = max(
        abs(found - expected)
        for level, c in levels.items()
        for found, expected in zip(c, (0.5, level, level - 0.5), strict=True)
    )
    claim = "c against alignment A: embedding 1/2, hidden A, readout A - 1/2"
    evidence.check(claim, off < 1e-9, f"{len(levels)} points, off by {number(off)}")
    slopes = {role: slope(by_width) for role, by_width in studies.rates.items()}
    off = max(abs(found + C[role]) for role, found in slopes.items())
    told = ", ".join(f"{role} {number(found)}" for role, found in slopes.items())
    evidence.check("learning rates are straight lines of slope -c", off < 1e-9, told)
    sizes = [value for curves in studies.magnitudes.values() for each in curves.values() for value in each.values()]
    evidence.check("sizes can be drawn", *_drawable(sizes, True))
    losses = [*studies.training.dynamic, *studies.training.static]
    evidence.check("losses can be drawn", *_drawable(losses, True))
    history = studies.training.history
    layers = {row["node"] for row in history}
    alphas = [row["alpha"] for row in history if row["alpha"] is not None]
    evidence.check(f"alpha of {len(layers)} layers can be drawn", *_drawable(alphas, False))
    evidence.check(f"rates of {len(layers)} layers can be drawn", *_drawable([row["lr"] for row in history], True))
    if studies.picture is not None:
        panels = draw(studies, studies.picture)
        told = f"{panels} panels with curves, {studies.picture.stat().st_size:,} bytes"
        evidence.check(f"{studies.picture.name} is drawn", panels == len(PANELS), told)
    return evidence


def _drawable(values: Sequence[float], positive: bool) -> tuple[bool, str]:
    """Find out whether all numbers can be drawn: they must be finite, and positive for a logarithmic axis.

    Args:
        values: the numbers; there must be some.
        positive: whether the axis is logarithmic.

    Returns:
        (whether all can be drawn, how many can, as text).
    """
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not positive)]
    return bool(values) and len(finite) == len(values), f"{len(finite)} of {len(values)} numbers"


def draw(studies: Studies, path: Path) -> int:
    """Draw the six panels to a file and return the number of panels that have curves.

    Args:
        studies: the runs and solutions whose numbers are drawn.
        path: where to write the picture.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    picture = new_figure(13.5, 7.6)
    axes = picture.subplots(2, 3).flat
    draw_panel = (_draw_exponents, _draw_rates, _draw_sizes, _draw_losses, _draw_alphas, _draw_layer_rates)
    for axis, title, panel in zip(axes, PANELS, draw_panel, strict=True):
        panel(axis, studies)
        axis.set_title(title, size=11)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=100)
    return sum(bool(axis.lines) for axis in picture.axes)


def _draw_exponents(axis: Axes, studies: Studies) -> None:
    """Draw the learning-rate exponent c of embedding, hidden layers and readout over the alignment of updates.

    An exponent c stands for a rate n^-c (n: width); alignment is 1/2 if updates and inputs are independent, 1 if
    aligned.

    Args:
        axis: where to draw.
        studies: holds the exponents.
    """
    for k, (role, colour) in enumerate(ROLE_COLOURS.items()):
        curve = {level: c[k] for level, c in studies.alignments.items()}
        axis.plot(list(curve), list(curve.values()), color=colour, lw=2, label=role)
    axis.axvline(0.5, color="0.75", lw=0.8, ls=":", zorder=0)
    axis.set_xlabel("alpha = u (1/2: independent, 1: aligned)")
    axis.set_ylabel("c, muP with Adam")
    axis.legend(frameon=False, fontsize=9)


def _draw_rates(axis: Axes, studies: Studies) -> None:
    """Draw the planned learning rate of each role (embedding, hidden, readout) over width, with the slope of the line.

    Args:
        axis: where to draw.
        studies: holds the rates.
    """
    # Embedding and readout have the same rates: one is drawn thick and pale, the other thin and dashed, to see both.
    styles = {"embedding": ("-", 4.0, 0.45), "hidden": ("-", 2.0, 1.0), "readout": ("--", 2.0, 1.0)}
    for role, by_width in studies.rates.items():
        line, width, alpha = styles[role]
        label = f"{role}, slope {slope(by_width):.2f}"
        axis.plot(
            list(by_width), list(by_width.values()), line, marker="o", markersize=4, lw=width, alpha=alpha,
            color=ROLE_COLOURS[role], label=label,
        )  # fmt: skip
    _log_widths(axis, list(studies.rates["hidden"]))
    _log_values(axis, (0.001, 0.002, 0.005, 0.01))
    axis.set_ylabel("learning rate")
    axis.legend(frameon=False, fontsize=9)


def _draw_sizes(axis: Axes, studies: Studies) -> None:
    """Draw the RMS output of each layer of a GPT over width after training, transformed and unchanged.

    Args:
        axis: where to draw.
        studies: holds the measured RMS values.
    """
    last = max(step for _, step in studies.magnitudes)
    for model, colour, label in ((STANDARD, "#c44e52", "as written"), (TRANSFORMED, "#1f6fb2", "transformed")):
        for k, (node, by_width) in enumerate(studies.magnitudes[model, last].items()):
            is_readout = node == "head.weight"
            axis.plot(
                list(by_width), list(by_width.values()), "--" if is_readout else "-", color=colour, lw=1.2, alpha=0.75,
                label=label if k == 0 else f"{label}, logits" if is_readout else None,
            )  # fmt: skip
    _log_widths(axis, list(next(iter(studies.magnitudes[TRANSFORMED, last].values()))))
    _log_values(axis, (0.3, 1, 3, 10, 30))
    axis.set_ylabel(f"RMS of each layer of a GPT, step {last}")
    axis.legend(frameon=False, fontsize=9)


def _draw_losses(axis: Axes, studies: Studies) -> None:
    """Draw the smoothed loss of two training runs: planned rates, and rates that follow measured alignment.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        axis: where to draw.
        studies: holds the losses.
    """
    run = studies.training
    for losses, colour, width, label in (
        (run.static, "0.75", 4.0, "planned rates"),
        (run.dynamic, "#1f6fb2", 1.3, "rates that follow alignment"),
    ):
        windows = [losses[max(0, k - WINDOW + 1) : k + 1] for k in range(len(losses))]
        axis.plot([sum(window) / len(window) for window in windows], color=colour, lw=width, label=label)
    axis.set_xlabel(f"step (each point the mean of {WINDOW})")
    axis.set_ylabel("loss, nats per character")
    axis.legend(frameon=False, fontsize=9)


def _draw_alphas(axis: Axes, studies: Studies) -> None:
    """Draw the measured alignment exponent alpha (of dW x) of each layer over training steps.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.
    """
    _draw_over_steps(axis, studies, "alpha")
    for level in (0.5, 1.0):
        axis.axhline(level, color="0.75", lw=0.8, ls=":", zorder=0)
    axis.set_ylabel("alpha (dW x), measured")


def _draw_layer_rates(axis: Axes, studies: Studies) -> None:
    """Draw the learning rate of each layer over training steps, in the run whose rates follow measured alignment.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.
    """
    _draw_over_steps(axis, studies, "lr")
    _log_values(axis, (0.005, 0.006, 0.008, 0.01, 0.012))
    axis.set_ylabel("learning rate in use")


def _draw_over_steps(axis: Axes, studies: Studies, key: Literal["alpha", "lr"]) -> None:
    """Draw one curve for each layer over training steps.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        axis: where to draw.
        studies: holds the history of the training run.
        key: which number of the history: "alpha" (alignment exponent of dW x) or "lr".
    """
    history = studies.training.history
    nodes = list(dict.fromkeys(row["node"] for row in history))
    for k, node in enumerate(nodes):
        points = [(row["step"], value) for row in history if row["node"] == node and (value := row[key]) is not None]
        colour = depth_colour(k, len(nodes))
        axis.plot([step for step, _ in points], [value for _, value in points], color=colour, lw=1.5, label=node)
    axis.set_xlabel("step")
    axis.legend(frameon=False, fontsize=9)


def _log_widths(axis: Axes, widths: Sequence[int]) -> None:
    """Make the x axis logarithmic, with a tick at each width."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_xlabel("width")


def _log_values(axis: Axes, ticks: Sequence[float]) -> None:
    """Make the y axis logarithmic, with ticks at the given values."""
    axis.set_yscale("log")
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()

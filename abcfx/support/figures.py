"""Figures that need no window: made, saved, and coloured alike; matplotlib is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from abcfx.errors import InvalidInputError
from abcfx.support.files import writable_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_COLOURS = {
    "PASS": "tab:green",
    "FAIL": "tab:red",
    "WEAK": "tab:orange",
    "INCONCLUSIVE": "tab:orange",
    "SKIP": "0.6",
}
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """Make an empty matplotlib figure; width and height are in inches.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError("plot needs matplotlib.\n  To fix: pip install 'abcfx[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def check_target(option: str, path: object) -> None:
    """Refuse a file that no figure can be written to, before anything is computed for it.

    Args:
        option: what the path was given for; it begins the error message.
        path: the user's path.

    Raises:
        InvalidInputError: its folder is missing, its ending is no format of pictures, or matplotlib is not installed.
    """
    target = writable_file(option, path)
    known = new_figure(1, 1).canvas.get_supported_filetypes()
    if target.suffix and target.suffix[1:].lower() not in known:
        raise InvalidInputError(
            f"{option}={str(target)!r}: no pictures are written as {target.suffix!r}.\n"
            f"  expected: .png, .svg or .pdf.\n  To fix: {option}={str(target.with_suffix('.png'))!r}"
        )


def save(figure: Figure, path: str | None) -> Figure:
    """Write a figure to a file, if a path is given, and return the figure.

    Raises:
        InvalidInputError: the path is none of a picture that can be written.
    """
    if path is not None:
        check_target("plot", path)
        figure.savefig(path, dpi=DPI)
    return figure


def depth_colour(index: int, count: int) -> tuple[float, float, float]:
    """Return the colour (red, green, blue) of line number `index` of `count`: from dark blue to orange."""
    depth = index / max(1, count - 1)
    return 0.1 + 0.75 * depth, 0.25, 0.75 - 0.55 * depth


def draw_verdicts(axis: Axes, rows: Sequence[tuple[str, str]]) -> None:
    """Draw (name, verdict) pairs one below the other on an axis, each verdict as a coloured mark with its word."""
    for y, (_, verdict) in enumerate(rows):
        axis.plot(0, y, "o", color=VERDICT_COLOURS[verdict], ms=6)
        axis.annotate(verdict, (0, y), xytext=(8, 0), textcoords="offset points", va="center", size=8)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], size=8)
    axis.set_xticks([])
    axis.set_xlim(-0.2, 1)
    axis.invert_yaxis()

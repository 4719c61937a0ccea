"""Everything general that abcfx asks of rich: plain text of tables, colours of verdicts, progress bars."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from abcfx.support.verdict import Verdict

WIDTH = 120
VERDICT_STYLES: dict[str, str] = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.WEAK: "bold yellow",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.SKIP: "dim",
}


def text_of(*renderables: RenderableType, width: int = WIDTH) -> str:
    """Render tables, rules and text, one below the other, as plain text in lines of at most `width` columns.

    Strings are printed as they are: square brackets and numbers in them mean nothing.

    Example:
        >>> text_of("blocks[0]", "head")
        'blocks[0]\\nhead\\n'
    """
    file = io.StringIO()
    console = Console(
        file=file, width=width, color_system=None, force_terminal=False, markup=False, emoji=False, highlight=False
    )
    for each in renderables:
        console.print(each)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def verdict_text(verdict: Verdict | None) -> Text:
    """Return a verdict as coloured text; "-" stands for None, where nothing was judged."""
    return Text("-", "dim") if verdict is None else Text(verdict.value, VERDICT_STYLES[verdict])


@contextmanager
def progress_bar(title: str, total: int, shown: bool | None = None) -> Iterator[Callable[[], None]]:
    """Draw a progress bar on stderr within the block, and yield the function to call after each step.

    Args:
        title: words in front of the bar.
        total: number of steps.
        shown: whether to draw it; None draws it if stderr is a terminal.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = not (console.is_terminal if shown is None else shown)
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)

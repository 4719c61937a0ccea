"""What all results of checks share: colours of verdicts, plain text of a rich renderable, DataFrames."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType

from abcfx.errors import InvalidInputError

WIDTH = 120
COLOURS = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "WEAK": "bold yellow",
    "INCONCLUSIVE": "bold yellow",
    "SKIP": "dim",
    "": "dim",
}


def text_of(renderable: RenderableType, width: int = WIDTH) -> str:
    """Without colours, lines of at most `width` columns."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def to_pandas(rows: Sequence[Mapping[str, Any]]) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise InvalidInputError("to_pandas needs pandas.\n  To fix: pip install pandas; or use .rows.") from error
    return pandas.DataFrame(list(rows))

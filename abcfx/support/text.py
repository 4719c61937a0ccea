"""Data as other programs and people read it: numbers that JSON has, DataFrames, values in error messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING

from abcfx.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas


def finite(data: object) -> object:
    """Return JSON-able data with None in place of every number that is not finite, since JSON has none of these.

    Example:
        >>> finite({"loss": float("nan"), "widths": (64, 128)})
        {'loss': None, 'widths': [64, 128]}
    """
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def to_pandas(rows: Sequence[Mapping[str, object]]) -> pandas.DataFrame:
    """Return rows, each a dict by column, as a pandas DataFrame.

    Raises:
        InvalidInputError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise InvalidInputError("to_pandas needs pandas.\n  To fix: pip install pandas; or use .rows.") from error
    return pandas.DataFrame(list(rows))


def shown(value: object) -> str:
    """Return the short text by which an error shows a user's value, whatever the value's own `repr` does."""
    if isinstance(value, Integral) and not -(2**64) < int(value) < 2**64:
        return "a number beyond 2**64"
    try:
        text = repr(value)
    except Exception:  # a user's class may raise anything here
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."

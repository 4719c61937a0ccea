"""Options that are numbers: checked in one place, with one error message."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from numbers import Integral, Real

import torch

from abcfx.errors import InvalidInputError
from abcfx.support.text import shown


def check_number(
    option: str,
    value: object,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return an option's value as a finite float within limits.

    Numbers of numpy and tensors without dims will do too; True, False and text are no numbers.

    Args:
        option: name of the option, as the user writes it; it begins the error message.
        value: the user's value.
        at_least: smallest allowed value.
        above: number that the value has to exceed.
        at_most: largest allowed value.
        below: number that the value may not reach.

    Raises:
        InvalidInputError: the value is no number, not finite, or beyond a limit.

    >>> check_number("lr", 1, above=0)
    1.0
    """
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    number = _float(value)
    if number is None or not (at_least <= number <= at_most and above < number < below):
        said = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
        expected = "a positive, finite number" if said == ["above 0"] else ", ".join(["a finite number", *said])
        raise _refused(option, value, expected, number)
    return number


def check_whole(option: str, value: object, *, at_least: int = 1) -> int:
    """Return an option's value as an int that is not below `at_least`; a float such as 2.0 is no whole number.

    Args:
        option: name of the option, as the user writes it; it begins the error message.
        value: the user's value.
        at_least: smallest allowed value.

    Raises:
        InvalidInputError: the value is no whole number, or too small.

    >>> check_whole("every", 10)
    10
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not at_least <= int(value) <= sys.maxsize:
        limit = f", at least {at_least}" * (at_least > -(2**31))  # below, it is that of a C integer
        raise _refused(option, value, f"a whole number{limit}", None)
    return int(value)


def _float(value: object) -> float | None:
    """Return a value as a finite float; None if it is no number, or not finite, or too large for a float."""
    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_meta:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _refused(option: str, value: object, expected: str, number: float | None) -> InvalidInputError:
    """Make the error for an option with a wrong value.

    Args:
        option: name of the option.
        value: the user's value. For a number in quotes the message has the corrected line.
        expected: what the value should be, in words.
        number: the value as a float; None if it is no number.
    """
    message = f"{option}={shown(value)}: expected {expected}."
    if number is None and isinstance(value, str):
        with suppress(ValueError):  # words have no number in them
            if math.isfinite(number := float(value)):
                message += f"\n  To fix: {option}={number:g}"
    return InvalidInputError(message)

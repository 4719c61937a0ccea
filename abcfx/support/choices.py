"""Options that are one of a few words: spelled in any case, checked in one place, with one error message."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

from abcfx.errors import InvalidInputError
from abcfx.support.text import shown

Choice = TypeVar("Choice", bound=str)


def choose(option: str, value: object, choices: Iterable[Choice]) -> Choice:
    """Find the choice that a user's value spells; case does not matter, dashes and underscores are the same.

    Args:
        option: name of the option, as the user writes it; it begins the error message.
        value: the user's value.
        choices: the allowed words, such as `typing.get_args` of a Literal.

    Returns:
        The choice in its own spelling.

    Raises:
        InvalidInputError: the value spells none of them; the message lists the choices and the nearest one.

    >>> choose("optimizer", "AdamW", ["adamw", "sgd"])
    'adamw'
    """
    by_key = {_key(choice): choice for choice in choices}
    if isinstance(value, str) and _key(value) in by_key:
        return by_key[_key(value)]
    words = [repr(str(choice)) for choice in by_key.values()]
    message = f"{option}={shown(value)} is not known.\n  Expected one of: {', '.join(words)}."
    if nearest := get_close_matches(_key(value), by_key, n=1) if isinstance(value, str) else []:
        message += f"\n  To fix: {option}={str(by_key[nearest[0]])!r}"
    raise InvalidInputError(message)


def _key(text: str) -> str:
    """Return a word in the form in which choices are compared: lower case, underscores for dashes."""
    return text.strip().lower().replace("-", "_")

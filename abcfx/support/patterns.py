"""Match overrides, given by glob pattern, to parameter and layer names; a pattern that matches nothing is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from abcfx.errors import InvalidInputError

T = TypeVar("T")


def match_patterns(argument: str, patterns: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """Return the value for each name that a pattern matches; of several patterns the last one counts.

    A pattern matches a full name ("blocks.0.fc.weight") or a name without ".weight" ("blocks.*.fc").

    Args:
        argument: the option that the patterns were given in, for the error message.
        patterns: values by pattern.
        names: all names that there are.

    Raises:
        InvalidInputError: a pattern matches no name; the message lists names that are close.

    Example:
        >>> match_patterns("std", {"*": 1.0, "head": 0.5}, ["emb.weight", "head.weight"])
        {'emb.weight': 1.0, 'head.weight': 0.5}
    """
    known = list(names)
    found: dict[str, T] = {}
    for pattern, value in patterns.items():
        matched = [
            name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)
        ]
        if not matched:
            close = get_close_matches(pattern, [name.removesuffix(".weight") for name in known], n=3, cutoff=0.3)
            raise InvalidInputError(
                f"{argument}: the pattern {pattern!r} matches no parameter.\n"
                f"  Names that are close: {', '.join(close or known[:3])}.\n"
                f"  To fix: {argument}={{{(close or known)[0]!r}: ...}}"
            )
        found.update(dict.fromkeys(matched, value))
    return found

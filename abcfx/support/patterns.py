"""Overrides by glob pattern on parameter and layer names; a pattern that matches nothing is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from abcfx.errors import InvalidInputError

T = TypeVar("T")


def match_patterns(argument: str, patterns: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """Parameter name -> the value of the last pattern that matches it.

    A pattern matches a parameter's full name ("blocks.0.fc.weight") or that name without ".weight" ("blocks.*.fc").
    Raises InvalidInputError when a pattern matches no name.
    """
    known = list(names)
    found: dict[str, T] = {}
    for pattern, value in patterns.items():
        matched = [n for n in known if fnmatchcase(n, pattern) or fnmatchcase(n.removesuffix(".weight"), pattern)]
        if not matched:
            close = get_close_matches(pattern, [n.removesuffix(".weight") for n in known], n=3, cutoff=0.3)
            raise InvalidInputError(
                f"{argument}: the pattern {pattern!r} matches no parameter.\n"
                f"  Names that are close: {', '.join(close or known[:3])}.\n"
                f"  To fix: {argument}={{{(close or known)[0]!r}: ...}}"
            )
        found.update(dict.fromkeys(matched, value))
    return found

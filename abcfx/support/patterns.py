"""Names of parameters: patterns that match them, where one that matches nothing is an error, and wrappers in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from abcfx.errors import InvalidInputError

T = TypeVar("T")
# What wrappers put into the names of the parameters that they hold.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def match_patterns(argument: str, patterns: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """Return a value for each name that a glob pattern matches; of several patterns the last one counts.

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
        if not isinstance(pattern, str):
            raise InvalidInputError(f"{argument}: expected patterns of parameter names as keys, got {pattern!r}.")
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


def plain_name(name: str, known: Collection[str]) -> str:
    """Return a parameter's name without the parts that wrappers (torch.compile, DDP, FSDP) put into it.

    Args:
        name: the name; it comes back unchanged if no name in `known` fits.
        known: names of the parameters without wrappers. A model's own submodule called "module" stays in its name.
    """
    if name in known:
        return name
    parts = name.split(".")
    for drop in (_WRAPPERS[:1] + _WRAPPERS[2:], _WRAPPERS):
        plain = ".".join(part for part in parts if part not in drop)
        if plain in known:
            return plain
    return name

"""The rules that say what an aten op makes of the dims of its inputs: one small function per kind of op.

A rule gets a `Step` and returns the dims of the result, or of each result. Ops that torch tags as pointwise need none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from abcfx.pairing.factors.atoms import Dim, Pair, UnfitError

if TYPE_CHECKING:
    from abcfx.pairing.factors.factoring import Step

Dims = tuple[Dim, ...]
Result = Dims | list[Dims]
Rule = Callable[["Step"], Result]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for ops by their names, without namespace and overload."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def over(size: Pair, by: Pair) -> Pair:
    """What is left of a size when a factor is taken out of it."""
    if size[0] % by[0] or size[1] % by[1]:
        raise UnfitError(f"{size[0]} and {size[1]} are no multiples of {by[0]} and {by[1]}")
    return size[0] // by[0], size[1] // by[1]

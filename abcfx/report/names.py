"""Names of parameters in reports: names that differ in numbers only are collapsed into one pattern."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import nn

_NUMBER = re.compile(r"(\d+)")


class CollapsedName(NamedTuple):
    """Names that differ in numbers only, with the pattern that stands for them.

    Attributes:
        shown: the pattern, such as `blocks.{0..11}.fc.weight`.
        names: the names.
    """

    shown: str
    names: tuple[str, ...]


def collapse_names(keys: Mapping[str, Hashable]) -> list[CollapsedName]:
    """Collapse names that have equal values in `keys` and differ in numbers only into one pattern.

    The patterns come in the order of their first names. A pattern stands for exactly the names that are there: where
    some combination of numbers is missing, there are several patterns.

    >>> [each.shown for each in collapse_names({"blocks.0.fc": 1, "blocks.1.fc": 1, "head": 1})]
    ['blocks.{0,1}.fc', 'head']
    """
    position = {name: i for i, name in enumerate(keys)}
    groups: dict[Hashable, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault((_NUMBER.sub("*", name), key), []).append(name)
    collapsed = [part for names in groups.values() for part in _products(names)]
    return sorted(collapsed, key=lambda part: position[part.names[0]])


def listed(names: Iterable[str], most: int = 6) -> str:
    """List names, separated by commas; those that differ in numbers only become one pattern.

    After `most` patterns comes "and 3 more".
    """
    shown = [part.shown for part in collapse_names(dict.fromkeys(names))]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def tied_names(module: nn.Module) -> list[list[str]]:
    """Return lists of names that stand for one and the same (tied) parameter; the first of each is that in the plan."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def count_entries(tensors: Iterable[torch.Tensor]) -> int:
    """Return the number of entries of all tensors together."""
    return sum(tensor.numel() for tensor in tensors)


def _products(names: Sequence[str]) -> list[CollapsedName]:
    """Split names until one pattern with sets of numbers says exactly which names each part has."""
    pieces = [_NUMBER.split(name) for name in names]
    columns = list(zip(*pieces, strict=True))
    distinct = [list(dict.fromkeys(column)) for column in columns]
    count = 1
    for values in distinct:
        count *= len(values)
    if count == len(names):
        return [CollapsedName("".join(map(_braces, distinct)), tuple(names))]
    several = [i for i, values in enumerate(distinct) if len(values) > 1]
    by = min(several, key=lambda i: len(distinct[i]))
    return [
        part
        for value in distinct[by]
        for part in _products([name for name, column in zip(names, columns[by], strict=True) if column == value])
    ]


def _braces(values: Sequence[str]) -> str:
    """Write the numbers at one place of a pattern of names: `{0..11}`, `{0,2}`, or a single one as it is."""
    if len(values) == 1:
        return values[0]
    numbers = sorted(map(int, values))
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{{{numbers[0]}..{numbers[-1]}..{steps.pop()}}}"  # as shells write it
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    shown = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(shown) + "}"

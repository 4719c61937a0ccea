"""What the report says, as data: repeated names folded into one, skip connections, shared weights, shadow prices."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from torch import nn

from abcfx.exponents.dag_program import Binding, BindingKind
from abcfx.lp.names import RowName
from abcfx.lp.rows import ALIGNMENTS

_NUMBER = re.compile(r"(\d+)")


class CollapsedName(NamedTuple):
    """`names` that differ in numbers only, and `shown`, which stands for all of them: `blocks.{0..11}.fc.weight`."""

    shown: str
    names: tuple[str, ...]


def collapse_names(keys: Mapping[str, Hashable]) -> list[CollapsedName]:
    """Names with equal keys that differ in numbers only become one; `shown` stands for no name that is not there."""
    position = {name: i for i, name in enumerate(keys)}
    groups: dict[Hashable, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault((_NUMBER.sub("*", name), key), []).append(name)
    folded = [part for names in groups.values() for part in _products(names)]
    return sorted(folded, key=lambda part: position[part.names[0]])


def _products(names: Sequence[str]) -> list[CollapsedName]:
    """Splits names until the numbers of each part form a full product, so that one pattern says which they are."""
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
    if len(values) == 1:
        return values[0]
    numbers = sorted(map(int, values))
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{{{numbers[0]}..{numbers[-1]}..{steps.pop()}}}"  # as shells write it
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    shown = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(shown) + "}"


def tied_names(module: nn.Module) -> list[list[str]]:
    """Names that stand for one and the same parameter, the first of each being the name in the spec."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def tag_of(name: RowName) -> str:
    """The kind of a row as the report tells it: rows of gradients are all "gradient"."""
    return "gradient" if name.kind.bounds_gradient else name.kind.value


def binding_tags(binding: Binding) -> tuple[str, ...]:
    """What holds a c up, short enough for a column: alpha, u, gradient, rule, given or free."""
    if binding.kind is not BindingKind.ROWS:
        return (binding.kind.value,)
    return tuple(dict.fromkeys(map(tag_of, binding.rows)))


class Price(NamedTuple):
    """Rows of one kind (`tag`) with one shadow price; `nodes` are collapsed names."""

    tag: str
    price: float
    nodes: tuple[str, ...]


def group_prices(prices: Mapping[Hashable, float]) -> list[Price]:
    """Shadow prices of rows, those of one kind and price together: alignments first, then the dearest."""
    nodes: dict[tuple[str, float], dict[str, None]] = {}
    for name, price in prices.items():
        if isinstance(name, RowName):
            nodes.setdefault((tag_of(name), round(abs(price), 6)), {})[name.node] = None
    found = [
        Price(tag, price, tuple(part.shown for part in collapse_names(which))) for (tag, price), which in nodes.items()
    ]
    return sorted(found, key=lambda p: (p.tag not in ALIGNMENTS, -p.price))


def count_entries(tensors: Iterable[Any]) -> int:
    return sum(tensor.numel() for tensor in tensors)

"""Repeated blocks: runs of alike units among numbered modules, and the diagram with some runs drawn once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from abcfx.dag.queries import blocks_around
from abcfx.report.drawing.boxes import Box, Diagram
from abcfx.report.names import collapse_names

MAX_PERIOD = 8  # numbered modules in one unit: conv, norm, conv, norm; two kinds of layers in turn
SMALL_UNIT = 3  # boxes; a unit with fewer must come three times to be drawn once


@dataclass(frozen=True)
class Run:
    """A run of repeated blocks in a drawing: alike groups of boxes (units), one after the other.

    Attributes:
        title: name of all of them together, such as `blocks.{0..11}`.
        units: names of the boxes of each unit, in the same order in each.
        titles: name of each unit.
        depth: number of parts in the path of the module that holds the units.
    """

    title: str
    units: tuple[tuple[str, ...], ...]
    titles: tuple[str, ...]
    depth: int


@dataclass(frozen=True)
class Frame:
    """A frame in a drawing: around one unit of boxes that stands for many, or around repeated blocks drawn in full.

    Attributes:
        title: name of the repeated blocks, or of the unit.
        count: number of units that the boxes stand for.
        boxes: names of the boxes inside.
        run: index of the run of repeated blocks.
    """

    title: str
    count: int
    boxes: tuple[str, ...]
    run: int


@dataclass(frozen=True)
class View:
    """A drawing of the model in which some runs of repeated blocks are drawn once.

    Attributes:
        boxes: the boxes that are drawn.
        edges: the edges (tail, head) between them.
        frames: frames around repeated blocks.
        stands_for: names of the boxes that each box stands for, itself first.
    """

    boxes: tuple[Box, ...]
    edges: tuple[tuple[str, str], ...]
    frames: tuple[Frame, ...]
    stands_for: Mapping[str, tuple[str, ...]]


def find_runs(diagram: Diagram) -> tuple[Run, ...]:
    """Find all runs of repeated blocks in a drawing; outer runs come before those inside of their blocks."""
    incoming: dict[str, list[str]] = {}
    for tail, head in diagram.edges:
        incoming.setdefault(head, []).append(tail)
    containers: dict[tuple[str, ...], dict[str, list[Box]]] = {}
    for box in diagram.boxes:
        for block in blocks_around(box.path):
            prefix = tuple(block.container.split(".")) if block.container else ()
            containers.setdefault(prefix, {}).setdefault(block.number, []).append(box)
    runs = []
    for prefix, units in sorted(containers.items(), key=lambda item: len(item[0])):
        marks = [_signature(boxes, (*prefix, index), incoming) for index, boxes in units.items()]
        sizes = [len(boxes) for boxes in units.values()]
        for start, period, count in _repeats(marks, sizes):
            indices = list(units)[start : start + period * count]
            grouped = [indices[i : i + period] for i in range(0, len(indices), period)]
            boxes_of = tuple(tuple(box.name for index in group for box in units[index]) for group in grouped)
            titles = tuple(_title(prefix, group) for group in grouped)
            runs.append(Run(_title(prefix, indices), boxes_of, titles, len(prefix)))
    return tuple(runs)


def _title(prefix: Sequence[str], indices: Sequence[str]) -> str:
    """Return the name of several numbered modules, as `blocks.{0..11}`.

    Args:
        prefix: path, in parts, of the module that holds them.
        indices: their numbers.
    """
    names = dict.fromkeys(".".join((*prefix, index)) for index in indices)
    return ", ".join(part.shown for part in collapse_names(names))


def _signature(boxes: Sequence[Box], unit: Sequence[str], incoming: Mapping[str, Sequence[str]]) -> Hashable:
    """Return a key that is equal for alike blocks of a drawing: their boxes, the edges among them and from outside.

    Args:
        boxes: the boxes of the block.
        unit: path, in parts, of the block's module.
        incoming: for each box the names of those that lead into it.
    """
    index = {box.name: i for i, box in enumerate(boxes)}
    path = ".".join(unit)
    marks = []
    for box in boxes:
        sources = [index.get(tail, -1) for tail in incoming.get(box.name, ())]
        marks.append((box.path.removeprefix(path), box.alike, tuple(sorted(sources))))
    return tuple(marks)


def _repeats(marks: Sequence[Hashable], sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Find stretches in which the same keys of blocks repeat, from left to right, the longest first.

    Args:
        marks: a key for each block; alike blocks have equal ones.
        sizes: number of boxes of each block; small units must come three times to count.

    Returns:
        (start, number of blocks that repeat together, how often they come) of each stretch.
    """
    found, at = [], 0
    while at < len(marks):
        best = (0, 0, 0)
        for period in range(1, min(MAX_PERIOD, (len(marks) - at) // 2) + 1):
            count = 1
            while marks[at + count * period : at + (count + 1) * period] == marks[at : at + period]:
                count += 1
            enough = 2 if sum(sizes[at : at + period]) >= SMALL_UNIT else 3
            if count >= enough and count * period > best[1] * best[2]:
                best = (at, period, count)
        if best[2]:
            found.append(best)
        at += max(1, best[1] * best[2])
    return found


def view(diagram: Diagram, runs: Sequence[Run], expanded: Collection[int] = ()) -> View:
    """Return a drawing with every run of repeated blocks drawn once, but those in `expanded` (indices) in full."""
    shown_as: dict[str, str] = {box.name: box.name for box in diagram.boxes}
    for number, run in enumerate(runs):
        if number not in expanded:
            for unit in run.units[1:]:
                shown_as.update(zip(unit, run.units[0], strict=True))
    drawn = {name: _last(name, shown_as) for name in shown_as}
    stands_for: dict[str, list[str]] = {}
    for name, other in drawn.items():
        stands_for.setdefault(other, []).append(name)
    position = {box.name: i for i, box in enumerate(diagram.boxes)}
    edges = dict.fromkeys((drawn[tail], drawn[head]) for tail, head in diagram.edges)
    boxes = tuple(box for box in diagram.boxes if box.name in stands_for)
    frames = tuple(
        frame for number, run in enumerate(runs) for frame in _frames(number, run, number in expanded, stands_for)
    )
    forward = tuple(edge for edge in edges if position[edge[0]] < position[edge[1]])
    return View(boxes, forward, frames, {name: tuple(names) for name, names in stands_for.items()})


def _last(name: str, shown_as: Mapping[str, str]) -> str:
    """Return the box that is drawn in place of the box `name`, followed through `shown_as` to one that shows itself."""
    while shown_as[name] != name:
        name = shown_as[name]
    return name


def _frames(number: int, run: Run, is_expanded: bool, drawn: Collection[str]) -> list[Frame]:
    """Return the frames around a run of repeated blocks; none if it lies in a block that is not drawn.

    Args:
        number: index of the run.
        run: the run.
        is_expanded: whether its blocks are all drawn, not only the first.
        drawn: names of the boxes that are drawn.
    """
    if run.units[0][0] not in drawn:
        return []
    if not is_expanded:
        return [Frame(run.title, len(run.units), tuple(n for n in run.units[0] if n in drawn), number)]
    units = [tuple(n for n in unit if n in drawn) for unit in run.units]
    around = Frame(run.title, 1, tuple(n for unit in units for n in unit), number)
    if len(units[0]) == 1:
        return [around]
    return [around, *(Frame(title, 1, unit, number) for title, unit in zip(run.titles, units, strict=True))]

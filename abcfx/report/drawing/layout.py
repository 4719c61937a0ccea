"""A layered layout of a directed acyclic graph: rows from top to bottom, few crossings, frames that hold their boxes.

The steps of Sugiyama et al. 1981 (IEEE Trans. SMC 11): longest-path rows, a bend of each long edge in every row that it
crosses, rows sorted by the mean place of neighbours; then the x that are nearest to the neighbours' mean at a given
distance (pool adjacent violators).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 4
GAP_X, GAP_Y = 26.0, 30.0
BEND_WIDTH = 10.0
FRAME_MARGIN = 14.0
FRAME_TITLE = 22.0
MAX_BENDS = 20_000  # a graph with more draws its long edges straight


@dataclass(frozen=True)
class Layout:
    """The places of nodes, edges and frames in a drawing, in pixels; all coordinates are at least 0.

    Attributes:
        place: centre (x, y) of each node.
        path: points of each edge, from the tail's bottom to the head's top.
        frames: (left, top, width, height) of each frame.
        width: width of the whole drawing.
        height: height of the whole drawing.
    """

    place: Mapping[str, tuple[float, float]]
    path: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    frames: tuple[tuple[float, float, float, float], ...]
    width: float
    height: float


def lay_out(
    sizes: Mapping[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    frames: Sequence[Sequence[str]] = (),
    titles: Sequence[float] = (),
) -> Layout:
    """Find places for the nodes and edges of a directed acyclic graph, in rows from top to bottom.

    Args:
        sizes: (width, height) of each node, in an order in which no edge leads backwards.
        edges: (tail, head), each once.
        frames: the nodes inside each frame, a rectangle; two frames are apart, or one is inside the other.
        titles: width of each frame's title, which the frame is at least as wide as.
    """
    rows_of = _rows(sizes, edges)
    chains, bends = _bend(rows_of, edges)
    row_of = {**rows_of, **bends}
    count = max(row_of.values(), default=-1) + 1
    rows: list[list[str]] = [[] for _ in range(count)]
    for node, row in row_of.items():
        rows[row].append(node)
    above: dict[str, list[str]] = {node: [] for node in row_of}
    below: dict[str, list[str]] = {node: [] for node in row_of}
    for chain in chains.values():
        for tail, head in pairwise(chain):
            below[tail].append(head)
            above[head].append(tail)
    widths = {node: sizes[node][0] if node in sizes else BEND_WIDTH for node in row_of}
    inside = _inside(frames)
    least = _least_widths(inside, titles or [0.0] * len(frames))
    roots = sorted(set(range(len(frames))).difference(*inside))
    outer = [frames[number] for number in roots]
    lane = _lanes(outer, chains, row_of)
    _sort(rows, above, below, lane)
    x = _columns(rows, above, below, widths, lane)
    _keep_out(rows, x, widths, lane, [least[number] for number in roots])
    return _finish(sizes, rows, rows_of, x, chains, frames, inside, least)


def _rows(sizes: Mapping[str, object], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return the row of each node in a drawing: the longest path from a source; sources stand above what they feed."""
    heads: dict[str, list[str]] = {node: [] for node in sizes}
    has_tail = set()
    row = dict.fromkeys(sizes, 0)
    for tail, head in edges:
        heads[tail].append(head)
        has_tail.add(head)
    for node in sizes:
        for head in heads[node]:
            row[head] = max(row[head], row[node] + 1)
    for node in sizes:
        if node not in has_tail and heads[node]:
            row[node] = min(row[head] for head in heads[node]) - 1
    return row


def _bend(
    row: Mapping[str, int], edges: Sequence[tuple[str, str]]
) -> tuple[dict[tuple[str, str], list[str]], dict[str, int]]:
    """Add a bend to each edge of a drawing in every row that it crosses, since only neighbouring rows are joined.

    Args:
        row: the row of each node.
        edges: (tail, head) of each edge.

    Returns:
        The nodes and bends that each edge goes through, from tail to head; the row of each bend.
    """
    straight = sum(row[head] - row[tail] - 1 for tail, head in edges) > MAX_BENDS
    chains, bends = {}, {}
    for number, (tail, head) in enumerate(edges):
        between = [] if straight else [f"\0{number} {at}" for at in range(row[tail] + 1, row[head])]
        bends.update({name: row[tail] + 1 + i for i, name in enumerate(between)})
        chains[tail, head] = [tail, *between, head]
    return chains, bends


def _inside(frames: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return, for each frame (a rectangle around nodes of a drawing), the indices of the frames directly inside it.

    `frames` holds the names of the nodes inside each frame.
    """
    around: dict[str, list[int]] = {}
    for number in sorted(range(len(frames)), key=lambda i: len(frames[i])):
        for node in frames[number]:
            around.setdefault(node, []).append(number)
    inside: list[list[int]] = [[] for _ in frames]
    for number, frame in enumerate(frames):
        chain = around[frame[0]]
        after = chain.index(number) + 1
        if after < len(chain):
            inside[chain[after]].append(number)
    return inside


def _least_widths(inside: Sequence[Sequence[int]], titles: Sequence[float]) -> list[float]:
    """Return the width that each frame of a drawing needs for its own title and for the frames inside.

    Args:
        inside: for each frame, the indices of the frames directly inside it.
        titles: the width of each frame's title.
    """
    least = list(titles)

    def widen(number: int) -> float:
        """Widen a frame (a rectangle around nodes) until the frames inside have room, and return its width."""
        least[number] = max([least[number], *(widen(inner) + 2 * FRAME_MARGIN for inner in inside[number])])
        return least[number]

    for number in set(range(len(inside))).difference(*inside):
        widen(number)
    return least


def _lanes(
    outer: Sequence[Sequence[str]], chains: Mapping[tuple[str, str], Sequence[str]], row_of: Mapping[str, int]
) -> dict[str, int]:
    """Return for each node and bend in a drawing the index of the outermost frame around it; others are missing.

    A bend is a point in a row of the drawing that an edge crosses; a frame is a rectangle around nodes.

    Args:
        outer: the nodes of each outermost frame.
        chains: the nodes and bends that each edge goes through. Bends are inside a frame if both ends of the edge are.
        row_of: the row of each node and bend.
    """
    lane = {node: i for i, nodes in enumerate(outer) for node in nodes}
    for (tail, head), chain in chains.items():
        if lane.get(tail, -1) == lane.get(head, -2):
            lane.update(dict.fromkeys(chain[1:-1], lane[tail]))
    return lane


def _sort(
    rows: list[list[str]],
    above: Mapping[str, Sequence[str]],
    below: Mapping[str, Sequence[str]],
    lane: Mapping[str, int],
) -> None:
    """Sort the nodes of each row of a drawing by the mean place of their neighbours, so that few edges cross.

    That is done row by row, down and up in turn; nodes of one frame stay together.

    Args:
        rows: the nodes and bends of each row, sorted in place.
        above: for each node its neighbours in the row above.
        below: for each node its neighbours in the row below.
        lane: index of the frame around each node that is in one.
    """
    place = {node: float(i) for row in rows for i, node in enumerate(row)}
    for sweep in range(2 * SWEEPS):
        downwards = sweep % 2 == 0
        near = above if downwards else below
        for row in rows if downwards else reversed(rows):
            wish = {n: _mean([place[other] for other in near[n]], place[n]) for n in row}
            in_lane: dict[int, list[float]] = {}
            for node in row:
                if node in lane:
                    in_lane.setdefault(lane[node], []).append(wish[node])
            centre = {number: _mean(values, 0.0) for number, values in in_lane.items()}
            row.sort(key=lambda n: (centre[lane[n]] if n in lane else wish[n], lane.get(n, -1), wish[n]))
            place.update({node: i - (len(row) - 1) / 2 for i, node in enumerate(row)})


def _mean(values: Sequence[float], default: float) -> float:
    """Return the mean of numbers, or `default` if there are none."""
    return sum(values) / len(values) if values else default


def _columns(
    rows: Sequence[Sequence[str]],
    above: Mapping[str, Sequence[str]],
    below: Mapping[str, Sequence[str]],
    widths: Mapping[str, float],
    lane: Mapping[str, int],
) -> dict[str, float]:
    """Return x of each node in a drawing: as near to the mean of its neighbours as the other nodes of its row allow.

    `above` and `below` have the neighbours of each node in the rows next to it, `lane` the index of a frame around it.
    """
    x = {node: 0.0 for row in rows for node in row}
    for row in rows:
        _place(row, [0.0] * len(row), x, widths, lane)
    for sweep in range(2 * SWEEPS + 1):
        downwards = sweep % 2 == 0
        near = above if downwards else below
        for row in rows if downwards else reversed(rows):
            _place(row, [_mean([x[other] for other in near[n]], x[n]) for n in row], x, widths, lane)
    return x


def _place(
    row: Sequence[str],
    wishes: Sequence[float],
    x: dict[str, float],
    widths: Mapping[str, float],
    lane: Mapping[str, int],
) -> None:
    """Set x of the nodes in one row of a drawing, as near to `wishes` (least squares) as is possible without overlap.

    Args:
        row: the nodes and bends from left to right.
        wishes: the x that each of them would like to have.
        x: x of every node of the drawing; those of this row are set.
        widths: width of each node and bend.
        lane: index of the frame around each node that is in one; room is left for a frame's border.
    """
    offsets, at = [], 0.0
    for i, node in enumerate(row):
        if i:
            apart = GAP_X + (2 * FRAME_MARGIN if lane.get(row[i - 1]) != lane.get(node) else 0.0)
            at += (widths[row[i - 1]] + widths[node]) / 2 + apart
        offsets.append(at)
    blocks: list[tuple[float, int]] = []  # (mean, how many)
    for wish, offset in zip(wishes, offsets, strict=True):
        mean, size = wish - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    means = [mean for mean, size in blocks for _ in range(size)]
    x.update({node: mean + offset for node, mean, offset in zip(row, means, offsets, strict=True)})


def _keep_out(
    rows: Sequence[Sequence[str]],
    x: dict[str, float],
    widths: Mapping[str, float],
    lane: Mapping[str, int],
    least: Sequence[float],
) -> None:
    """Move nodes of a drawing that do not belong to a frame out of it, in every row that the frame spans.

    Args:
        rows: the nodes and bends of each row, from left to right.
        x: x of every node; changed in place.
        widths: width of each node and bend.
        lane: index of the frame around each node that is in one.
        least: least width of each frame.
    """
    spanned: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        for number in {lane[node] for node in row if node in lane}:
            spanned.setdefault(number, []).append(i)
    for number, (first, *_, last) in ((number, (at[0], *at)) for number, at in spanned.items()):
        members = [node for row in rows[first : last + 1] for node in row if lane.get(node) == number]
        left = min(x[n] - widths[n] / 2 for n in members) - 2 * FRAME_MARGIN
        right = max(x[n] + widths[n] / 2 for n in members) + 2 * FRAME_MARGIN
        more = max(0.0, least[number] + 2 * FRAME_MARGIN - (right - left)) / 2
        left, right = left - more, right + more
        for row in rows[first : last + 1]:
            own = [i for i, node in enumerate(row) if lane.get(node) == number]
            split = own[0] if own else sum(x[node] < (left + right) / 2 for node in row)
            edge = right
            for node in row[own[-1] + 1 if own else split :]:
                x[node] = max(x[node], edge + widths[node] / 2)
                edge = x[node] + widths[node] / 2 + GAP_X
            edge = left
            for node in reversed(row[:split]):
                x[node] = min(x[node], edge - widths[node] / 2)
                edge = x[node] - widths[node] / 2 - GAP_X


def _finish(
    sizes: Mapping[str, tuple[float, float]],
    rows: Sequence[Sequence[str]],
    row_of: Mapping[str, int],
    x: Mapping[str, float],
    chains: Mapping[tuple[str, str], Sequence[str]],
    frames: Sequence[Sequence[str]],
    inside: Sequence[Sequence[int]],
    least: Sequence[float],
) -> Layout:
    """Compute y of the rows of a drawing, points of edges and rectangles of frames, with all coordinates at least 0.

    Args:
        sizes: (width, height) of each node.
        rows: the nodes and bends of each row, from left to right.
        row_of: the row of each node.
        x: x of each node and bend.
        chains: the nodes and bends that each edge goes through.
        frames: the nodes inside each frame.
        inside: for each frame, the indices of the frames directly inside it.
        least: least width of each frame.
    """
    spans = [(min(row_of[n] for n in frame), max(row_of[n] for n in frame)) for frame in frames]
    opening, closing = [0] * (len(rows) + 1), [0] * (len(rows) + 1)
    for first, last in spans:
        opening[first] += 1
        closing[last] += 1
    middle, y = [], 0.0
    for number, row in enumerate(rows):
        y += opening[number] * (FRAME_TITLE + FRAME_MARGIN / 2)
        height = max((sizes[node][1] for node in row if node in sizes), default=0.0)
        middle.append(y + height / 2)
        y += height + GAP_Y + closing[number] * FRAME_MARGIN
    boxes = [_rectangle(i, frames[i], spans, inside, sizes, x, middle) for i in range(len(frames))]
    boxes = [_at_least(box, width) for box, width in zip(boxes, least, strict=True)]
    left = min([x[n] - sizes[n][0] / 2 for n in sizes] + [b[0] for b in boxes] + list(x.values()), default=0.0) - 4
    top = min([0.0] + [b[1] for b in boxes]) - 4
    place = {node: (x[node] - left, middle[row_of[node]] - top) for node in sizes}
    path = {}
    for (tail, head), chain in chains.items():
        bends = [(x[name] - left, middle[row_of[tail] + 1 + i] - top) for i, name in enumerate(chain[1:-1])]
        start = (place[tail][0], place[tail][1] + sizes[tail][1] / 2)
        end = (place[head][0], place[head][1] - sizes[head][1] / 2)
        path[tail, head] = (start, *bends, end)
    moved = tuple((b[0] - left, b[1] - top, b[2], b[3]) for b in boxes)
    right = max(
        [px + sizes[n][0] / 2 for n, (px, _) in place.items()]
        + [b[0] + b[2] for b in moved]
        + [px for points in path.values() for px, _ in points],
        default=0.0,
    )
    bottom = max([py + sizes[n][1] / 2 for n, (_, py) in place.items()] + [b[1] + b[3] for b in moved], default=0.0)
    return Layout(place, path, moved, right + 4, bottom + 4)


def _at_least(box: tuple[float, float, float, float], width: float) -> tuple[float, float, float, float]:
    """Widen a rectangle (left, top, width, height) on both sides until it has the given width."""
    left, top, own, height = box
    more = max(0.0, width - own)
    return left - more / 2, top, own + more, height


def _rectangle(
    number: int,
    frame: Sequence[str],
    spans: Sequence[tuple[int, int]],
    inside: Sequence[Sequence[int]],
    sizes: Mapping[str, tuple[float, float]],
    x: Mapping[str, float],
    middle: Sequence[float],
) -> tuple[float, float, float, float]:
    """Return the rectangle (left, top, width, height) of a frame, around its nodes and the frames inside.

    Args:
        number: index of the frame.
        frame: the nodes inside.
        spans: first and last row of each frame.
        inside: for each frame, the indices of the frames directly inside it.
        sizes: (width, height) of each node.
        x: x of each node.
        middle: y of the middle of each row.
    """
    first, last = spans[number]

    def depth(at: int, row: int | None, end: int) -> int:
        """Count how many frames (rectangles) lie inside one another from number `at` inwards, itself included.

        Only frames that begin (end 0) or stop (end 1) in `row` count; all of them if it is None.
        """
        return 1 + max([depth(i, row, end) for i in inside[at] if row is None or spans[i][end] == row], default=0)

    above, below, beside = depth(number, first, 0), depth(number, last, 1), depth(number, None, 0)
    left = min(x[n] - sizes[n][0] / 2 for n in frame) - beside * FRAME_MARGIN
    right = max(x[n] + sizes[n][0] / 2 for n in frame) + beside * FRAME_MARGIN
    top = min(middle[first] - sizes[n][1] / 2 for n in frame) - above * (FRAME_TITLE + FRAME_MARGIN / 2)
    bottom = max(middle[last] + sizes[n][1] / 2 for n in frame) + below * FRAME_MARGIN
    return left, top, right - left, bottom - top

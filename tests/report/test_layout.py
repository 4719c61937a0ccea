"""The layered layout has no overlaps and no edges upwards, and its frames hold their own boxes alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abcfx.report.drawing.layout import Layout, lay_out

SIZE = (80.0, 30.0)
Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> bool:
    (left, top, width, height), (x, y, w, h) = a, b
    return left < x + w and x < left + width and top < y + h and y < top + height


def box(layout: Layout, node: str, size: tuple[float, float] = SIZE) -> Box:
    x, y = layout.place[node]
    return x - size[0] / 2, y - size[1] / 2, *size


def check(layout: Layout, nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> None:
    for one, other in itertools.combinations(nodes, 2):
        assert not overlap(box(layout, one), box(layout, other)), (one, other)
    for tail, head in edges:
        points = layout.path[tail, head]
        assert [y for _, y in points] == sorted(y for _, y in points)
        assert points[0][0] == layout.place[tail][0]
        assert points[-1][0] == layout.place[head][0]
        assert all(0 <= x <= layout.width and 0 <= y <= layout.height for x, y in points)
    for node in nodes:
        left, top, width, height = box(layout, node)
        assert left >= 0 and top >= 0 and left + width <= layout.width and top + height <= layout.height


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_any_graph(drawn: tuple[int, set[tuple[int, ...]]]) -> None:
    count, pairs = drawn
    nodes = [str(i) for i in range(count)]
    edges = [(str(a), str(b)) for a, b in sorted(pairs) if a < b]
    check(lay_out(dict.fromkeys(nodes, SIZE), edges), nodes, edges)


def test_a_chain_is_a_straight_line() -> None:
    nodes = [str(i) for i in range(10)]
    layout = lay_out(dict.fromkeys(nodes, SIZE), list(itertools.pairwise(nodes)))
    assert len({x for x, _ in layout.place.values()}) == 1


def test_a_source_stands_right_above_what_it_goes_into() -> None:
    edges = [("a", "b"), ("b", "c"), ("late", "c")]
    layout = lay_out(dict.fromkeys(["a", "b", "late", "c"], SIZE), edges)
    assert layout.place["late"][1] == layout.place["b"][1]


def test_few_crossings_in_a_ladder() -> None:
    """Two chains, given in an order in which they would cross in every row."""
    edges = [(f"{s}{i}", f"{s}{i + 1}") for i in range(6) for s in "ab"]
    sizes = dict.fromkeys([f"{s}{i}" for i in range(7) for s in ("ab" if i % 2 else "ba")], SIZE)
    layout = lay_out(sizes, edges)
    sides = {layout.place[f"a{i}"][0] < layout.place[f"b{i}"][0] for i in range(7)}
    assert len(sides) == 1


def test_frames_hold_their_boxes_and_keep_others_out() -> None:
    edges = [
        ("in", "x1"),
        ("x1", "x2"),
        ("x2", "x3"),
        ("x3", "out"),
        ("in", "side"),
        ("side", "side2"),
        ("side2", "out"),
        ("in", "x3"),
    ]
    nodes = ["in", "x1", "side", "x2", "side2", "x3", "out"]
    frames = [("x1", "x2", "x3"), ("x2",)]
    layout = lay_out(dict.fromkeys(nodes, SIZE), edges, frames, titles=(300.0, 0.0))
    check(layout, nodes, edges)
    for frame, place in zip(frames, layout.frames, strict=True):
        for node in nodes:
            assert overlap(place, box(layout, node)) == (node in frame), node
    assert layout.frames[0][2] >= 300
    (left, top, width, height), (x, y, w, h) = layout.frames
    assert left < x and top < y and x + w < left + width and y + h < top + height


def test_a_graph_with_thousands_of_long_edges_is_drawn_at_once() -> None:
    chain = [str(i) for i in range(800)]
    edges = [*itertools.pairwise(chain), *((node, "sum") for node in chain)]
    start = time.perf_counter()
    layout = lay_out(dict.fromkeys([*chain, "sum"], SIZE), edges)
    assert time.perf_counter() - start < 5
    assert max(map(len, layout.path.values())) == 2


def test_nothing_to_draw() -> None:
    assert lay_out({}, []).place == {}


@pytest.mark.parametrize("seed", range(3))
def test_larger_graphs(seed: int) -> None:
    graph = nx.gn_graph(60, seed=seed).reverse()
    nodes = list(map(str, nx.topological_sort(graph)))
    edges = [(str(a), str(b)) for a, b in graph.edges]
    check(lay_out(dict.fromkeys(nodes, SIZE), edges), nodes, edges)

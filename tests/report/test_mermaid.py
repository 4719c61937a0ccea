"""`result.to_mermaid` draws repeated blocks once, with complete edges and with labels that Mermaid can read."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from models import seeded, sequential, small_gpt
from torch import nn

import abcfx
from abcfx.report.drawing.boxes import make_diagram
from abcfx.report.drawing.flowchart import _node
from abcfx.report.drawing.repeats import find_runs, view

IDS = torch.zeros(2, 16, dtype=torch.long)


@pytest.fixture(scope="module")
def result() -> abcfx.Transformed:
    return abcfx.transform(small_gpt(64, 5), IDS, base=small_gpt(16, 5))


def sizes(result: abcfx.Transformed) -> list[tuple[str, int, int]]:
    diagram = make_diagram(result.outcome)
    runs = find_runs(diagram)
    return [(run.title, len(run.units), len(run.units[0])) for run in runs]


def test_blocks_are_drawn_once(result: abcfx.Transformed) -> None:
    text = result.to_mermaid()
    assert text.startswith("flowchart TD\n")
    assert 'subgraph g0["blocks.{0..4} x 5"]' in text
    assert text.count("attn.qkv") == 1
    assert sizes(result) == [("blocks.{0..4}", 5, 9)]


def test_every_node_is_declared_once_and_every_line_is_known(result: abcfx.Transformed) -> None:
    declared, used = [], set()
    for line in result.to_mermaid().splitlines()[1:]:
        node = re.fullmatch(r' +(n\d+)(?:\["[^"]+"\]|\(\["[^"]+"\]\)):::(\w+)', line)
        edge = re.fullmatch(r"  (n\d+) --> (n\d+)", line)
        other = re.fullmatch(r' +subgraph g\d+\["[^"]+"\]| +end|  classDef \w+ fill:#\w+,stroke:#\w+,color:#\w+', line)
        assert node or edge or other, line
        declared += [node[1]] if node else []
        used |= set(edge.groups()) if edge else set()
    assert len(declared) == len(set(declared))
    assert used == set(declared)
    assert result.to_mermaid().count("subgraph") == result.to_mermaid().count("\n  end\n")


def test_a_long_sequential_is_one_box_and_two_more() -> None:
    result = abcfx.transform(
        seeded(sequential, 8, 10, 4, 50), torch.zeros(2, 10), base=seeded(sequential, 4, 10, 4, 50)
    )
    assert sizes(result) == [("{2..100..2}", 50, 1)]
    assert len(re.findall(r"\n +n\d+[\[(]", result.to_mermaid())) == 3


def test_a_period_of_two_kinds_is_one_unit() -> None:
    class Mixed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem = nn.Linear(10, width)
            alternating = [nn.Linear(width, width), nn.LayerNorm(width)]
            self.body = nn.Sequential(
                *[type(m)(*a) for _ in range(4) for m, a in zip(alternating, ((width, width), (width,)), strict=True)]
            )
            self.head = nn.Linear(width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.stem(x)))

    result = abcfx.transform(seeded(Mixed, 16), torch.zeros(2, 10), base=seeded(Mixed, 8))
    assert sizes(result) == [("body.{0..7}", 4, 2)]


def test_a_run_inside_a_run() -> None:
    class Inner(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.steps = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            for step in self.steps:
                y = torch.relu(step(y))
            return x + y

    class Outer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(10, width), nn.Linear(width, 4)
            self.blocks = nn.ModuleList(Inner(width) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    result = abcfx.transform(seeded(Outer, 16), torch.zeros(2, 10), base=seeded(Outer, 8))
    diagram = make_diagram(result.outcome)
    runs = find_runs(diagram)
    assert [run.title for run in runs][:2] == ["blocks.{0..3}", "blocks.0.steps.{0..2}"]
    assert [len(view(diagram, runs, expanded).boxes) for expanded in ((), (0,), (1,), range(len(runs)))] == [
        5,
        14,
        7,
        22,
    ]
    assert [frame.count for frame in view(diagram, runs).frames] == [4, 3]
    text = result.to_mermaid()
    assert '    subgraph g1["blocks.0.steps.{0..2} x 3"]' in text


def test_layers_that_differ_are_not_drawn_as_one() -> None:
    def growing() -> nn.Sequential:
        return nn.Sequential(*[m for i in range(6) for m in (nn.Linear(8 + i, 9 + i), nn.ReLU())])

    assert sizes(abcfx.transform(seeded(growing))) == []


def test_labels_that_would_end_a_string_are_quoted(result: abcfx.Transformed) -> None:
    box = dataclasses.replace(make_diagram(result.outcome).boxes[0], label='a"b<c>&')
    assert _node(box, {box.name: "n0"}, "") == 'n0["a#quot;b#lt;c#gt;#amp;<br/>embedding"]:::embedding'


def test_a_tied_head_is_a_box_of_its_own() -> None:
    class Tied(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, width), nn.Linear(width, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.table(ids)))

    text = abcfx.transform(seeded(Tied, 16), IDS % 10, base=seeded(Tied, 8)).to_mermaid()
    assert 'n0["table<br/>embedding"]' in text
    assert 'n1["head<br/>embedding, tied"]' in text
    assert "n0 --> n1" in text

"""Module names that look like words, punctuation or markup of the report are reported like any others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest
import torch
from torch import nn

import abcfx
from abcfx.report.text import render

PLAIN = {"fc": "fc", "first": "first", "second": "second", "third": "third"}
HARD = {
    "fc": "given_in",
    "first": "by rule, a: b",
    "second": "nothing: alpha, u",
    "third": "[bold]x[/bold]<b>& :bug: + -",
}


class Net(nn.Module):
    def __init__(self, width: int, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = dict(names)
        self.inner = nn.ModuleDict(
            {
                names["fc"]: nn.Linear(8, width),
                names["first"]: nn.Linear(width, width),
                names["second"]: nn.LayerNorm(width),
                names["third"]: nn.Linear(width, 4),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for key in ("fc", "first", "second", "third"):
            x = torch.relu(self.inner[self.names[key]](x))
        return x


Marked = type("[red]Net[/red]<i>", (Net,), {})


def transformed(names: Mapping[str, str], kind: type[Net] = Net, optimizer: str = "adam") -> abcfx.Transformed:
    torch.manual_seed(0)
    return abcfx.transform(kind(64, names), torch.ones(3, 8), base=kind(16, names), optimizer=optimizer)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_report_says_the_same_of_any_name(optimizer: str) -> None:
    """The columns behind the names agree row by row, and so do the lines about what binds."""
    plain, hard = transformed(PLAIN, optimizer=optimizer), transformed(HARD, optimizer=optimizer)
    assert _binds(render(hard.outcome, 200)) == _binds(render(plain.outcome, 200))
    for ours, theirs in zip(hard.spec, plain.spec, strict=True):
        assert hard.solution.binding[ours].kind is plain.solution.binding[theirs].kind
        told, other = hard.explain(ours), plain.explain(theirs)
        assert [part.title for part in told.paragraphs] == [part.title for part in other.paragraphs]
        assert [len(part.lines) for part in told.paragraphs] == [len(part.lines) for part in other.paragraphs]


def test_json_and_page_hold_any_name(tmp_path: object) -> None:
    result = transformed(HARD, Marked)
    data = json.loads(json.dumps(result.to_dict()))
    assert list(data["parameters"]) == list(dict(result.module.named_parameters()))
    assert data["header"]["model"] == "[red]Net[/red]<i>"
    page = _page(result, str(tmp_path))
    assert "<i>" not in page and "[bold]x[/bold]<b>" not in page
    assert "[red]Net[/red]&lt;i&gt;" in page


def test_a_class_name_with_markup_is_printed_as_it_is() -> None:
    assert str(transformed(HARD, Marked)).startswith("[red]Net[/red]<i>: 8 parameters")


def _binds(report: str) -> list[str]:
    """Return the roles, tags and lines of the report that hold no name."""
    lines = report.splitlines()
    tag = "(?:alpha|u|gradient|rule|given|free)"
    rows = [re.findall(rf" (embedding|hidden|readout|vector|scalar) .* ({tag}(?:, {tag})*)$", line) for line in lines]
    start = next(i for i, line in enumerate(lines) if line.startswith("What keeps each c"))
    tags = [line for line in lines[start:] if re.match(f"  {tag}: ", line)]
    assert len(tags) > 1
    return [str(row) for row in rows if row] + tags


def _page(result: abcfx.Transformed, folder: str) -> str:
    path = f"{folder}/page.html"
    result.to_html(path)
    with open(path, encoding="utf-8") as file:
        return file.read()

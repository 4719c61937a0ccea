"""The HTML report is well formed, accessible, complete, small, and needs no network."""

from __future__ import annotations

import itertools
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from models import seeded, sequential, small_gpt
from torch import nn

import abcfx
from abcfx import cli
from abcfx.report.drawing import page
from abcfx.report.drawing.page_data import page_data

IDS = torch.zeros(2, 16, dtype=torch.long)
Element = dict[str, Any]
VOID = {"meta", "link", "input", "br", "hr", "img", "wbr"}


@pytest.fixture(scope="module")
def result() -> abcfx.Transformed:
    return abcfx.transform(small_gpt(64, 3), IDS, base=small_gpt(16, 3), optimizer="adamw", weight_decay=0.1)


@pytest.fixture(scope="module")
def text(result: abcfx.Transformed) -> str:
    return page(result.outcome)


class Page(HTMLParser):
    """A parser that collects elements and fails on a tag that is closed where it was not opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[Element] = []
        self.elements: list[Element] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        element = {"tag": tag, "text": "", "around": [e["tag"] for e in self.open], **{f"@{k}": v for k, v in attrs}}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop()["tag"] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, *tags: str) -> list[Element]:
        return [e for e in self.elements if e["tag"] in tags]


@pytest.fixture(scope="module")
def parsed(text: str) -> Page:
    return Page(text)


def data_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_structure(parsed: Page) -> None:
    assert parsed.elements[0]["tag"] == "html"
    assert parsed.elements[0]["@lang"] == "en"
    assert parsed.all("title")[0]["text"] == "abcfx: GPT, scaled"
    assert [e["@name"] for e in parsed.all("meta") if "@name" in e] == ["viewport"]
    for tag in ("main", "header", "h1"):
        assert len(parsed.all(tag)) == 1
    levels = [int(e["tag"][1]) for e in parsed.all("h1", "h2", "h3")]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_ids_are_unique_and_references_lead_somewhere(parsed: Page) -> None:
    ids = [e["@id"] for e in parsed.elements if "@id" in e]
    assert len(ids) == len(set(ids))
    for element in parsed.elements:
        for key in ("@aria-labelledby", "@for", "@aria-controls"):
            assert element.get(key) in (None, *ids)
        if element.get("@href", "").startswith("#"):
            assert element["@href"][1:] in ids


def test_everything_that_takes_input_has_a_name(parsed: Page) -> None:
    for element in parsed.all("input", "select"):
        assert "label" in element["around"] or "@aria-label" in element
    for element in parsed.all("button"):
        assert element["@type"] == "button"
        assert element["text"].strip()
    for element in parsed.all("section"):
        assert "@aria-labelledby" in element or "@aria-label" in element
    for element in parsed.all("th"):
        assert element["@scope"] == "col"
    names = [e.get("@aria-label") for e in parsed.all("section") if "@aria-label" in e]
    assert len(names) == len(set(names))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted(map(luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_text_in_both_schemes(text: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", text, re.S)
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        grounds = ["ground", "panel", "embedding", "hidden", "readout", "vector", "scalar", "plain", "op"]
        assert min(contrast(colours["text"], colours[g]) for g in grounds) > 7
        assert min(contrast(colours[c], colours[g]) for c in ("quiet", "accent") for g in ("ground", "panel")) > 4.5
        assert min(contrast(colours[f"{g}-line"], colours["ground"]) for g in grounds[2:]) > 3


def test_no_network(text: str) -> None:
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:,)""", text)
    assert "url(http" not in text
    assert "@import" not in text
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name space, not asked for


def test_everything_is_in_it(result: abcfx.Transformed, text: str) -> None:
    data = data_of(text)
    assert data["report"]["parameters"] == json.loads(json.dumps(dict(result.spec)))
    assert data["report"] == json.loads(json.dumps(result.to_dict()))
    assert {name for box in data["boxes"] for name in box["parameters"]} == set(range(len(result.spec)))
    assert sorted(i for part in data["folds"] for i in part["names"]) == list(range(len(result.spec)))
    names = list(result.spec)
    for i, fold in enumerate(data["fold_of"]):
        told = data["explanations"][fold]
        assert i in data["folds"][fold]["names"]
        own = result.explain(names[i])
        assert told["paragraphs"][1] == json.loads(json.dumps(own.paragraphs[1].to_dict()))
    assert all(data["boxes"][data["box_of"][i]]["parameters"].count(i) for i in range(len(names)))


def test_views(text: str) -> None:
    folded, full = data_of(text)["views"]
    assert [len(view["nodes"]) for view in (folded, full)] == [14, 32]
    (frame,) = folded["frames"]
    assert (frame["title"], frame["count"], frame["opens"]) == ("blocks.{0..2}", 3, 1)
    assert sorted(map(len, folded["stands_for"].values())) == [3] * 9
    assert [f["title"] for f in full["frames"]] == ["blocks.{0..2}", "blocks.0", "blocks.1", "blocks.2"]
    assert full["frames"][0]["opens"] == 0


def test_names_of_the_user_cannot_break_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x)))

    Net.__name__ = "</title><script>alert(1)</script>&amp;"
    text = page(abcfx.transform(seeded(Net), torch.zeros(2, 4)).outcome)
    parsed = Page(text)
    assert len(parsed.all("script")) == 2
    assert parsed.all("h1")[0]["text"] == f"{Net.__name__}, scaled"
    assert data_of(text)["report"]["header"]["model"] == Net.__name__


@pytest.mark.slow
def test_a_model_of_a_thousand_layers() -> None:
    result = abcfx.transform(
        seeded(sequential, 8, 10, 4, 998),
        torch.zeros(2, 10),
        base=seeded(sequential, 4, 10, 4, 998),
        capture=abcfx.Capture(verify=False),
    )
    start = time.process_time()
    text = page(result.outcome)
    assert time.process_time() - start < 2
    assert len(text) < 2_000_000
    assert [len(view["nodes"]) for view in data_of(text)["views"]] == [3, 1000]
    assert len(data_of(text)["explanations"]) == 5


def test_repeated_blocks_can_be_opened_one_by_one() -> None:
    class Two(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(10, width), nn.Linear(width, 4)
            self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
            self.up = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for layer in (*self.down, *self.up):
                x = torch.relu(layer(x))
            return self.head(x)

    result = abcfx.transform(seeded(Two, 16), torch.zeros(2, 10), base=seeded(Two, 8))
    views: Any = page_data(result.outcome)["views"]
    assert [len(view["nodes"]) for view in views] == [4, 7, 6, 9]
    assert [frame["opens"] for frame in views[0]["frames"]] == [1, 2]


def test_a_frozen_tied_model_without_weights_and_without_a_base() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.table.weight
            self.gain = nn.Parameter(torch.ones(8), requires_grad=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids) * self.gain)

    with torch.device("meta"):
        model = Tied()
    data = data_of(page(abcfx.transform(model, torch.zeros(2, 4, dtype=torch.long, device="meta")).outcome))
    assert data["base_shapes"] == [None, None]
    assert {box["label"] for box in data["boxes"]} >= {"table", "head"}


def test_the_command_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "html_models.py").write_text(
        "from torch import nn\n\n"
        "def net(width=8):\n    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))\n"
    )
    named = ["report", "html_models.py:net", "--base-kwargs", "width=4", "--html", "out.html"]
    assert cli.main(named) == 0
    assert capsys.readouterr().out == "Report: out.html\n"
    Page((tmp_path / "out.html").read_text(encoding="utf-8"))

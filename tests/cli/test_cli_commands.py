"""`abcfx report` and `abcfx solve` take models from files, print every form of output, and explain errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import abcfx
from abcfx import cli
from abcfx.cli.options import assignments, one_or_by_role
from abcfx.cli.shared import print_json

MODELS = '''
import torch
from dataclasses import dataclass
from torch import nn

@dataclass
class Config:
    width: int = 64

class Net(nn.Module):
    def __init__(self, width=64, blocks=2):
        super().__init__()
        self.table = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, ids, *, mask=None):
        x = self.table(ids)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x)

def needs(width): return Net(width)
def of(config): return Net(config.width)
def tokens(): return torch.zeros(2, 5, dtype=torch.long)
def as_dict(): return {"ids": tokens()}
def broken(): return 1 / 0
number = 3
small = Net(16)
'''  # fmt: skip


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "cli_models.py").write_text(MODELS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("cli_models", None)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


# -- report


@pytest.mark.parametrize(
    "arguments",
    [
        ["cli_models.py:Net", "--kwargs", "width=64", "--base-kwargs", "width=16"],
        ["cli_models:needs", "--kwargs", '{"width": 64}', "--base", "needs", "--base-kwargs", "width=16"],
        ["cli_models.py:needs(64)", "--base", "cli_models.py:small"],
        ["cli_models.py:of(Config(64))", "--base", "of(Config(width=16))", "--inputs", "tokens"],
        ["cli_models.py:Net", "--base", "small", "--inputs", "as_dict"],
        ["cli_models.py:Net", "--base", "small", "--inputs", "torch.zeros(2, 5, dtype=torch.long)"],
    ],
)
def test_a_model_can_be_named_in_many_ways(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "Net: 7 parameters" in (out := printed(capsys, "report", *arguments))
    assert "m = 4, the largest ratio" in out


def test_options_reach_transform(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(
        capsys, "report", "cli_models.py:Net", "--base", "small", "--optimizer", "hidden=muon,default=adamw",
        "--lr", "hidden=0.02,default=0.01", "--set", "apply=absorb", "--set", "weight_decay=0.1", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert found["header"]["apply"] == "absorb"
    assert found["parameters"]["blocks.0.weight"]["optimizer"] == "muon"
    assert found["parameters"]["blocks.0.weight"]["lr"] == 0.02
    assert found["parameters"]["table.weight"]["lr"] == 0.01
    assert found["parameters"]["table.weight"]["weight_decay"] > 0


def test_base_and_model_are_drawn_from_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> dict[str, float]:
        out = printed(capsys, "report", "cli_models.py:Net", "--base-kwargs", "width=16", "--json")
        return {name: row["std"] for name, row in json.loads(out)["parameters"].items()}

    assert run() == run()


def test_report_in_every_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    named = ["report", "cli_models.py:Net", "--base", "small"]
    explained = printed(capsys, *named, "--explain", "head", "--explain", "blocks.1.weight")
    assert "What keeps c = 0.5 from" in explained
    assert "blocks.1.weight" in explained
    both = json.loads(printed(capsys, *named, "--explain", "head", "--json"))
    assert both[0]["role"] == "readout"
    assert printed(capsys, *named, "--mermaid").startswith("flowchart TD\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Net"], "names no place"),
        (["no_models.py:Net"], "there is no file no_models.py"),
        (["no.such.module:Net"], "there is no module 'no.such.module'"),
        (["cli_models.py:Nett"], "Names that are close: Net"),
        (["cli_models.py:Net("], "is no expression"),
        (["cli_models.py:needs"], "missing a required argument: 'width'"),
        (["cli_models.py:Net", "--kwargs", "widht=3"], "unexpected keyword argument 'widht'"),
        (["cli_models.py:Net", "--kwargs", "3"], "expected name=value"),
        (["cli_models.py:Net", "--kwargs", "{3"], "is no JSON object"),
        (["cli_models.py:small", "--kwargs", "width=3"], "is a module already"),
        (["cli_models.py:number"], "gives a int, expected a module"),
        (["cli_models.py:broken"], "ZeroDivisionError"),
        (["cli_models.py:Net", "--set", "widht=3"], "expected name=value, with one of weight_decay"),
        (["cli_models.py:Net", "--explain", "heed"], "Names that are close: head"),
        (["cli_models.py:Net", "--optimizer", "nothing"], "nothing"),
    ],
)
def test_errors_of_report_are_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failed(capsys, "report", *arguments).replace("\n", " ")


def test_debug_raises(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match="broken' raises ZeroDivisionError") as raised:
        cli.main(["report", "cli_models.py:broken", "--debug"])
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(abcfx.errors.InvalidInputError):
        cli.main(["report", "cli_models.py:number", "--debug"])


def test_values() -> None:
    assert assignments("--x", "a=1,b=text,c=true,d=None") == {"a": 1, "b": "text", "c": True, "d": None}
    assert one_or_by_role("--lr", "0.01") == 0.01
    assert one_or_by_role("--optimizer", "adamw") == "adamw"
    file = io.StringIO()
    print_json({"x": [float("inf"), (1, float("nan"))]}, Console(file=file))
    assert json.loads(file.getvalue()) == {"x": [None, [1, None]]}


# -- solve

CHAIN = {"a": [-0.5, 0, 0.5], "b": [0.5, 0.5, 0.5], "alpha": 1, "omega": 0.5, "u": 1}
GRAPH = {
    "nodes": {
        "in": {"a": -0.5, "b": 0.5},
        "mid": {"a": 0, "b": 0.5},
        "add": {"a": 0, "has_weight": False},
        "out": {"a": 0.5, "b": 0.5, "alpha": 0.5},
    },
    "edges": [["in", "mid"], ["mid", "add"], ["in", "add", 2], ["add", "out"]],
    "alpha": 1,
    "omega": 0.5,
    "u": 1,
}


def written(tmp_path: Path, problem: object) -> str:
    path = tmp_path / "problem.json"
    path.write_text(problem if isinstance(problem, str) else json.dumps(problem))
    return str(path)


def test_solve_a_chain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = written(tmp_path, CHAIN)
    found = json.loads(printed(capsys, "solve", file, "--json"))
    assert found["c"] == [0.5, 1.0, 0.5]
    assert found["r"] == [0.0, 0.0, 0.0]
    assert found["binding"]["1"]
    out = printed(capsys, "solve", file)
    assert out.splitlines()[2].split() == ["0", "0.5", "0", "update"]
    assert "Sum of all c: 2" in out


def test_solve_sgd_from_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({**CHAIN, "optimizer": "sgd"})))
    assert json.loads(printed(capsys, "solve", "-", "--json"))["c"] == [0.0, 0.0, 0.0]


def test_solve_a_graph(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = json.loads(printed(capsys, "solve", written(tmp_path, GRAPH), "--json"))
    assert found["c"] == {"in": 0.5, "mid": 1.0, "out": 0.5}
    assert "add" in found["r"]
    assert "mid" in printed(capsys, "solve", written(tmp_path, GRAPH))


INFEASIBLE = {**CHAIN, "omega": [0.5, 0.5, 1.2], "feature_learning": True}


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "expected a JSON object, got list"),
        ({"a": [0]}, "'b' is missing"),
        ({**CHAIN, "c": 1}, "'c' is not known"),
        ({**CHAIN, "a": [0.5, 0, 0.5]}, "a + b must be 0"),
        ({**CHAIN, "optimizer": "x"}, "optimizer='x' is not known"),
        ({**GRAPH, "edges": [["in", "nowhere"]]}, "both ends among nodes"),
        ({**GRAPH, "nodes": [1]}, '"nodes" must be an object'),
        ({**GRAPH, "edges": [["in", "mid"], ["mid", "in"]]}, "cycle"),
        (INFEASIBLE, "no exponents"),
    ],
)
def test_errors_of_solve_are_one_message(
    problem: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in failed(capsys, "solve", written(tmp_path, problem)).replace("\n", " ")


def test_solve_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file nothing.json" in failed(capsys, "solve", "nothing.json")


def test_help_has_an_example_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command, shown in (("report", "--base-kwargs width=64"), ("solve", '"nodes"'), ("demo", "--sweep")):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--help"])
        assert stopped.value.code == 0
        assert shown in capsys.readouterr().out


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "abcfx", "solve", written(tmp_path, CHAIN), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["c"]) == (0, [0.5, 1.0, 0.5])
    command[4] = "nothing.json"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("abcfx: there is no file")

"""`--json` prints JSON and nothing else, however much a model prints on import, when built, or in its forward."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

NOISY = """
import ctypes, os, sys
import torch
from torch import nn


def noise(where):
    print("python", where)
    sys.__stdout__.write(f"original {where}\\n")
    libc = ctypes.CDLL(None)
    libc.puts(f"C {where}".encode())  # stays in C's buffer while stdout is a pipe
    os.write(1, f"descriptor {where}\\n".encode())
    os.system(f"echo child {where}")


noise("import")


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        noise("init")
        self.stem, self.mid, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        noise("forward")
        return self.head(torch.relu(self.mid(torch.relu(self.stem(x)))))


def inputs():
    noise("inputs")
    return torch.ones(2, 4)


def batch():
    return torch.ones(2, 4), torch.tensor([0, 1])
"""
COMMANDS = {
    "report": ["--kwargs", "width=32", "--base-kwargs", "width=16", "--inputs", "inputs"],
    "coord-check": ["--widths", "16,32", "--seeds", "1", "--steps", "1", "--no-control", "--batch", "batch"],
}


RUNS = {
    "report": ["report", "noisy.py:Net", *COMMANDS["report"], "--json"],
    "coord-check": ["coord-check", "noisy.py:Net", *COMMANDS["coord-check"], "--json"],
    "text": ["report", "noisy.py:Net", *COMMANDS["report"]],
    "error": ["report", "noisy.py:Nett", "--json"],
}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Run all commands, each as a process, side by side."""
    folder = tmp_path_factory.mktemp("noisy")
    (folder / "noisy.py").write_text(NOISY)
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "abcfx", *line],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for name, line in RUNS.items()
    }
    written = {name: process.communicate() for name, process in started.items()}
    return {name: Done(started[name].returncode, *streams) for name, streams in written.items()}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_models_that_print_do_not_spoil_json(command: str, done: dict[str, Done]) -> None:
    run = done[command]
    assert isinstance(json.loads(run.stdout), dict), run.stderr
    for way in ("python", "original", "C", "descriptor", "child"):
        assert f"{way} import" in run.stderr
        assert f"{way} init" in run.stderr


def test_without_json_a_model_prints_where_it_wants(done: dict[str, Done]) -> None:
    assert "python import" in done["text"].stdout


def test_an_error_leaves_standard_output_empty(done: dict[str, Done]) -> None:
    assert (done["error"].status, done["error"].stdout) == (1, "")
    assert "Names that are close: Net" in done["error"].stderr

"""`--json` prints JSON and nothing else, however much a model prints on import, when built, or in its forward."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("command", COMMANDS)
def test_models_that_print_do_not_spoil_json(command: str, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    line = [sys.executable, "-m", "abcfx", command, "noisy.py:Net", *COMMANDS[command], "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert isinstance(json.loads(done.stdout), dict), done.stderr
    for way in ("python", "original", "C", "descriptor", "child"):
        assert f"{way} import" in done.stderr
        assert f"{way} init" in done.stderr


def test_without_json_a_model_prints_where_it_wants(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    line = [sys.executable, "-m", "abcfx", "report", "noisy.py:Net", *COMMANDS["report"]]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "python import" in done.stdout


def test_an_error_leaves_standard_output_empty(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    line = [sys.executable, "-m", "abcfx", "report", "noisy.py:Nett", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Names that are close: Net" in done.stderr

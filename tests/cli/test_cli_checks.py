"""The commands of the checks have exit status 0 on PASS alone, print JSON, draw figures and explain errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abcfx.cli import main

MODELS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width, classes=4):
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(torch.relu(self.mid(torch.relu(self.stem(x)))))


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(10, 32, 8, generator=generator)
    return [(x, (x[:, 0] > 0).long()) for x in inputs]


def one():
    return batches(0)[0]


def loss(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
"""


@pytest.fixture
def models(tmp_path: Path) -> str:
    (tmp_path / "checked_models.py").write_text(MODELS)
    return f"{tmp_path}/checked_models.py:Net"


def test_coord_check(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    figure = tmp_path / "coord.png"
    arguments = [models, "--widths", "32,64,128", "--batch", "one", "--loss", "loss", "--no-control"]
    assert main(["coord-check", *arguments, "--plot", str(figure), "--kwargs", "classes=8"]) == 0
    assert "coordinate check: PASS" in capsys.readouterr().out
    assert figure.stat().st_size > 10_000
    wrong = ["--set", 'exponents={"mid": [0, 0.5, 1.6]}', "--json"]
    assert main(["coord-check", *arguments, *wrong]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "FAIL"
    assert found["failed"] == ["mid.weight"]


def test_transfer_check_and_tune(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = [models, "--batches", "batches", "--backend", "sequential", "--steps", "10", "--seeds", "1", "--json"]
    main(["transfer-check", *common, "--widths", "16,32", "--lrs", "0.01,0.02,0.04", "--no-control"])
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] in ("PASS", "FAIL", "WEAK", "INCONCLUSIVE")
    assert len(found["curves"]) == 2
    assert main(["tune", *common, "--width", "16", "--budget", "12", "--roles", "hidden,readout"]) == 0
    assert set(json.loads(capsys.readouterr().out)["rates"]) == {"default", "hidden", "readout"}


def test_errors_are_one_message(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coord-check", models, "--widths", "32", "--batch", "one"]) == 1
    assert "at least two different positive widths" in capsys.readouterr().err
    assert main(["coord-check", models.replace("Net", "Net(4)"), "--widths", "32,64", "--batch", "one"]) == 1
    assert "is no function of the width" in capsys.readouterr().err
    assert main(["tune", models, "--width", "16", "--batches", "bathces"]) == 1
    assert "Names that are close: batches" in capsys.readouterr().err

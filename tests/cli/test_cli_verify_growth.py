"""`abcfx verify-growth` has exit status 0 on PASS alone, reads weights from files, and explains errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models_growing
import pytest
import torch

import abcfx
from abcfx.cli import main

MODELS = """
import torch
from models_growing import Mlp


def batch():
    return torch.randn(5, 6), torch.arange(5) % 4
"""


@pytest.fixture
def weights(tmp_path: Path) -> tuple[str, str, str]:
    """Write a file of models, weights of a small one, and weights of a large one grown from it; return the paths."""
    torch.manual_seed(0)
    (tmp_path / "grown_models.py").write_text(MODELS)
    small, large = models_growing.Mlp(8), models_growing.Mlp(16)
    models_growing.drawn(small).float()
    abcfx.grow(small, large, torch.randn(5, 6), noise=0.3)
    files = (str(tmp_path / "small.pt"), str(tmp_path / "large.pt"))
    for model, file in zip((small, large), files, strict=True):
        torch.save(model.state_dict(), file)
    return str(tmp_path / "grown_models.py"), *files


def test_a_right_growth_passes_and_a_wrong_one_has_status_1(
    weights: tuple[str, str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models, small, large = weights
    arguments = [f"{models}:Mlp(8)", "Mlp(16)", "--batch", "batch", "--small-weights", small, "--large-weights"]
    assert main(["verify-growth", *arguments, large]) == 0
    assert "verdict: PASS" in capsys.readouterr().out

    state = torch.load(large)
    state["hidden.weight"] *= 2
    torch.save(state, tmp_path / "wrong.pt")
    assert main(["verify-growth", *arguments, str(tmp_path / "wrong.pt"), "--checks", "C1,C4", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "FAIL"
    assert [(each["check"], each["verdict"], each["path"]) for each in found["rows"]] == [
        ("C1", "PASS", ""),
        ("C4", "FAIL", "hidden.weight"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--small-weights": "nowhere.pt"}, "--small-weights: there is no file nowhere.pt"),
        ({"--small-weights": None, "LARGE": "Mlp(24)"}, "has other tensors than Mlp"),
        ({"--checks": "C9"}, "checks='C9' is not known"),
        ({"--batch": "btach"}, "Names that are close: batch"),
    ],
)
def test_errors_are_one_message(
    weights: tuple[str, str, str], capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    models, small, large = weights
    given = {"--batch": "batch", "--small-weights": small, "--large-weights": large} | change
    places = [f"{models}:Mlp(8)", given.pop("LARGE", "Mlp(16)")]
    flags = [part for flag, value in given.items() if value for part in (flag, value)]
    assert main(["verify-growth", *places, *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("abcfx: ")
    assert message in error


def test_a_file_without_a_state_dict_is_refused(
    weights: tuple[str, str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models, _, large = weights
    torch.save([1, 2], tmp_path / "list.pt")
    flags = ["--batch", "batch", "--small-weights", str(tmp_path / "list.pt"), "--large-weights", large]
    assert main(["verify-growth", f"{models}:Mlp(8)", "Mlp(16)", *flags]) == 1
    assert "holds a list, expected a state_dict" in capsys.readouterr().err

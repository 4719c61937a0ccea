"""The example grow_gpt.py compares curves rightly and runs through both of its growths, here in a tiny setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from abcfx.examples import grow_gpt
from abcfx.examples.gpt import GPTConfig


def curve(losses: list[float], per_step: float) -> grow_gpt.Curve:
    return grow_gpt.Curve(losses, [per_step * (i + 1) for i in range(len(losses))], [len(losses)], [losses[-1]])


def test_equal_steps_and_equal_compute() -> None:
    grown = curve([4.0, 3.0, 2.5, 2.0], 1.0)
    found = grow_gpt.compare(grown, curve([4.0, 3.0, 1.9, 1.0], 2.0))
    assert found.grown == 2.0
    assert found.scratch_at_equal_steps == 1.0
    assert found.scratch_at_equal_compute == 3.0
    assert (found.needed_steps, found.needed_compute) == (0.75, 1.5)
    assert grow_gpt.compare(grown, curve([4.0, 3.0, 2.9, 2.8], 2.0)).needed_compute is None


def test_smoothing_is_a_mean_of_the_last_ones() -> None:
    assert grow_gpt.smoothed(curve([4.0, 2.0, 3.0], 1.0), 2) == [4.0, 3.0, 2.5]


def test_a_mixture_of_equal_mlps_is_the_mlp() -> None:
    torch.manual_seed(0)
    mixture = grow_gpt.Mixture(GPTConfig(d_model=16), 4, 2)
    for expert in mixture.experts:
        expert.load_state_dict(mixture.experts[0].state_dict())
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(mixture(x), mixture.experts[0](x))


@pytest.mark.slow
def test_a_tiny_run_through_both_growths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = grow_gpt.main(
        ["--width", "16", "--steps", "20", "10", "10", "--lr", "0.02", "0.02", "0.01", "--out", str(tmp_path)]
    )
    assert 2.0 < found.grown < 4.0
    printed = capsys.readouterr().out
    assert printed.count("function kept") == 3
    assert "C2 routers: PASS" in printed
    assert "verdict: PASS" in printed
    data = json.loads((tmp_path / "grow_gpt.json").read_text())
    grown, scratch = data["curves"]["grown"], data["curves"]["scratch"]
    assert grown["ends"] == [20, 30, 40]
    assert len(scratch["losses"]) == 40
    assert scratch["compute"][-1] > 1.5 * grown["compute"][-1]
    assert (tmp_path / "grow_gpt.png").stat().st_size > 10_000

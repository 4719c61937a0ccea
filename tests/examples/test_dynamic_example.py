"""The example dynamic_rates.py tunes, trains and reports all variants, here in a tiny setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abcfx.examples import dynamic_rates


def test_the_best_rate_is_better_than_both_neighbours() -> None:
    losses = {2.0**k: (k + 5) ** 2 for k in range(-12, 4)}
    assert dynamic_rates.best_lr(losses.__getitem__, 2.0**-9) == (2.0**-5, 0)
    assert dynamic_rates.best_lr(losses.__getitem__, 2.0**0) == (2.0**-5, 0)


@pytest.mark.slow
def test_a_tiny_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = dynamic_rates.main(["--steps", "3", "--seeds", "2", "--tuning-seeds", "1", "--out", str(tmp_path)])
    assert [row.name for row in rows] == [
        "static", "static tuned", "dynamic centred", "dynamic tuned", "dynamic not centred", "canned ramp",
    ]  # fmt: skip
    assert all(len(row.losses) == 2 and 2.0 < loss < 7.0 for row in rows for loss in row.losses)
    assert json.loads((tmp_path / "losses.json").read_text())[0]["name"] == "static"
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert {"losses.png", "dynamic_centred_layers.png"} <= drawn
    assert capsys.readouterr().out.count("against static") == len(rows)

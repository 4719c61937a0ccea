"""Layers on concatenated inputs, of which some grow, move alike at every width, each of their segments too."""

from __future__ import annotations

import pytest
import torch
from models_concatenated import CONCATENATED

import abcfx
from abcfx.support.verdict import Verdict

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CONCATENATED if name == "unet"]


@pytest.mark.parametrize("name", ["nerf", "dlrm", *SLOW])
def test_every_segment_starts_and_learns_at_one_size(name: str) -> None:
    case = CONCATENATED[name]
    batch = (case.args if len(case.args) > 1 else case.args[0], case.targets)

    def loss(output: torch.Tensor, given: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the mean squared distance from the targets."""
        return (output - given[1]).square().mean()

    check = abcfx.coord_check(
        case.make, batch, widths=(64, 128, 256), loss=loss, optimizer="adam", control=False, budget=300
    )
    assert check, str(check)
    judged = {row.name: row.verdict for row in check.rows}
    for weight, segments in case.segments.items():
        starts = [row for row in judged if row.startswith(f"{weight} columns ")]
        assert len(starts) == len(segments) and all(judged[row] is Verdict.PASS for row in starts)

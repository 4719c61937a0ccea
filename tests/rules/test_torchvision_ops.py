"""Ops of torchvision, which need not be installed: the test defines what it lacks."""

from __future__ import annotations

import torch
from torch import nn

import abcfx

FRAGMENT = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "roi_align"):
    FRAGMENT.define("roi_align(Tensor x, Tensor boxes, float scale, int h, int w, int ratio, bool aligned) -> Tensor")

    @torch.library.impl(FRAGMENT, "roi_align", "CompositeImplicitAutograd")
    def mean_of_the_image(
        x: torch.Tensor, boxes: torch.Tensor, scale: float, h: int, w: int, ratio: int, aligned: bool
    ) -> torch.Tensor:
        """Return the mean of the first image for each box."""
        return x[:1].mean((2, 3), keepdim=True).expand(boxes.shape[0], -1, h, w) * boxes.sum().clamp(1, 1)


class Detector(nn.Module):
    """A head over channels that are read inside of given boxes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        read = torch.ops.torchvision.roi_align(self.stem(x).relu(), boxes, 1.0, 1, 1, 2, False)
        return self.head(self.mid(read.flatten(1)).relu())


def test_roi_align_passes_on_the_size_and_change_of_what_it_reads() -> None:
    boxes = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]])
    result = abcfx.transform(Detector(32), (torch.rand(1, 3, 6, 6), boxes), base=Detector(8))
    assert {name: result.plan[f"{name}.weight"].role for name in ("stem", "mid", "head")} == {
        "stem": "embedding", "mid": "hidden", "head": "readout",
    }  # fmt: skip
    assert [round(result.plan[f"{name}.weight"].c, 6) for name in ("stem", "mid", "head")] == [0.5, 1, 0.5]

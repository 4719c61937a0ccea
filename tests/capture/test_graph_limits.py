"""What a captured graph cannot do stands in the notes, is refused by all its names, and limits no model in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.errors import InvalidInputError
from abcfx.plan.options import ApplyMode

IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEQUENCE = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


class Baked(nn.Module):
    """A convolution that unpacks sizes of two images into a reshape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        b, _, *sizes = x.shape
        h = torch.relu(self.first(x)).reshape(b, -1, *[int(size) for size in sizes])
        h = h if mask is None else h * mask
        out: torch.Tensor = self.second(h) + y.reshape(b, 3, *[int(size) for size in y.shape[2:]])
        return out


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.cell, self.head = (
            nn.Linear(4, width),
            nn.LSTM(width, width, batch_first=True),
            nn.Linear(width, 2),
        )

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        out: torch.Tensor = self.head(self.cell(self.stem(x), state)[0])
        return out


def images(apply: ApplyMode = "insert", capture: CaptureMethod = "auto") -> abcfx.Transformed:
    return abcfx.transform(Baked(16), (IMAGE, IMAGE), base=Baked(8), optimizer="adamw", apply=apply, capture=capture)


@pytest.mark.parametrize("capture", ["auto", "export", "record"])
def test_every_size_that_is_fixed_is_told(capture: CaptureMethod) -> None:
    result = images(capture=capture)
    limits = "size 8 in dim 2 of x, size 8 in dim 3 of x, size 8 in dim 2 of y, size 8 in dim 3 of y"
    why = "sizes of images are fixed where symbolic tracing cannot capture a model"
    assert f"works only for {limits} ({why})" in result.notes
    other = torch.randn(3, 3, 6, 10)
    with pytest.raises(InvalidInputError, match=rf"works only for {limits}(?s:.*)apply='inplace'"):
        result.module(other, other)
    result.module(IMAGE[:2], IMAGE[:2])


def test_a_convolution_is_limited_in_nothing() -> None:
    def net(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.Conv2d(width, 3, 1))

    result = abcfx.transform(net(16), IMAGE, base=net(8), capture="symbolic")
    assert not any("works only" in note for note in result.notes)
    assert result.module(torch.randn(2, 3, 6, 10)).shape == (2, 3, 6, 10)


@pytest.mark.parametrize("capture", ["auto", "export", "record"])
def test_in_place_nothing_is_limited(capture: CaptureMethod) -> None:
    result = images("inplace", capture)
    assert not any("works only" in note for note in result.notes)
    other = torch.randn(2, 3, 6, 10)
    assert result.module(other, other, torch.ones(6, 10)).shape == other.shape


@pytest.mark.parametrize("capture", ["symbolic", "export", "record"])
def test_inputs_that_were_none_are_refused_by_their_shapes(capture: CaptureMethod) -> None:
    result = abcfx.transform(Recurrent(16), SEQUENCE, base=Recurrent(8), optimizer="adamw", capture=capture)
    state = (torch.zeros(1, 3, 16), torch.zeros(1, 3, 16))
    with pytest.raises(InvalidInputError) as caught:
        result.module(SEQUENCE, state)
    told = str(caught.value)
    assert "captured with None and was called with a tuple with tensors of shape (1, 3, 16), (1, 3, 16)" in told
    assert len(told.splitlines()) == 3 and "tensor(" not in told and "apply='inplace'" in told
    given = abcfx.transform(Recurrent(16), (SEQUENCE, state), base=Recurrent(16), optimizer="adamw", capture=capture)
    with pytest.raises(InvalidInputError, match=r"state=.*called with None") as caught:
        given.module(SEQUENCE)
    assert len(str(caught.value).splitlines()) == 3

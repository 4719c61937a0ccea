"""Random draws that decide something in Python are refused with the line that draws; those of torch stay."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from models import TwoLayers

from abcfx.capture import capture
from abcfx.errors import UncapturableError

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
GENERATOR = np.random.default_rng(0)


class Skips(TwoLayers):
    """Skips a layer in training, at random; subclasses say by which draw."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.skips():
            return self.layers(2 * x)
        return self.layers(x)

    def skips(self) -> bool:
        return random.random() < 0.5


class SkipsByShuffle(Skips):
    def skips(self) -> bool:
        order = [True, False]
        random.shuffle(order)
        return order[0]


class SkipsByNumpy(Skips):
    def skips(self) -> bool:
        return bool(np.random.rand() < 0.5)


class SkipsByOwnGenerator(Skips):
    def __init__(self) -> None:
        super().__init__()
        self.draws = np.random.default_rng(0)

    def skips(self) -> bool:
        return bool(self.draws.random() < 0.5)


class SkipsByGlobalGenerator(Skips):
    def skips(self) -> bool:
        return bool(GENERATOR.random() < 0.5)


class SkipsByTorch(Skips):
    def skips(self) -> bool:
        return torch.rand(1).item() < 0.5


class SkipsByBool(Skips):
    def skips(self) -> bool:
        return bool(torch.bernoulli(torch.empty(1).uniform_()) > 0)


class SkipsByTorchGenerator(Skips):
    def __init__(self) -> None:
        super().__init__()
        self.draws = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x + torch.randn(4, 6, generator=self.draws))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Skips, r"return random\.random\(\) < 0\.5"),
        (SkipsByShuffle, r"random\.shuffle\(order\)"),
        (SkipsByNumpy, r"return bool\(np\.random\.rand\(\) < 0\.5\)"),
        (SkipsByOwnGenerator, r"return bool\(self\.draws\.random\(\) < 0\.5\)"),
        (SkipsByGlobalGenerator, r"return bool\(GENERATOR\.random\(\) < 0\.5\)"),
        (SkipsByTorch, r"return torch\.rand\(1\)\.item\(\) < 0\.5"),
        (SkipsByBool, r"return bool\(torch\.bernoulli"),
        (SkipsByTorchGenerator, r"return self\.layers\(x \+ torch\.randn"),
    ],
)
def test_a_draw_that_decides_in_python_is_refused_with_its_line(kind: type[Skips], line: str) -> None:
    model = kind().train()
    states = random.getstate(), repr(GENERATOR.bit_generator.state)
    with pytest.raises(UncapturableError, match=rf"(?s)test_capture_draws\.py:\d+: {line}.*To fix: draw ") as error:
        capture(model, X)
    assert error.value.line.endswith(str(error.value).splitlines()[1].strip())
    assert (random.getstate(), repr(GENERATOR.bit_generator.state)) == states


class DropsPath(TwoLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        if self.training:
            y = y * y.new_empty(y.shape[0], 1).bernoulli_(0.7) / 0.7
        return y


def test_a_branch_dropped_by_torch_operations_is_kept() -> None:
    model = DropsPath()
    module = capture(model, X).module
    for seed in range(3):
        outputs = []
        for each in (model, module):
            torch.manual_seed(seed)
            outputs.append(each(X))
        torch.testing.assert_close(*outputs)

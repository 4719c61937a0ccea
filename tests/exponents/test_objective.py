"""What the linear program may trade: rates of weights of fixed size, and of weights that are used more than once."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import abcfx

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class GraphAttention(nn.Module):
    """The last layer of a graph attention network: classes, whose weights in the mean come of two fixed vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.classes = nn.Linear(6, width), nn.Linear(width, 8, bias=False)
        self.own, self.other = (nn.Parameter(torch.ones(1, 2, 4)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.classes(F.relu(self.stem(x))).unflatten(-1, (2, 4))
        scores = (heads * self.own).sum(-1)[:, None] + (heads * self.other).sum(-1)[None]
        return torch.einsum("nmh,mhd->nhd", F.leaky_relu(scores).softmax(1), heads).mean(1)


class Gated(nn.Module):
    """A fixed matrix behind the readout, times a number that shrinks with width if `factor` is not 0."""

    def __init__(self, width: int, factor: float = 0.0) -> None:
        super().__init__()
        self.stem, self.classes = nn.Linear(6, width), nn.Linear(width, 3, bias=False)
        self.gate, self.number = nn.Parameter(torch.eye(3)), width**factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.classes(F.relu(self.stem(x)))
        return y * torch.sigmoid(y @ (self.gate * self.number))


class Blocks(nn.Module):
    """As many matrices of a fixed size as the model is wide: each has a gradient that is smaller in a wider model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.classes = nn.Linear(6, width), nn.Linear(width, 3, bias=False)
        self.blocks = nn.Parameter(torch.randn(width // 4, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x).unflatten(-1, (-1, 4))
        return self.classes(F.relu(torch.einsum("nkd,kde->nke", h, self.blocks).flatten(1)))


class Feedback(nn.Module):
    """Predictions that are fed back through one layer, which is called `times` times."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.stem, self.classes = nn.Linear(6, width), nn.Linear(width, 3, bias=False)
        self.back, self.last, self.times = nn.Linear(3, width), nn.Linear(width, 3), times

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.classes(F.relu(self.stem(x)))
        fed = torch.stack([self.back(y * (1 + i)) for i in range(self.times)]).mean(0)
        return y, self.last(F.relu(fed))


def rates(build: type[nn.Module], *args: object, optimizer: str = "adam") -> dict[str, float]:
    torch.manual_seed(0)
    spec = abcfx.transform(build(64, *args), X, base=build(16, *args), optimizer=optimizer).spec
    return {name.removesuffix(".weight"): row["c"] for name, row in spec.items()}


@pytest.mark.parametrize(("optimizer", "readout"), [("adam", 0.5), ("sgd", 0.0), ("adafactor", 0.0)])
@pytest.mark.parametrize("build", [GraphAttention, Gated])
def test_fixed_weights_learn_no_faster_at_the_cost_of_the_readout(
    build: type[nn.Module], optimizer: str, readout: float
) -> None:
    c = rates(build, optimizer=optimizer)
    assert {c[name] for name in ("own", "other", "gate") if name in c} == {0.0}
    assert c["classes"] == readout


@pytest.mark.parametrize(("optimizer", "c"), [("adam", -0.5), ("sgd", -1.0), ("adafactor", 0.0)])
def test_a_number_of_the_model_on_a_fixed_weight_moves_its_rate(optimizer: str, c: float) -> None:
    """What the weight and the number make together learns at one rate at every width."""
    assert rates(Gated, -0.5, optimizer=optimizer)["gate"] == c


def test_a_fixed_size_of_each_of_a_growing_number_of_weights_is_no_fixed_weight() -> None:
    assert rates(Blocks, optimizer="sgd")["blocks"] == -1.0


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_layer_that_is_called_often_counts_once(optimizer: str) -> None:
    once, often = (rates(Feedback, times, optimizer=optimizer) for times in (1, 5))
    assert once == often

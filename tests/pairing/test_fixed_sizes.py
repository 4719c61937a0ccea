"""A size that differs between base and target without growing with the width changes no role and no rate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import abcfx

IDS = torch.arange(12).view(2, 6)


class LanguageModel(nn.Module):
    """Embedding with learned positions, one hidden layer and a head that may be tied."""

    def __init__(self, width: int, vocabulary: int = 97, positions: int = 8, tied: bool = False) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.hidden, self.norm = nn.Linear(width, 2 * width), nn.LayerNorm(width)
        self.back, self.head = nn.Linear(2 * width, width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(x + self.back(torch.tanh(self.hidden(x)))))


def classifier(inputs: int, width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


def planned(target: nn.Module, base: nn.Module, x: torch.Tensor) -> dict[str, tuple[str, float]]:
    result = abcfx.transform(target, x, base=base, lr=0.01, optimizer="adamw")
    return {name: (row["role"], round(row["lr"], 9)) for name, row in result.spec.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("change", [{"vocabulary": 104}, {"positions": 16}, {"vocabulary": 1000}, {"vocabulary": 388}])
def test_a_language_model_with_another_vocabulary_or_length(change: dict[str, int], tied: bool) -> None:
    """Also where the size changes more than the width does, and where it changes by the same ratio."""
    base = LanguageModel(16, tied=tied)
    wanted = planned(LanguageModel(64, tied=tied), base, IDS)
    assert planned(LanguageModel(64, tied=tied, **change), base, IDS) == wanted


@pytest.mark.parametrize("make", [lambda w: classifier(8, w, 12), lambda w: classifier(11, w, 10)])
def test_a_classifier_with_other_classes_or_inputs(make: Callable[[int], nn.Module]) -> None:
    model, base = make(64), classifier(8, 16, 10)
    features = next(model.parameters()).shape[1]
    wanted = planned(classifier(8, 64, 10), base, torch.randn(3, 8))
    if features != 8:  # pairing runs both on the target's inputs
        base = classifier(features, 16, 10)
    assert planned(model, base, torch.randn(3, features)) == wanted


def test_what_was_taken_as_what_is_said() -> None:
    result = abcfx.transform(LanguageModel(64, vocabulary=104), IDS, base=LanguageModel(16))
    assert any("97 -> 104" in note and "does not grow" in note for note in result.notes)
    assert result.header.width_ratio == 4.0


def test_an_output_as_wide_as_the_layers_grows() -> None:
    row = abcfx.transform(classifier(8, 64, 64), torch.randn(3, 8), base=classifier(8, 16, 16)).spec["4.weight"]
    assert row["role"] == "hidden" and row["growth"] == [1.0, 1.0]


def test_an_output_that_grows_by_the_same_ratio_is_taken_to_grow_and_said() -> None:
    result = abcfx.transform(classifier(8, 64, 128), torch.randn(3, 8), base=classifier(8, 16, 32))
    assert result.spec["4.weight"]["role"] == "hidden"
    assert any("32 -> 128" in note and "taken to grow" in note for note in result.notes)


class Experts(nn.Module):
    """Experts that a softmax weighs, with a low-rank branch beside them."""

    def __init__(self, width: int, experts: int = 4, rank: int = 4) -> None:
        super().__init__()
        self.table, self.router = nn.Embedding(50, width), nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, 2 * width, width) * (2 * width) ** -0.5)
        self.squeeze, self.spread = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        weights = self.router(x).softmax(-1)
        hidden = torch.relu(torch.einsum("btd,edf->btef", x, self.up))
        mixed = (weights[..., None] * torch.einsum("btef,efd->bted", hidden, self.down)).sum(-2)
        return self.head(self.norm(x + mixed + self.spread(self.squeeze(x))))


@pytest.mark.parametrize("change", [{"experts": 8}, {"experts": 2}, {"experts": 16}, {"rank": 2}, {"rank": 5}])
def test_experts_and_ranks_do_not_grow(change: dict[str, int]) -> None:
    """Sixteen experts for four differ by the very ratio of the widths."""
    base = Experts(16)
    assert planned(Experts(64, **change), base, IDS) == planned(Experts(64), base, IDS)


def test_a_rank_that_grows_more_slowly_is_said() -> None:
    result = abcfx.transform(Experts(64, rank=8), IDS, base=Experts(16))
    assert any("4 -> 8" in note and "more slowly" in note for note in result.notes)
    assert result.spec["spread.weight"]["growth"] == [1.0, 0.5]


class Pictures(nn.Module):
    """Patches with learned positions that layers mix, and convolutions of some kernel size."""

    def __init__(self, width: int, size: int = 16, kernel: int = 3, patch: int = 4, classes: int = 5) -> None:
        super().__init__()
        count = (size // patch) ** 2
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.own = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, count + 1, width))
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.mix, self.norm, self.head = nn.Linear(count + 1, count + 1), nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        x = x + torch.tanh(self.conv(x)) + torch.tanh(self.own(x))
        x = torch.cat([self.start.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1) + self.positions
        return self.head(self.norm(x + self.mix(x.mT).mT).mean(1))


@pytest.mark.parametrize(
    "change",
    [{"kernel": 5}, {"kernel": 1}, {"patch": 2}, {"patch": 8}, {"size": 32}, {"size": 8}, {"classes": 20}],
    ids=str,
)
def test_kernels_patches_positions_and_classes_do_not_grow(change: dict[str, int]) -> None:
    """Twenty classes for five differ by the very ratio of the widths."""
    model, size = Pictures(64, **change), change.get("size", 16)
    x, small = torch.randn(2, 3, size, size), torch.randn(2, 3, 16, 16)
    found = abcfx.transform(model, x, base=Pictures(16), capture=abcfx.Capture(base_args=(small,)))
    wanted = planned(model, Pictures(16, **change), x)
    assert {name: (row["role"], round(row["lr"] / 1e-3, 6)) for name, row in found.spec.items()} == {
        name: (role, round(lr / 0.01, 6)) for name, (role, lr) in wanted.items()
    }


@pytest.mark.parametrize("kernel", [1, 5])
def test_an_init_by_fan_in_follows_the_kernel(kernel: int) -> None:
    """torch draws a convolution with another kernel right already, at any width."""
    model, x = Pictures(64, kernel=kernel), torch.randn(2, 3, 16, 16)
    before = model.conv.weight.detach().clone()
    module = abcfx.transform(model, x, base=Pictures(16), apply="absorb").module
    torch.testing.assert_close(module.get_parameter("conv.weight"), before)


@pytest.mark.parametrize(("vocabulary", "positions"), [(104, 8), (97, 16)])
def test_where_no_width_grows_nothing_changes(vocabulary: int, positions: int) -> None:
    model, base = LanguageModel(16, vocabulary, positions), LanguageModel(16)
    result = abcfx.transform(model, IDS, base=base, lr=0.01)
    torch.testing.assert_close(result.module(IDS), model(IDS))
    assert {row["lr"] for row in result.spec.values()} == {0.01}
    assert any("does not grow" in note for note in result.notes)


def test_the_size_of_a_frozen_encoder_does_not_grow() -> None:
    class Encoded(nn.Module):
        def __init__(self, width: int, encoder: int) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(8, encoder), nn.Tanh(), nn.Linear(encoder, encoder))
            self.encoder.requires_grad_(False)
            self.layers = classifier(encoder, width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(self.encoder(x))

    x = torch.randn(3, 8)
    assert planned(Encoded(64, 48), Encoded(16, 32), x) == planned(Encoded(64, 48), Encoded(16, 48), x)


@pytest.mark.parametrize(("classes", "of_base"), [(3, 1), (1, 3), (2, 1)])
def test_a_bias_of_torch_is_known_by_its_layer(classes: int, of_base: int) -> None:
    """The init of a head's bias, which has too few entries to be measured, follows that of its weight."""
    model = classifier(8, 64, classes)
    bias = model.get_parameter("4.bias").detach().clone()
    result = abcfx.transform(model, torch.randn(3, 8), base=classifier(8, 16, of_base), apply="absorb")
    torch.testing.assert_close(result.module.get_parameter("4.bias"), 2 * bias)


def test_a_fused_projection_of_which_one_part_makes_weights_grows() -> None:
    """As in Mamba 2: channels that go into a convolution, parts of a fixed size, and steps that weigh the channels."""

    class Mixer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width, self.heads = width, width // 8
            self.tok, self.head = nn.Linear(6, width), nn.Linear(width, 3)
            self.enter = nn.Linear(width, 2 * width + 4 + self.heads, bias=False)
            self.conv, self.leave = nn.Conv1d(width, width, 1, groups=width), nn.Linear(width, width)
            self.state = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.tok(x)
            gate, mixed, state, step = self.enter(x).split([self.width, self.width, 4, self.heads], -1)
            y = self.conv(mixed.transpose(1, 2)).transpose(1, 2).unflatten(-1, (self.heads, 8))
            y = (y * nn.functional.softplus(step)[..., None]).flatten(-2) * torch.sigmoid(self.state(state))
            return self.head(x + self.leave(y * nn.functional.silu(gate)))

    found = planned(Mixer(64), Mixer(32), torch.randn(2, 5, 6))
    assert found["enter.weight"] == ("hidden", 0.005)

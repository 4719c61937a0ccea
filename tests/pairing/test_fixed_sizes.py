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

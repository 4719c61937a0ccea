"""A tied parameter has a multiplier for each use: absorbing keeps what one init cannot carry, or refuses."""

import copy

import pytest
import torch
from torch import nn

import abcfx


class Tied(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(50, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)))


IDS = torch.arange(10).view(2, 5)


def test_absorb_keeps_the_scale_of_the_other_use():
    torch.manual_seed(0)
    model, base = Tied(64), Tied(16)
    inserted = abcfx.transform(copy.deepcopy(model), IDS, base=base)
    absorbed = abcfx.transform(model, IDS, base=base, scales="absorb")
    assert absorbed.spec["embedding.weight"]["multiplier"] == {"embedding": 1.0, "head": 0.25}
    torch.testing.assert_close(absorbed.module(IDS), inserted.module(IDS))


def test_inplace_refuses_to_lose_it_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = Tied(64)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(abcfx.InvalidInputError, match="the multiplier of head cannot be absorbed"):
        abcfx.transform(model, IDS, base=Tied(16), scales="absorb", inplace=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])

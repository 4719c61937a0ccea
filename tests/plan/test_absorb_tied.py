"""A tied parameter has a multiplier for each use: absorbing keeps one where init cannot carry both, or refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from models import TiedBlock
from torch import nn

import abcfx
from abcfx.plan.options import ApplyMode

IDS = torch.arange(10).view(2, 5)


def test_absorb_keeps_the_scale_of_the_other_use_where_no_norm_can_take_it() -> None:
    torch.manual_seed(0)
    model, base = TiedBlock(64, affine=False), TiedBlock(16, affine=False)
    inserted = abcfx.transform(copy.deepcopy(model), IDS, base=base)
    absorbed = abcfx.transform(model, IDS, base=base, apply="absorb")
    assert absorbed.spec["embedding.weight"]["multiplier"] == {"embedding": 1.0, "head": 0.25}
    torch.testing.assert_close(absorbed.module(IDS), inserted.module(IDS))


@pytest.mark.parametrize("with_base", [True, False])
def test_absorb_moves_the_scale_of_a_tied_head_into_the_norm_before_it(with_base: bool) -> None:
    torch.manual_seed(0)
    model, base = TiedBlock(64).double(), TiedBlock(16).double() if with_base else None
    losses: dict[str, list[float]] = {}
    modes: tuple[ApplyMode, ...] = ("insert", "absorb")
    for scales in modes:
        torch.manual_seed(1)
        result = abcfx.transform(model, IDS, base=base, apply=scales, optimizer="adamw", weight_decay=0.1, eps=1e-4)
        optimizer = torch.optim.AdamW(result.param_groups)
        losses[scales] = []
        for _ in range(20):
            loss = nn.functional.cross_entropy(result.module(IDS).flatten(0, 1), IDS.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[scales].append(loss.item())
    assert result.spec["embedding.weight"]["multiplier"] == 1.0
    assert result.spec["norm.weight"]["b"] == 1.0 and result.spec["norm.bias"]["c"] == 1.0
    assert losses["absorb"] == pytest.approx(losses["insert"], rel=1e-12)


def test_a_tied_model_is_changed_in_place() -> None:
    torch.manual_seed(0)
    model, base = TiedBlock(64), TiedBlock(16)
    expected = abcfx.transform(model, IDS, base=base).module(IDS)
    result = abcfx.transform(model, IDS, base=base, apply="inplace")
    assert result.module is model
    torch.testing.assert_close(model(IDS), expected)


class NoHead(TiedBlock):
    """A tied model whose readout is no module that a hook could scale."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.norm(self.embedding(ids)), self.embedding.weight)


def test_inplace_refuses_to_lose_it_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = NoHead(64, affine=False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(abcfx.errors.InvalidInputError, match="cannot be absorbed"):
        abcfx.transform(model, IDS, base=NoHead(16, affine=False), apply="inplace")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])

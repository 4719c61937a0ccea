"""`upcycle` makes every expert a copy of the dense MLP in any layout, and refuses if the function would change."""

from __future__ import annotations

import copy
from collections.abc import Callable

import models_growing as models
import pytest
import torch
from torch import nn
from typed import given

import abcfx
from abcfx.errors import GrowthError


def dense() -> models.Stream:
    torch.manual_seed(0)
    return models.drawn(models.Stream(models.DenseMlp))


@pytest.mark.parametrize("experts", [models.ListedExperts, models.FusedExperts])
def test_the_function_is_kept_whatever_the_layout(experts: type[nn.Module]) -> None:
    small, mixture = dense(), models.Stream(experts).double()
    grown = abcfx.upcycle(small, mixture, models.tokens())
    torch.testing.assert_close(mixture(models.tokens(seed=3)), small(models.tokens(seed=3)), rtol=0, atol=1e-12)
    assert grown.steps[0].kept
    assert "gate, up" in grown.report or "made of" in grown.report


def test_a_mixture_that_was_upcycled_grows() -> None:
    small, mixture = dense(), models.Stream(models.FusedExperts).double()
    abcfx.upcycle(small, mixture, models.tokens())
    wider = models.Stream(models.FusedExperts, 32, 48, layers=3).double()
    abcfx.grow(mixture, wider, models.tokens(), noise=0.3)
    torch.testing.assert_close(wider(models.tokens(seed=3)), small(models.tokens(seed=3)), rtol=0, atol=1e-12)


def test_experts_part_although_they_start_equal() -> None:
    small, mixture = dense(), models.Stream(models.FusedExperts).double()
    optimizer = torch.optim.AdamW(small.parameters(), 1e-2)
    small(models.tokens()).sin().mean().backward()
    optimizer.step()
    grown = abcfx.upcycle(small, mixture, models.tokens(), optimizer=optimizer)
    second = torch.optim.AdamW(grown.param_groups)
    second.load_state_dict(given(grown.optimizer_state))
    assert torch.equal(second.state[mixture.tok.weight]["exp_avg"], optimizer.state[small.tok.weight]["exp_avg"])
    assert mixture.get_parameter("mlps.0.down") not in second.state
    for i in range(3):
        second.zero_grad()
        mixture(models.tokens(seed=i)).sin().mean().backward()
        second.step()
    experts = mixture.get_parameter("mlps.0.down").detach()
    assert (experts[0] - experts[1]).abs().max() > 1e-4
    assert given(mixture.get_parameter("mlps.0.router.weight").grad).abs().max() > 0


def test_noise_on_experts_changes_the_function_and_is_labelled() -> None:
    grown = abcfx.upcycle(dense(), models.Stream(models.FusedExperts).double(), models.tokens(), noise=0.3)
    assert not grown.steps[0].kept
    assert grown.steps[0].difference > 1e-3


def zero_router(mixture: nn.Module) -> None:
    for i in range(2):
        nn.init.zeros_(mixture.get_parameter(f"mlps.{i}.router.weight"))


@pytest.mark.parametrize(("make", "match"), [
    (lambda: models.Stream(lambda w, i: models.ListedExperts(w, i, renormalise=False)), "renormalise the weights"),
    (lambda: models.Stream(models.ListedExperts, inner=20), "no layout has the shapes"),
    (lambda: models.Stream(models.DenseMlp), "no dense MLP that becomes"),
], ids=["weights below one", "narrower experts", "no mixture"])  # fmt: skip
def test_mixtures_that_would_change_the_function_are_refused(make: Callable[[], nn.Module], match: str) -> None:
    torch.manual_seed(1)
    mixture = make().double()
    before = copy.deepcopy(mixture.state_dict())
    with pytest.raises(GrowthError, match=match):
        abcfx.upcycle(dense(), mixture, models.tokens())
    assert all(torch.equal(tensor, before[name]) for name, tensor in mixture.state_dict().items())


def test_a_zero_router_is_refused_with_the_reason() -> None:
    mixture = models.Stream(models.FusedExperts).double()
    zero_router(mixture)
    with pytest.raises(GrowthError, match=r"(?s)router mlps.0.router.weight is zero.*no gradient"):
        abcfx.upcycle(dense(), mixture, models.tokens())

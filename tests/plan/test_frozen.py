"""Frozen parameters are data: their values stay, nothing multiplies them, no group holds them."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

import abcfx

IDS = torch.arange(12).reshape(3, 4)
X = torch.linspace(-1, 1, 24).reshape(3, 8)


class Probe(nn.Module):
    """A frozen table and encoder with pretrained weights, and a head that learns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb, self.mid, self.out = nn.Embedding(12, width), nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)
        for frozen in (self.emb, self.mid, self.out):
            nn.init.normal_(frozen.weight, std=0.02)
            frozen.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.out(torch.relu(self.mid(self.emb(ids))))
        return self.head(features), features


class Lora(nn.Module):
    """A frozen weight beside a trainable product B A, with A random and B zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.base = nn.Linear(8, width), nn.Linear(width, width, bias=False)
        self.a, self.b, self.head = nn.Linear(width, 4, False), nn.Linear(4, width, False), nn.Linear(width, 3)
        nn.init.zeros_(self.b.weight)
        for frozen in (self.up, self.base):
            frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.up(x))
        return self.head(torch.relu(self.base(h) + self.b(self.a(h))))


class Features(nn.Module):
    """Frozen random features with a readout that learns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, width), requires_grad=False)
        self.shift = nn.Parameter(torch.rand(width) * 6, requires_grad=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cos(x @ self.w + self.shift))


class TwoHeads(nn.Module):
    """A frozen readout and a tied, frozen table beside weights that learn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb, self.norm, self.mid = nn.Embedding(12, width), nn.LayerNorm(width), nn.Linear(width, width)
        self.emb.weight.requires_grad_(False)
        self.norm.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.mid(self.norm(self.emb(ids))) @ self.emb.weight.T


MODELS = {"probe": (Probe, IDS), "lora": (Lora, X), "features": (Features, X), "two heads": (TwoHeads, IDS)}


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("options", [{}, {"init": "redraw"}, {"apply": "absorb"}, {"apply": "inplace"}], ids=str)
@pytest.mark.parametrize("key", list(MODELS))
def test_frozen_values_stay_and_get_no_multiplier(key: str, options: dict[str, object], with_base: bool) -> None:
    torch.manual_seed(0)
    build, inputs = MODELS[key]
    model, base = build(64), build(16) if with_base else None
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    result = abcfx.transform(model, inputs, base=base, overrides=abcfx.Overrides(std=0.5), **options)  # type: ignore[arg-type]
    grouped = {name for group in result.param_groups for name in group["param_names"]}
    assert any("frozen" in note and next(iter(frozen)) in note for note in result.notes)
    assert grouped and not grouped & frozen.keys()
    for again in (False, True):
        if again:
            result.init_weights()
        for name, before in frozen.items():
            assert torch.equal(result.module.get_parameter(name), before), (name, again)
            assert set(result.plan[name].multiplier.values()) <= {1.0}


def test_features_of_a_frozen_encoder_are_unchanged() -> None:
    torch.manual_seed(0)
    model = Probe(64)
    for base in (Probe(16), None):
        assert torch.equal(abcfx.transform(model, IDS, base=base).module(IDS)[1], model(IDS)[1])


def test_rates_beside_frozen_weights_are_bound_by_what_learns() -> None:
    plan = abcfx.transform(Lora(64), X, base=Lora(16)).plan
    assert {name: plan[name].c for name in ("a.weight", "b.weight", "head.weight")} == {
        "a.weight": 1.0,  # without a multiplier
        "b.weight": 0.5,
        "head.weight": 0.5,
    }


def test_frozen_weights_on_another_device_module_are_copied_from_the_plan() -> None:
    model = Probe(32)
    result = abcfx.transform(model, IDS, base=Probe(16))
    fresh = result.init_weights(Probe(32))
    assert torch.equal(fresh.get_parameter("mid.weight"), model.mid.weight)


def test_a_multiplier_that_the_user_gives_to_a_frozen_weight_is_kept_and_told() -> None:
    given = abcfx.Overrides(exponents={"mid.weight": (0.25, 0.25)})
    result = abcfx.transform(Probe(64), IDS, base=Probe(16), overrides=given)
    assert set(result.plan["mid.weight"].multiplier.values()) == {4.0**-0.25}
    assert any("exponents" in note and "frozen" in note for note in result.notes)

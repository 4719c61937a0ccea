"""What is structure in an init is kept, and only what is random is scaled or drawn again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import abcfx
from abcfx.plan.options import ApplyMode

Weights = Mapping[str, torch.Tensor]
BATCH, TIME, EXPERTS = 2, 4, 2


class Structured(nn.Module):
    """A model whose init is mostly structure: padding, identities, rotations, constants, ordered values and means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = width // 4
        self.table = nn.Embedding(40, width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.02)
        self.near, self.turn, self.branch = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.gate, self.sides, self.cls = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 5)
        self.conv = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.decay = nn.Parameter(torch.log(torch.arange(1, heads + 1).float()))
        dt = torch.exp(torch.rand(heads) * math.log(100) + math.log(0.001))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.layer_scale, self.rezero = nn.Parameter(torch.full((width,), 1e-5)), nn.Parameter(torch.zeros(1))
        self.experts = nn.Parameter(torch.randn(EXPERTS, width, width) * width**-0.5 + 0.25)
        with torch.no_grad():
            self.table.weight[0] = 0.0
            nn.init.eye_(self.near.weight), nn.init.orthogonal_(self.turn.weight), nn.init.zeros_(self.branch.weight)
            nn.init.constant_(self.gate.bias, -2.0), nn.init.constant_(self.cls.bias, -4.595)
            nn.init.dirac_(self.conv.weight)
            self.sides.weight[1::2] = 0.0
            self.lstm.get_parameter("bias_ih_l0")[width : 2 * width] = 1.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        rate = torch.exp(-torch.exp(self.decay) * F.softplus(self.dt_bias))
        x = (x.unflatten(-1, (-1, 4)) * rate[:, None]).flatten(-2)
        x = x + torch.sigmoid(self.gate(x)) * self.near(x) + self.turn(x) + self.branch(x) + self.sides(x)
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2) * self.layer_scale + self.lstm(x)[0] * self.rezero
        x = x + torch.einsum("btd,edf->btf", x, self.experts)
        return self.cls(x)


IDS = torch.arange(BATCH * TIME).reshape(BATCH, TIME)


def seeded(width: int, seed: int = 0) -> Structured:
    torch.manual_seed(seed)
    return Structured(width)


def same(now: torch.Tensor, before: torch.Tensor) -> bool:
    return bool(torch.allclose(now, before, rtol=1e-5, atol=1e-8))


def rotation(now: torch.Tensor, before: torch.Tensor) -> bool:
    square = now @ now.T
    return same(square / square[0, 0], torch.eye(len(now)).to(square)) or bool(
        torch.allclose(square / square.diagonal().mean(), torch.eye(len(now)), atol=1e-4)
    )


def forget_gates(now: torch.Tensor, before: torch.Tensor) -> bool:
    gates = now.unflatten(0, (4, -1))
    return same(gates[1], torch.ones_like(gates[1])) and bool((gates[[0, 2, 3]].abs() <= 1.0001 * 16**-0.5).all())


def mean_of_experts(now: torch.Tensor, before: torch.Tensor) -> bool:
    return abs(float(now.mean()) - float(before.mean())) < 0.02 and float(now.std()) > 0.05


def like_dt_bias(now: torch.Tensor, before: torch.Tensor) -> bool:
    return abs(float(now.mean()) - float(before.mean())) < 1.5 and 0.4 < float(now.std() / before.std()) < 2.0


KEPT: Mapping[str, Callable[[torch.Tensor, torch.Tensor], bool]] = {
    "table.weight": lambda now, before: not now[0].any() and bool(now[1:].all()),
    "near.weight": same,
    "turn.weight": rotation,
    "branch.weight": same,
    "gate.bias": same,
    "cls.bias": same,
    "conv.weight": same,
    "sides.weight": lambda now, before: not now[1::2].any() and bool(now[::2].all()),
    "lstm.bias_ih_l0": forget_gates,
    "decay": same,
    "dt_bias": like_dt_bias,
    "layer_scale": same,
    "rezero": same,
    "experts": mean_of_experts,
}


def lost(result: abcfx.Transformed, before: Weights) -> list[str]:
    """Return the names of the parameters whose structure is gone."""
    now = {name: p.detach() for name, p in result.module.named_parameters()}
    return [name for name, is_kept in KEPT.items() if not is_kept(now[name], before[name])]


@pytest.mark.parametrize("apply", ["insert", "absorb", "inplace", "off"])
@pytest.mark.parametrize("has_base", [True, False])
def test_structure_outlives_a_transform_and_a_new_draw(apply: ApplyMode, has_base: bool) -> None:
    model = seeded(64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = abcfx.transform(model, IDS, base=seeded(16) if has_base else None, apply=apply)
    assert lost(result, before) == []
    torch.manual_seed(1)
    result.init_weights()
    assert lost(result, before) == []


class Few(nn.Module):
    """A model whose readout has a bias of few entries, drawn by `law`."""

    def __init__(self, width: int, entries: int, law: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, entries)
        law(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x)))


LAWS: Mapping[str, tuple[Callable[[torch.Tensor], object], float]] = {
    "torch's": (lambda bias: None, 2.0),
    "normal": (lambda bias: nn.init.normal_(bias), 1.0),
    "constant": (lambda bias: nn.init.constant_(bias, -0.01), 1.0),
}


@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("entries", [2, 3, 40])
def test_the_factor_on_a_bias_does_not_follow_the_accidental_sizes_of_its_entries(law: str, entries: int) -> None:
    draw, expected = LAWS[law]
    factors = set()
    for seed in range(4):
        torch.manual_seed(seed)
        large, small = Few(64, entries, draw), Few(16, entries, draw)
        factors.add(abcfx.transform(large, torch.rand(2, 8), base=small).spec["head.bias"]["init_factor"])
    assert factors == {expected}


def on_meta(build: Callable[[int], nn.Module], width: int) -> nn.Module:
    with torch.device("meta"):
        return build(width)


class Gated(nn.Module):
    """A language model with padding, forget gates and a prior in the bias of its head."""

    def __init__(self, width: int, vocabulary: int = 40) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width, padding_idx=vocabulary - 1)
        self.lstm, self.cls = nn.LSTM(width, width, batch_first=True), nn.Linear(width, 3)
        with torch.no_grad():
            self.lstm.get_parameter("bias_ih_l0")[width : 2 * width] = 1.0
            nn.init.constant_(self.cls.bias, -4.595)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.cls(self.lstm(self.table(ids))[0])


def test_structure_is_carried_over_from_tiny_instances_to_a_model_without_values() -> None:
    like = abcfx.InitLike(lambda: Gated(16, 20), lambda: Gated(32, 20))
    result = abcfx.transform(on_meta(Gated, 128), IDS.to("meta"), base=on_meta(Gated, 64), init=like)
    weights = dict(result.init_weights(result.module.to_empty(device="cpu")).named_parameters())
    assert not weights["table.weight"][-1].any() and bool(weights["table.weight"][:-1].any(1).all())
    assert bool((weights["lstm.bias_ih_l0"].unflatten(0, (4, -1))[1] == 1.0).all())
    assert bool((weights["cls.bias"] == torch.tensor(-4.595)).all())


def test_an_order_that_tiny_instances_do_not_tell_is_refused_with_nothing_written() -> None:
    like = abcfx.InitLike(lambda: Structured(16), lambda: Structured(32))
    result = abcfx.transform(on_meta(Structured, 128), IDS.to("meta"), base=on_meta(Structured, 64), init=like)
    module = seeded(128)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"near\.weight|decay"):
        result.init_weights(module)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_a_note_says_how_many_parameters_get_other_values() -> None:
    torch.manual_seed(0)
    model, base = Few(64, 3, LAWS["constant"][0]), Few(16, 3, LAWS["constant"][0])

    def told(result: abcfx.Transformed) -> list[str]:
        return [note for note in result.notes if "init='keep'" in note]

    (note,) = told(abcfx.transform(model, torch.rand(2, 8)))
    assert "drawn anew in 2 of 4" in note
    assert told(abcfx.transform(model, torch.rand(2, 8), base=base, init="keep")) == []
    assert told(abcfx.transform(model, torch.rand(2, 8), base=model)) == []

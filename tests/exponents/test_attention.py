"""Attention logits whose head_dim grows are found in any notation, scaled by 1 / head_dim, and absorbed exactly."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models import Attention, AttentionModule, trained, unmarked
from torch import nn
from typed import Options, scales_in
from typing_extensions import Unpack

import abcfx
from abcfx.capture.options import CaptureMethod

IDS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))


HALF = ["sdpa", "sdpa with scale", "baddbmm", "einsum", "divided", "scaled before", "both sides", "soft cap", "normed"]


def transformed(how: str, width: int = 64, heads: int = 4, **options: Unpack[Options]) -> abcfx.Transformed:
    torch.manual_seed(3)
    model = Attention(width, heads, how).double()
    for parameter in model.parameters():  # biases and gains that count
        parameter.data += 0.05 * torch.randn_like(parameter)
    return abcfx.transform(model, IDS, base=Attention(16, 4, how).double(), **options)


CASES = [(how, 0.5, "symbolic") for how in HALF]
CASES += [("none", 0.25, "symbolic"), ("mup", 1.0, "symbolic"), ("sdpa", 0.5, "export"), ("baddbmm", 0.5, "export")]


@pytest.mark.parametrize(("how", "factor", "capture"), CASES)
def test_logits_get_the_factor_missing_to_one_over_head_dim(how: str, factor: float, capture: CaptureMethod) -> None:
    result = transformed(how, capture=capture)
    reference = Attention(64, 4, how, factors=(2.0, factor, 0.5)).double()
    reference.load_state_dict(unmarked(result.module.state_dict()))
    torch.testing.assert_close(result.module(IDS), reference(IDS), rtol=1e-12, atol=1e-12)
    assert {row["c"] for name, row in result.spec.items() if name in ("q.weight", "k.weight")} == {1.0}


def test_a_scale_that_is_a_tensor_is_read_if_it_can_be() -> None:
    (node,) = scales_in(transformed("tensor").module, "logits")
    assert node.args[1] == 0.5
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"(?s)scale of attention could not be found.*models.py"):
        transformed("unknown")
    assert transformed("unknown", parametrization=abcfx.Parametrization(attention="keep")).module is not None


def test_fixed_head_dim_changes_nothing_and_says_so() -> None:
    result = transformed("sdpa", heads=16)
    assert not scales_in(result.module, "logits")
    assert any("head_dim is the same" in note for note in result.notes)


class OfTheWidth(Attention):
    """Attention of a set transformer: heads of 4 features, logits divided by a power of the whole width."""

    def __init__(self, width: int, before: bool, power: float) -> None:
        super().__init__(width, width // 4, "")
        self.before, self.divisor = before, width**power

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if self.before:
            return ((q / self.divisor) @ k.transpose(-1, -2)).softmax(-1) @ v
        return (q @ k.transpose(-1, -2) / self.divisor).softmax(-1) @ v


@pytest.mark.parametrize(("power", "factor"), [(0.5, 2.0), (1.0, 4.0), (-0.5, 0.5), (0.0, None)])
@pytest.mark.parametrize("before", [True, False])
def test_logits_keep_their_size_where_head_dim_stays_and_the_model_divides_by_the_width(
    before: bool, power: float, factor: float | None
) -> None:
    result = abcfx.transform(OfTheWidth(64, before, power), IDS, base=OfTheWidth(16, before, power))
    dag, r, s = result.outcome.dag, result.solution.r, result.solution.s
    (softmax,) = (node for node in dag.order if dag.kind(node).name == "softmax")
    (logits,) = dag.predecessors(softmax)
    assert [node.args[1] for node in scales_in(result.module, "logits")] == ([] if factor is None else [factor])
    assert (r[logits], s[logits]) == (0.0, 0.0)
    assert {result.spec[f"{name}.weight"]["c"] for name in "qkv"} == {1.0}
    (note,) = (note for note in result.notes if note.startswith("attention"))
    assert "head_dim is the same" in note and ("keep their scale" in note) == (factor is None)


@pytest.mark.parametrize("how", ["sdpa with scale", "scaled before", "normed", "after a bias"])
def test_a_scale_absorbed_into_the_query_trains_the_same(how: str) -> None:
    options: Options = {"optimizer": "adamw", "weight_decay": 0.1, "lr": 0.02}
    inserted, absorbed = transformed(how, **options), transformed(how, **(options | {"apply": "absorb"}))
    assert not scales_in(absorbed.module)
    for left, right in zip(trained(inserted, IDS, 10), trained(absorbed, IDS, 10), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("capture", ["symbolic", "export", "record"])
def test_attention_module_is_scaled_inside(capture: CaptureMethod) -> None:
    torch.manual_seed(0)
    model, x = AttentionModule(64).double(), torch.randn(3, 5, 6, dtype=torch.float64)
    model.attention.in_proj_bias.data.normal_()
    result = abcfx.transform(model, x, base=AttentionModule(16).double(), capture=capture, optimizer="adam")
    reference = AttentionModule(64).double()
    reference.load_state_dict(copy.deepcopy(unmarked(result.module.state_dict())))
    with torch.no_grad():
        reference.attention.in_proj_weight[:64] *= 0.5
        reference.attention.in_proj_bias[:64] *= 0.5
        by_hand = reference.stem(x) * 2.0 + (reference.stem.bias * (1 - 2.0))  # the bias is added after the scale
        out = by_hand + reference.attention(by_hand, by_hand, by_hand, need_weights=False)[0]
        expected = reference.head(out * 0.5)
    for training in (True, False):
        torch.testing.assert_close(result.module.train(training)(x), expected, rtol=1e-10, atol=1e-10)
    assert list(unmarked(result.module.state_dict())) == list(model.state_dict())


def test_terms_that_are_summed_before_the_scale_hold_nothing_back() -> None:
    """Shaw and Transformer-XL: (q k + q p) / sqrt(d)."""

    class TwoTerms(Attention):
        def __init__(self, width: int) -> None:
            super().__init__(width, 4, "none")
            self.positions = nn.Embedding(5, width // 4)

        def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            p = self.positions(torch.arange(q.shape[-2]))
            logits = (q @ k.transpose(-1, -2) + q @ p.T) * q.shape[-1] ** -0.5
            return logits.softmax(-1) @ v

    spec = abcfx.transform(TwoTerms(64), IDS, base=TwoTerms(16)).spec
    assert [spec[f"{name}.weight"]["c"] for name in ("q", "k", "v", "emb")] == [1.0, 1.0, 1.0, 0.5]


class Caching(nn.Module):
    """A model that returns keys and values beside its result, to keep them for the next token."""

    def __init__(self, width: int, returns: bool) -> None:
        super().__init__()
        self.returns, self.tok, self.head = returns, nn.Embedding(11, width), nn.Linear(width, 11)
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, 8), nn.Linear(width, 8)

    def forward(self, tokens: torch.Tensor) -> object:
        x = self.tok(tokens)
        q = self.q(x).unflatten(-1, (-1, 8)).transpose(1, 2)
        k, v = self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
        y = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q)).transpose(1, 2).flatten(2)
        y = self.head(x + self.o(y))
        return (y, k, v) if self.returns else y


def test_cached_keys_and_values_are_no_outputs_of_the_model() -> None:
    tokens = torch.arange(10).view(2, 5)
    with_cache, without = (
        abcfx.transform(Caching(64, returns), (tokens,), base=Caching(16, returns)).spec for returns in (True, False)
    )
    for name, row in without.items():
        assert {key: with_cache[name][key] for key in ("role", "a", "b", "c", "g")} == {
            key: row[key] for key in ("role", "a", "b", "c", "g")
        }, name
    assert without["k.weight"]["role"] == "hidden"

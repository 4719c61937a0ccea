"""Rules of ops give the right roles and exponents to models that use these ops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from models import MLP
from typed import number, scales_in

import abcfx
from abcfx.capture.options import CaptureMethod

IDS = torch.arange(12).reshape(3, 4)


def test_a_region_of_its_own_is_paired_too() -> None:
    class Autocast(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.emb(x))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = (x @ x.T).softmax(-1) @ self.hidden[0](x)
            return self.head(x.float())

    result = abcfx.transform(Autocast(64), torch.randn(4, 20), base=Autocast(16), capture=abcfx.Capture(verify=False))
    assert result.spec["hidden.0.weight"]["role"] == "hidden"


class Recurrent(nn.Module):
    def __init__(self, width: int, kind: Callable[..., nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(6, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_carry_their_multiplier_in_init_and_rate(kind: Callable[..., nn.RNNBase]) -> None:
    """Effective exponents a + b, a + c of muP: 0 and 0 for the input weight of layer 0, 1/2 and 1 for the others."""
    torch.manual_seed(0)
    result = abcfx.transform(Recurrent(64, kind), torch.randn(3, 5, 6), base=Recurrent(16, kind), parametrization="ntk")
    found = {name: (row["a"], row["b"], row["c"]) for name, row in result.spec.items() if "weight" in name}
    assert found["rnn.weight_ih_l0"] == (0.0, 0.0, 0.0)
    assert {found[f"rnn.weight_{name}"] for name in ("hh_l0", "ih_l1", "hh_l1")} == {(0.0, 0.5, 1.0)}
    assert result.spec["rnn.bias_ih_l0"]["init_factor"] == 2.0  # torch lets it shrink with fan_in
    assert [node.name for node in scales_in(result.module)] == ["head_scale"]


def test_attention_module_with_growing_heads_and_with_growing_head_dim() -> None:
    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 2)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + self.attention(x, x, x, need_weights=False)[0])

    x = torch.randn(3, 5, 6)
    more = abcfx.transform(Attention(64, 8), x, base=Attention(16, 2)).spec
    wider = abcfx.transform(Attention(64, 2), x, base=Attention(16, 2)).spec
    kept = abcfx.transform(
        Attention(64, 2), x, base=Attention(16, 2), parametrization=abcfx.Parametrization(attention="keep")
    ).spec
    assert more["attention.in_proj_weight"]["c"] == wider["attention.in_proj_weight"]["c"] == 1.0
    assert kept["attention.in_proj_weight"]["c"] == 1.5  # 1/sqrt(head_dim) leaves logits that would grow at c = 1


class Branching(nn.Module):
    def __init__(self, width: int, body: Any) -> None:
        super().__init__()
        self.stem, self.fc, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.vector = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self, self.fc(F.relu(self.stem(x)))))


def _pair(body: Any, **options: Any) -> abcfx.Transformed:
    return abcfx.transform(Branching(64, body), torch.randn(3, 5, 6), base=Branching(16, body), **options)


@pytest.mark.parametrize("name", ["max", "topk", "sort", "median", "kthvalue"])
def test_results_taken_by_name_keep_what_is_upstream(name: str) -> None:
    arguments = {"topk": (2, 1), "kthvalue": (2, 1), "sort": (1,), "max": (1,), "median": (1,)}[name]
    spec = _pair(lambda self, h: getattr(h, name)(*arguments).values).spec
    assert spec["fc.weight"]["role"] == "hidden" and spec["fc.weight"]["c"] == 1.0


def test_logits_divided_by_head_dim_after_the_product_hold_nothing_back() -> None:
    def attend(scale: float) -> Any:
        def body(self: nn.Module, h: torch.Tensor) -> torch.Tensor:
            return ((h @ h.transpose(-1, -2)) * h.shape[-1] ** scale).softmax(-1) @ h

        return body

    assert _pair(attend(-1.0)).spec["fc.weight"]["c"] == 1.0
    slow = _pair(attend(-0.5), parametrization=abcfx.Parametrization(attention="keep"))
    assert slow.spec["fc.weight"]["c"] == 1.5
    assert any("is not divided by that dim" in note for note in slow.notes)


def test_a_vector_contracted_by_multiply_and_sum_is_a_layer() -> None:
    def body(self: Any, h: torch.Tensor) -> torch.Tensor:
        return (F.softmax((h * self.vector).sum(-1), -1)[..., None] * h).sum(1)

    spec = _pair(body).spec
    assert (spec["vector"]["role"], spec["vector"]["b"], spec["vector"]["c"]) == ("readout", 1.0, 1.0)
    assert spec["fc.weight"]["c"] == 1.0


def test_l2_normalised_vectors_have_small_entries_however_they_are_written() -> None:
    bodies = [
        lambda self, h: F.normalize(h, dim=-1),
        lambda self, h: h / h.norm(dim=-1, keepdim=True),
        lambda self, h: h / h.norm(dim=-1)[..., None],
        lambda self, h: h * h.pow(2).sum(-1, keepdim=True).rsqrt(),
    ]
    for body in bodies:
        solved = _pair(body).solution
        assert [s for node, s in solved.s.items() if node not in ("stem", "fc", "head")].count(0.5) == 1


def test_depthwise_convolution_sends_back_from_its_own_channel_only() -> None:
    class Depthwise(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, 2, 1)
            self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.relu(self.mix(F.relu(self.stem(x)))))

    x = torch.randn(3, 3, 8, 8)
    spec = abcfx.transform(Depthwise(64), x, base=Depthwise(16), optimizer="sgd", apply="absorb").spec
    assert (spec["stem.weight"]["c"], spec["mix.weight"]["c"]) == (-1.0, -1.0)
    assert (spec["stem.weight"]["g"], spec["mix.weight"]["g"]) == (1.0, 1.0)
    assert abcfx.transform(Depthwise(64), x).spec["mix.weight"]["role"] == "embedding"


def test_an_output_that_grows_with_width_is_noted() -> None:
    assert not any("at init, this output of the model grows" in note for note in _pair(lambda self, h: h).notes)

    class Dot(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.left, self.right = nn.Embedding(9, width), nn.Embedding(9, width)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return (self.left(ids) * self.right(ids.flip(0))).sum(-1)

    notes = abcfx.transform(Dot(64), IDS[0], base=Dot(16)).notes
    assert any("at init, this output of the model grows" in note for note in notes)


@pytest.mark.parametrize("capture", ["auto", "export"])
def test_embedding_bag_with_weights_for_each_row(capture: CaptureMethod) -> None:
    class Bag(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(9, width, mode="sum")
            self.gate, self.head = nn.Linear(4, 4), nn.Linear(width, 2)

        def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.bag(ids, per_sample_weights=self.gate(x)))

    args = (IDS % 9, torch.randn(3, 4))
    model, base = Bag(64), Bag(16)
    result = abcfx.transform(model, args, base=base, capture=capture)
    assert result.spec["gate.weight"]["role"] == "scalar" and result.spec["bag.weight"]["role"] == "embedding"
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_(result.module.get_parameter(name) * number(result.spec[name]["multiplier"]))
    torch.testing.assert_close(result.module(*args), expected(*args))


@pytest.mark.parametrize("capture", ["symbolic", "export"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_the_gain_of_a_batch_norm_learns_however_it_is_captured(norm: type[nn.Module], capture: CaptureMethod) -> None:
    """F.batch_norm takes its gain after the running statistics, aten.batch_norm before them."""

    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(3, width, 3), norm(width, affine=True), nn.ReLU(), nn.Conv1d(width, 2, 3))

    result = abcfx.transform(build(16), torch.randn(4, 3, 9), base=build(8), capture=capture)
    assert {result.spec[name]["role"] for name in ("1.weight", "1.bias")} == {"vector"}
    assert result.spec["0.weight"]["void"] is False  # its bias keeps a multiplier from being void


class SeparateWeights(nn.Module):
    """multi_head_attention_forward with an empty fused weight beside the separate ones, as WavLM calls it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        return F.multi_head_attention_forward(
            x, x, x, x.shape[-1], 4, torch.empty([0]), bias, None, None, False, 0.0, self.out.weight, self.out.bias,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )[0]  # fmt: skip


def test_separate_weights_of_functional_attention_are_seen() -> None:
    result = abcfx.transform(SeparateWeights(16), torch.randn(5, 2, 16), capture="symbolic")
    assert all(result.spec[f"{name}.weight"]["role"] != "plain" for name in "qkv")


class LearnedQuery(nn.Module):
    """A model that pools tokens by attention with a learned query."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.query, self.head = (
            nn.Embedding(9, width),
            nn.Parameter(torch.randn(1, width)),
            nn.Linear(width, 4),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        return self.head(F.scaled_dot_product_attention(self.query.expand(x.shape[0], 1, -1), x, x))


def test_a_learned_query_is_a_layer_on_the_keys() -> None:
    """W = query with e_in = 1 and the model's own d^-1/2: b = 1/2 makes a router of it, c = 1 - 1/2."""
    result = abcfx.transform(LearnedQuery(32), torch.zeros(2, 5, dtype=torch.long), base=LearnedQuery(8))
    row = result.spec["query"]
    assert (row["role"], row["a"], row["b"], row["c"]) == ("readout", 0.0, 0.5, 0.5)
    assert result.spec["tok.weight"]["c"] == 0.5  # the logits do not slow down what is upstream


class OwnFactors(nn.Module):
    """A model that applies factors itself: before a bottleneck, and before a norm that divides them out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.tok, self.router = width, nn.Embedding(9, width), nn.Linear(width, 3, bias=False)
        self.mixed, self.norm = nn.Linear(width, width, bias=False), nn.LayerNorm(width)
        self.gate, self.head = nn.Linear(3, width, bias=False), nn.Linear(width, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        gate = self.gate(torch.tanh(self.router(x / self.width)))
        return self.head(gate * self.norm(self.mixed(x) * self.width**-0.5))


def test_a_models_own_factor_before_a_bottleneck_and_before_a_norm_takes_the_place_of_a() -> None:
    """So that what it multiplies neither vanishes with width (the router) nor falls below the norm's eps."""
    spec = abcfx.transform(OwnFactors(32), torch.zeros(2, 5, dtype=torch.long), base=OwnFactors(8)).spec
    assert [(spec[n]["a"], spec[n]["b"], spec[n]["c"]) for n in ("router.weight", "mixed.weight")] == [
        (0.0, 0.0, 0.0),
        (0.0, 0.0, 0.5),
    ]


class TiedBottleneck(nn.Module):
    """A model that uses one projection to go up and, transposed, to go down, before a head of finite rank."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.up, self.head = nn.Embedding(9, 4), nn.Linear(4, width, bias=False), nn.Linear(4, 9)
        self.hidden = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(F.linear(self.hidden(self.up(self.tok(tokens))), self.up.weight.T))


def test_what_contracts_a_tied_table_needs_a_plus_b_of_e_in_also_before_other_layers() -> None:
    result = abcfx.transform(TiedBottleneck(32), torch.zeros(2, 5, dtype=torch.long), base=TiedBottleneck(8))
    row = result.spec["up.weight"]
    assert isinstance(row["a"], dict)
    assert (sorted(row["a"].values()), row["b"], row["c"]) == ([-0.5, 0.5], 0.5, 0.5)


def test_an_output_changes_by_no_more_than_one_although_it_is_larger() -> None:
    """A weight made by a layer: sum over width of products without 1/width, of size m^1/2 at init."""

    class Hyper(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.tok, self.maker = nn.Embedding(9, width), nn.Linear(5, width)

        def forward(self, tokens: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
            return self.tok(tokens) @ self.maker(task)

    inputs = (torch.zeros(2, 5, dtype=torch.long), torch.randn(5))
    result = abcfx.transform(Hyper(32), inputs, base=Hyper(8))
    (output,) = [data for _, data in result.dag.nodes.items() if data["output"]]
    assert (output["s"], output["r"]) == (-0.5, 0.0)


@pytest.mark.parametrize("capture", ["symbolic", "export", "record_values"])
def test_as_tensor_of_an_activation_keeps_what_is_upstream(capture: CaptureMethod) -> None:
    class Converted(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.as_tensor(F.relu(self.emb(x))))

    result = abcfx.transform(Converted(64), torch.randn(4, 20), base=Converted(16), capture=capture)
    assert result.spec["emb.weight"]["role"] == "embedding"
    assert result.spec["head.weight"]["role"] == "readout"

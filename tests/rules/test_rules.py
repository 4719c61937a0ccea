"""Rules of op families, seen through `transform`: roles and exponents of models that use them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from models import MLP

import abcfx
from abcfx.passes import scale_nodes

IDS = torch.arange(12).reshape(3, 4)


class Clipped(torch.autograd.Function):
    """A sigmoid with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].clamp(-1, 1)


class Opaque(torch.autograd.Function):
    """Its forward looks at its context, so that it cannot be traced."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone() if ctx.needs_input_grad[0] else x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].clamp(-1e-3, 1e-3)


class WithFunction(MLP):
    function: Any = Clipped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function.apply(self.emb(x)))


class WithOpaque(WithFunction):
    function = Opaque


def test_a_custom_autograd_function_is_what_its_forward_does() -> None:
    result = abcfx.transform(WithFunction(32), torch.randn(4, 20), base=WithFunction(8))
    assert result.header.captured == "record" and result.spec["emb.weight"]["c"] == 0.5
    assert "pointwise" in {data["kind"].name for _, data in result.dag.nodes.items()}
    assert any("Clipped has a gradient of its own" in note for note in result.notes)


def test_a_custom_autograd_function_takes_a_rule_by_its_class() -> None:
    x = torch.randn(4, 20)
    with pytest.raises(abcfx.errors.UnknownOpError, match=r"register_rule\(Opaque\)"):
        abcfx.transform(WithOpaque(16), x)
    abcfx.rules.register_rule(Opaque)(lambda op, x: op.same(x))
    result = abcfx.transform(WithOpaque(16), x)
    assert result.header.captured == "record" and result.spec["emb.weight"]["role"] == "embedding"


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
    def __init__(self, width: int, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(6, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_carry_their_multiplier_in_init_and_rate(kind: type[nn.RNNBase]) -> None:
    """Effective exponents a + b, a + c of muP: 0 and 0 for the input weight of layer 0, 1/2 and 1 for the others."""
    torch.manual_seed(0)
    result = abcfx.transform(Recurrent(64, kind), torch.randn(3, 5, 6), base=Recurrent(16, kind), parametrization="ntk")
    found = {name: (row["a"], row["b"], row["c"]) for name, row in result.spec.items() if "weight" in name}
    assert found["rnn.weight_ih_l0"] == (0.0, 0.0, 0.0)
    assert {found[f"rnn.weight_{name}"] for name in ("hh_l0", "ih_l1", "hh_l1")} == {(0.0, 0.5, 1.0)}
    assert result.spec["rnn.bias_ih_l0"]["init_factor"] == 2.0  # torch lets it shrink with fan_in
    assert [node.name for node in scale_nodes(result.module.graph)] == ["head_scale"]


class Reparametrized(nn.Module):
    def __init__(self, width: int, wrap: Any) -> None:
        super().__init__()
        self.stem, self.fc, self.head = nn.Linear(6, width), wrap(nn.Linear(width, width)), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc(F.relu(self.stem(x)))))


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_reparametrized_weight_is_a_layer(wrap: str) -> None:
    wrapper = getattr(nn.utils.parametrizations, wrap)
    result = abcfx.transform(Reparametrized(64, wrapper), torch.randn(3, 6), base=Reparametrized(16, wrapper))
    roles = {name: row["role"] for name, row in result.spec.items() if name.startswith("fc.parametrizations")}
    assert sorted(roles.values()) == (["hidden", "vector"] if wrap == "weight_norm" else ["hidden"])
    assert "plain" not in {row["role"] for row in result.spec.values()}


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


class Computed(nn.Module):
    """A hidden layer whose weight is computed from parameters in forward."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.width = how, width
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.w = nn.Parameter(torch.randn(width, width) * (1.0 if how == "equalized" else width**-0.5))
        self.gain = nn.Parameter(torch.ones(width, 1))
        self.down, self.up = nn.Parameter(torch.randn(4, width) * width**-0.5), nn.Parameter(torch.zeros(width, 4))
        self.register_buffer("mask", torch.ones(width, width))

    def weight(self) -> torch.Tensor:
        w = self.w
        return {
            "masked": lambda: w * self.mask,
            "gained": lambda: w * self.gain,
            "merged": lambda: w + self.up @ self.down,
            "standardised": lambda: (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5),
            "symmetric": lambda: (w + w.T) / 2,
            "straight through": lambda: w + (torch.sign(w) - w).detach(),
            "viewed": lambda: w.view(self.width, 1, self.width).squeeze(1),
            "equalized": lambda: w * self.width**-0.5,
        }[self.how]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(F.linear(F.relu(self.stem(x)), self.weight())))


HOWS = ["masked", "gained", "merged", "standardised", "symmetric", "straight through", "viewed", "equalized"]


@pytest.mark.parametrize("how", HOWS)
def test_a_weight_computed_from_parameters_is_a_layer(how: str) -> None:
    x = torch.randn(3, 6)
    spec = abcfx.transform(Computed(64, how), x, base=Computed(16, how)).spec
    own = 0.5 if how == "equalized" else 0.0  # d^-1/2 in the model stands for a multiplier
    assert spec["w"]["role"] == "hidden" and spec["w"]["init_factor"] == 1.0
    assert (spec["w"]["b"], spec["w"]["c"]) == (0.5 - own, 1.0 - own)
    assert (spec["stem.weight"]["c"], spec["head.weight"]["c"]) == (0.5, 0.5)
    if how == "gained":
        assert (spec["gain"]["role"], spec["gain"]["c"]) == ("vector", 0.0)
    if how == "merged":
        assert (spec["up"]["a"] + spec["up"]["c"], spec["down"]["c"]) == (0.0, 1.0)
    assert abcfx.transform(Computed(64, how), x).spec["w"]["role"] == "hidden"


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
    assert any("not divided by it" in note for note in slow.notes)


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
    assert not any("grows at init" in note for note in _pair(lambda self, h: h).notes)

    class Dot(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.left, self.right = nn.Embedding(9, width), nn.Embedding(9, width)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return (self.left(ids) * self.right(ids.flip(0))).sum(-1)

    assert any("grows at init" in note for note in abcfx.transform(Dot(64), IDS[0], base=Dot(16)).notes)


@pytest.mark.parametrize("capture", ["auto", "export"])
def test_embedding_bag_with_weights_for_each_row(capture: str) -> None:
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
            parameter.copy_(result.module.get_parameter(name) * result.spec[name]["multiplier"])
    torch.testing.assert_close(result.module(*args), expected(*args))


def test_a_module_with_a_rule_of_its_own_stays_one_node() -> None:
    class Swish(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.beta = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(self.beta * x)

    @abcfx.rules.register_rule(Swish)
    def swish(op: Any, module: nn.Module, x: Any) -> Any:
        return op.product(op.same(x), op.parameter(module, "beta"))

    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), Swish(width), nn.Linear(width, 2))

    result = abcfx.transform(make(64), base=make(16))
    assert "1" in [node.target for node in result.module.graph.nodes if node.op == "call_module"]
    assert "pointwise" not in {data["kind"].name for _, data in result.dag.nodes.items()}
    assert result.spec["1.beta"]["role"] == "vector"


def test_arguments_by_keyword_are_put_in_their_place() -> None:
    class Keywords(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(6, width)), nn.Parameter(torch.zeros(width))
            self.head = nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.addmm(self.b, mat1=x, mat2=self.w)
            scores = torch.zeros(1, 1, 1).baddbmm(batch1=h[None], batch2=h.T[None], beta=0.0, alpha=0.1)
            return self.head(input=scores[0].softmax(-1) @ h)

    spec = abcfx.transform(Keywords(64), torch.randn(3, 6), base=Keywords(16)).spec
    assert (spec["w"]["role"], spec["b"]["role"], spec["head.weight"]["role"]) == ("embedding", "vector", "readout")


class Numbers(torch.autograd.Function):
    """Its forward has numbers of its own, at places where the call has none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.tanh(0.79788456 * x))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class WithNumbers(WithFunction):
    function = Numbers


def test_numbers_inside_a_custom_function_are_not_those_of_its_call() -> None:
    result = abcfx.transform(WithNumbers(32), torch.randn(4, 20), base=WithNumbers(8))
    assert {row["c"] for row in result.spec.values()} == {0.0, 0.5}


@pytest.mark.parametrize("capture", ["symbolic", "export"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_the_gain_of_a_batch_norm_learns_however_it_is_captured(norm: type[nn.Module], capture: str) -> None:
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
    """Pools tokens by the attention of a query that is a parameter itself."""

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
    """Numbers of the model's own: on the input of a bottleneck, and before a norm that divides them out again."""

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
        (0.0, -0.5, 0.0),
        (0.0, 0.0, 0.5),
    ]


class TiedBottleneck(nn.Module):
    """A projection used up and, transposed, down again before a head of finite rank."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.up, self.head = nn.Embedding(9, 4), nn.Linear(4, width, bias=False), nn.Linear(4, 9)
        self.hidden = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(F.linear(self.hidden(self.up(self.tok(tokens))), self.up.weight.T))


def test_what_contracts_a_tied_table_needs_a_plus_b_of_e_in_also_before_other_layers() -> None:
    result = abcfx.transform(TiedBottleneck(32), torch.zeros(2, 5, dtype=torch.long), base=TiedBottleneck(8))
    row = result.spec["up.weight"]
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


class Normalised(nn.Module):
    """A weight that forward divides by a norm of itself, as first layer, hidden layer and readout."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        layers = [nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)]
        self.how = how
        if how == "torch":
            layers = [torch.nn.utils.parametrizations.weight_norm(layer) for layer in layers]
        self.first, self.hidden, self.last = layers

    def apply_layer(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if self.how == "torch":
            return layer(x)
        if self.how == "cosine" and layer is self.last:
            return F.linear(F.normalize(x, dim=-1), F.normalize(layer.weight, dim=-1))
        return F.linear(x, layer.weight / layer.weight.norm(dim=1, keepdim=True), layer.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.apply_layer(self.first, x)
        return h, self.apply_layer(self.last, F.gelu(self.apply_layer(self.hidden, F.gelu(h))))


@pytest.mark.parametrize("how", ["torch", "by hand", "cosine"])
def test_a_weight_that_is_normalised_in_forward_keeps_its_init_and_takes_no_factor(how: str) -> None:
    torch.manual_seed(0)
    x, model, base = torch.randn(16, 5), Normalised(256, how), Normalised(16, how)
    inserted, absorbed = (abcfx.transform(model, x, base=base, apply=scales) for scales in ("insert", "absorb"))
    for left, right in zip(inserted.module(x), absorbed.module(x), strict=True):
        torch.testing.assert_close(left, right)
    sizes = [float(m(x)[0].detach().square().mean().sqrt()) for m in (base, inserted.module)]
    assert 0.6 < sizes[1] / sizes[0] < 1.6  # no multiplier against an init that has no effect
    name = "first.parametrizations.weight.original1" if how == "torch" else "first.weight"
    assert inserted.spec[name]["init_factor"] == 1.0
    if how == "cosine":  # a cosine is O(1) by itself
        assert inserted.spec["last.weight"]["multiplier"] == 1.0
        inserted.fold()
    else:
        with pytest.raises(abcfx.errors.InvalidInputError, match=r"multiplier of last.* cannot be put into weights"):
            inserted.fold()

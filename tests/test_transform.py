"""`transform` end to end on small models: numbers, overrides, errors, what it leaves alone."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import networkx as nx
import pytest
import torch
import torch.fx as fx
import torch.nn as nn
import torch.nn.functional as F

import abcfx
from abcfx.passes import PassError, Scale, insert_scales, scale_nodes


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.emb = nn.Linear(20, width, bias=bias)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(hidden))
        self.head = nn.Linear(width, 10, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.emb(x))
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)


class TiedLM(nn.Module):
    """A residual language model with a tied head, one block called twice and a hand-written RMS norm."""

    def __init__(self, width: int, vocab: int = 12) -> None:
        super().__init__()
        self.tok = nn.Embedding(vocab, width)
        self.gain = nn.Parameter(torch.ones(width))
        self.block = nn.Sequential(nn.Linear(width, 2 * width, bias=False), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tok.weight

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids)
        for _ in range(2):
            x = x + self.block(self.norm(x))
        return self.head(self.norm(x))


IDS = torch.arange(12).reshape(3, 4)


def spec_of(result: abcfx.Transformed, key: str) -> dict[str, Any]:
    return {name: row[key] for name, row in result.spec.items()}


def test_three_layer_mlp_in_absolute_widths() -> None:
    """The figures of the predecessor's verification document: d = 128, lr = 0.01."""
    result = abcfx.transform(MLP(128, bias=False), lr=0.01)
    assert list(spec_of(result, "multiplier").values()) == pytest.approx([11.3137, 1.0, 0.0884], abs=5e-5)
    assert list(spec_of(result, "std").values()) == pytest.approx([0.0884] * 3, abs=5e-5)
    assert list(spec_of(result, "lr").values()) == pytest.approx([0.000884, 0.000078, 0.000884], abs=5e-7)
    for name, parameter in result.module.named_parameters():
        assert float(parameter.detach().std()) == pytest.approx(result.spec[name]["std"], rel=0.15)


def test_hidden_rate_halves_exactly_at_each_doubling() -> None:
    rates = [abcfx.transform(MLP(d), lr=0.01).spec["hidden.0.weight"]["lr"] for d in (64, 128, 256, 512)]
    assert [a / b for a, b in itertools.pairwise(rates)] == [2.0] * 3


def test_each_layer_has_its_own_rate_under_its_own_alignment() -> None:
    alignment = {"hidden.0": (0.8, 0.3, 0.6), "hidden.1": (1.0, 0.5, 1.0), "hidden.2": (0.5, 0.2, 0.3)}
    c = spec_of(abcfx.transform(MLP(64, hidden=3, bias=False), alignment=alignment), "c")
    assert list(c.values()) == pytest.approx([0.5, 0.8, 1.0, 0.5, 0.5])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("parametrization", ["mup", "sp", "ntk", "mfp"])
@pytest.mark.parametrize("alignment", ["full", "no", "worst"])
def test_a_chain_has_the_exponents_of_the_named_table(optimizer: str, parametrization: str, alignment: str) -> None:
    from pathlib import Path

    rows = json.loads((Path(__file__).parent / "data" / "named_parametrizations.json").read_text())["rows"]
    row = next(
        r
        for r in rows
        if (r["parametrization"].lower(), r["optimizer"], r["alignment"]) == (parametrization, optimizer, alignment)
    )
    options: dict[str, Any] = {"parametrization": parametrization, "optimizer": optimizer, "alignment": alignment}
    result = abcfx.transform(MLP(32, hidden=3, bias=False), **options)
    expected = [row["c"][0], *[row["c"][1]] * 3, row["c"][2]]
    assert list(spec_of(result, "c").values()) == pytest.approx(expected)
    assert next(iter(spec_of(result, "g").values())) == pytest.approx(row["grad_exponent_g_at_init"][0])


def test_result_unpacks_and_the_groups_train_the_model() -> None:
    torch.manual_seed(0)
    module, groups = abcfx.transform(MLP(64), base=MLP(16), lr=1e-2, weight_decay=0.1, optimizer="adamw")
    assert isinstance(module, fx.GraphModule)
    optimizer = torch.optim.AdamW(groups)
    x, y = torch.randn(32, 20), torch.randint(0, 10, (32,))
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(module(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    for group in groups:
        assert group["lr"] * group["weight_decay"] == pytest.approx(1e-3)


def test_spec_is_json_and_dag_is_networkx() -> None:
    result = abcfx.transform(TiedLM(32), IDS, base=TiedLM(8))
    assert json.loads(json.dumps(result.spec)) == result.spec
    assert nx.is_directed_acyclic_graph(result.dag)
    required = {"role", "why", "growth", "width", "a", "b", "c", "multiplier", "std", "lr", "eps", "weight_decay", "r"}
    assert required | {"binding"} <= set(result.spec["tok.weight"])


def test_tied_parameter_has_one_rate_and_a_multiplier_for_each_use() -> None:
    row = abcfx.transform(TiedLM(32), IDS, base=TiedLM(8)).spec["tok.weight"]
    assert row["a"] == {"tok": -0.5, "head": 0.5} and row["b"] == 0.5 and row["c"] == 0.5
    assert row["multiplier"] == {"tok": 2.0, "head": 0.5}


def test_module_called_twice_is_one_rate_held_by_both_uses() -> None:
    result = abcfx.transform(TiedLM(32), IDS, base=TiedLM(8))
    assert result.spec["block.0.weight"]["c"] == 1.0
    assert {"block.0", "block.0#2"} <= set(result.dag.nodes)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion", "adafactor"])
def test_hand_written_norm_is_one_norm(optimizer: str) -> None:
    result = abcfx.transform(TiedLM(32), IDS, base=TiedLM(8), optimizer=optimizer)
    kinds = [data["kind"].name for _, data in result.dag.nodes.items()]
    assert kinds.count("norm") == 3 and "power" not in kinds and "reduce" not in kinds


def test_multiplier_before_a_norm_is_void_and_makes_no_node() -> None:
    class Normed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.emb = nn.Linear(6, width, bias=False)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.emb(x)))

    result = abcfx.transform(Normed(64), torch.randn(3, 6), base=Normed(16))
    assert result.spec["emb.weight"]["void"] and result.spec["emb.weight"]["multiplier"] == 1.0
    assert [node.name for node in scale_nodes(result.module.graph)] == ["head_scale"]
    assert abcfx.transform(Normed(64), torch.randn(3, 6), base=Normed(16)).spec["emb.weight"]["c"] == 0.0


def test_the_model_given_is_not_touched() -> None:
    model = MLP(64)
    before = copy.deepcopy(model.state_dict())
    abcfx.transform(model, torch.randn(3, 20, generator=torch.Generator().manual_seed(0)), base=MLP(16).eval())
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_failure_leaves_the_model_untouched_even_in_place() -> None:
    model = MLP(64)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(abcfx.InfeasibleError, match="head"):
        abcfx.transform(model, base=MLP(16), exponents={"head": (0.5, 0.5, 0.0)}, scales="absorb", inplace=True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_absorb_in_place_keeps_the_object_and_makes_no_node() -> None:
    torch.manual_seed(0)
    model, base, x = MLP(64), MLP(16), torch.randn(3, 20)
    inserted = abcfx.transform(model, x, base=base)
    absorbed = abcfx.transform(model, x, base=base, scales="absorb", inplace=True)
    assert absorbed.module is model
    torch.testing.assert_close(model(x), inserted.module(x))
    with pytest.raises(abcfx.InvalidInputError, match="scales='absorb'"):
        abcfx.transform(model, x, base=base, inplace=True)


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95)),
    "adam": lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.95)),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_inserted_and_absorbed_scales_train_along_one_trajectory(optimizer: str, decay: float) -> None:
    torch.manual_seed(0)
    model, base = TiedLM(32).double(), TiedLM(8).double()
    losses = {}
    for scales in ("insert", "absorb"):
        result = abcfx.transform(
            model, IDS, base=base, scales=scales, optimizer=optimizer, weight_decay=decay, lr=0.02, eps=1e-4
        )
        stepper = OPTIMIZERS[optimizer](result.param_groups)
        losses[scales] = []
        for _ in range(20):
            loss = F.cross_entropy(result.module(IDS).flatten(0, 1), IDS.flatten())
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            losses[scales].append(loss.item())
    assert losses["absorb"] == pytest.approx(losses["insert"], rel=1e-12)
    assert len(set(losses["insert"])) == 20


def test_dropout_and_batch_norm_follow_the_mode() -> None:
    class Noisy(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.fc, self.bn, self.head = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.dropout(self.bn(self.fc(x)).relu(), 0.5, self.training))

    x = torch.randn(16, 6)
    model = Noisy(32)
    module = abcfx.transform(model, x, base=Noisy(32)).module
    for mode in (True, False):
        torch.manual_seed(1)
        expected = model.train(mode)(x)
        torch.manual_seed(1)
        assert torch.equal(module.train(mode)(x), expected)
    wide = abcfx.transform(Noisy(64), x, base=Noisy(32)).module
    assert len(scale_nodes(wide.graph)) == len(scale_nodes(wide.eval_graph)) > 0


def test_overrides_by_pattern() -> None:
    model = MLP(64, hidden=3)
    result = abcfx.transform(model, base=MLP(16, hidden=3), roles={"hidden.1": "plain"}, lr=0.1)
    plain = result.spec["hidden.1.weight"]
    assert plain["role"] == "plain" and plain["lr"] == 0.1 and plain["init_factor"] == 1.0 and plain["c"] == 0.0
    listed = abcfx.transform(MLP(64), base=MLP(16), exponents=[(0, 0), (0.5, 0), (1, 0)])
    assert [listed.spec[f"{n}.weight"]["c"] for n in ("emb", "hidden.0", "head")] == pytest.approx([0, 0.5, 0])
    by_role = abcfx.transform(MLP(64), base=MLP(16), lr={"embedding": 0.2, "default": 0.1}, std={"readout": 0.5})
    assert by_role.spec["emb.weight"]["lr"] == pytest.approx(0.2 * 4**-0.5)
    assert by_role.spec["head.bias"]["lr"] == 0.1
    assert by_role.spec["head.weight"]["init_factor"] == pytest.approx(0.5)


@pytest.mark.parametrize("argument", ["roles", "exponents", "alignment"])
def test_a_pattern_that_matches_nothing_raises(argument: str) -> None:
    value: Any = {"roles": "hidden", "exponents": (0.0, 0.5), "alignment": "no"}[argument]
    with pytest.raises(abcfx.InvalidInputError, match=f"{argument}: the pattern 'hiden.0'.*\n.*hidden.0"):
        abcfx.transform(MLP(32), **{argument: {"hiden.0": value}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adagrad"}, "adagrad.*\n.*adafactor"),
        ({"parametrization": "mu"}, "mu.*sp, ntk, mup"),
        ({"alignment": "some"}, "some.*full, no, worst"),
        ({"lr": -1.0}, "positive"),
        ({"lr": {"embeding": 1.0}}, "embeding"),
        ({"scales": "inline"}, "insert, absorb, off"),
        ({"groups": "one"}, "merged"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"roles": {"emb": "input"}}, "input.*embedding"),
        ({"exponents": {"hidden.0": (0.0, 0.7)}}, "hidden.0.*0.5"),
        ({"exponents": [(0, 0)]}, "1 tuples were given for 3 layers"),
        ({"base": 64}, "function that builds"),
    ],
)
def test_bad_input_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(abcfx.InvalidInputError, match=message):
        abcfx.transform(MLP(32), **options)


def test_base_of_another_architecture_is_refused_at_the_first_difference() -> None:
    with pytest.raises(abcfx.PairingError, match="hidden"):
        abcfx.transform(MLP(64, hidden=2), base=MLP(16, hidden=1))
    with pytest.raises(abcfx.PairingError, match="ReLU"):
        abcfx.transform(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), base=nn.Sequential(nn.Linear(4, 4), nn.GELU()))


def test_an_op_without_a_rule_is_named_with_its_line_and_the_fix() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(self.fc(x))

    with pytest.raises(abcfx.UnknownOpError, match=r"(?s)i0.*test_transform.py.*torch.special.i0.*register_rule"):
        abcfx.transform(Odd())


def test_a_registered_rule_is_used() -> None:
    @abcfx.register_rule("special_i0e")
    def i0e(op: Any, x: Any) -> Any:
        return op.pointwise(x)

    class Odd(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.special.i0e(self.emb(x)))

    kinds = [data["kind"].name for _, data in abcfx.transform(Odd(16)).dag.nodes.items()]
    assert "pointwise" in kinds


def test_transforming_twice_is_refused() -> None:
    result = abcfx.transform(MLP(64), base=MLP(16))
    with pytest.raises(abcfx.InvalidInputError, match="transformed before"):
        abcfx.transform(result.module, base=MLP(16))


def test_frozen_parameters_are_in_no_group_and_hold_no_rate() -> None:
    model = MLP(64)
    model.emb.requires_grad_(False)
    result = abcfx.transform(model, base=MLP(16))
    names = [name for group in result.param_groups for name in group["param_names"]]
    assert "emb.weight" not in names and len(names) == 4
    assert "emb.weight" not in result.solution.solution.c


def test_scale_nodes_carry_provenance_and_stand_before_the_bias() -> None:
    result = abcfx.transform(MLP(64), base=MLP(16))
    first = scale_nodes(result.module.graph)[0]
    assert first.meta["abcfx"].label == "emb" and first.meta["abcfx"].formula == "m^--0.5".replace("--", "")
    x = torch.zeros(2, 20)
    torch.testing.assert_close(result.module(x), _by_hand(result, x))


def _by_hand(result: abcfx.Transformed, x: torch.Tensor) -> torch.Tensor:
    p, k = dict(result.module.named_parameters()), spec_of(result, "multiplier")
    for name in ("emb", "hidden.0", "head"):
        x = k[f"{name}.weight"] * (x @ p[f"{name}.weight"].T) + p[f"{name}.bias"]
        x = x if name == "head" else F.relu(x)
    return x


def test_insert_scales_refuses_a_foreign_operand_and_a_second_scale() -> None:
    gm = fx.symbolic_trace(MLP(8))
    nodes = {node.name: node for node in gm.graph.nodes}
    code = gm.code
    with pytest.raises(PassError, match="not an argument"):
        insert_scales(gm, [Scale(nodes["head"], nodes["x"], 2.0)])
    assert gm.code == code and not insert_scales(gm, [Scale(nodes["head"], nodes["relu_1"], 1.0)]).modified
    assert insert_scales(gm, [Scale(nodes["head"], nodes["relu_1"], 2.0, "head")]).touched == ("head_scale",)
    with pytest.raises(PassError, match="twice"):
        insert_scales(gm, [Scale(nodes["head"], nodes["head"].args[0], 2.0, "head")])


def test_vectors_follow_the_gradient_under_sgd() -> None:
    c = spec_of(abcfx.transform(MLP(64), base=MLP(16), optimizer="sgd"), "c")
    assert c["emb.bias"] == c["hidden.0.bias"] == -1.0 and c["head.bias"] == 0.0
    standard = abcfx.transform(MLP(64), base=MLP(16), optimizer="sgd", parametrization="sp")
    assert spec_of(standard, "c")["emb.bias"] == -0.5


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
    assert result.header["captured"] == "record" and result.spec["emb.weight"]["c"] == 0.5
    assert "pointwise" in {data["kind"].name for _, data in result.dag.nodes.items()}
    assert any("Clipped has a gradient of its own" in note for note in result.notes)


def test_a_custom_autograd_function_takes_a_rule_by_its_class() -> None:
    x = torch.randn(4, 20)
    with pytest.raises(abcfx.UnknownOpError, match=r"register_rule\(Opaque\)"):
        abcfx.transform(WithOpaque(16), x)
    abcfx.register_rule(Opaque)(lambda op, x: op.same(x))
    result = abcfx.transform(WithOpaque(16), x)
    assert result.header["captured"] == "record" and result.spec["emb.weight"]["role"] == "embedding"


def test_a_region_of_its_own_is_paired_too() -> None:
    class Autocast(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.emb(x))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = (x @ x.T).softmax(-1) @ self.hidden[0](x)
            return self.head(x.float())

    result = abcfx.transform(Autocast(64), torch.randn(4, 20), base=Autocast(16), verify=False)
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
    assert more["attention.in_proj_weight"]["c"] == 1.0
    assert wider["attention.in_proj_weight"]["c"] == 1.5  # 1/sqrt(head_dim) leaves logits that would grow at c = 1


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
    slow = _pair(attend(-0.5))
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
    spec = abcfx.transform(Depthwise(64), x, base=Depthwise(16), optimizer="sgd", scales="absorb").spec
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

    @abcfx.register_rule(Swish)
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

"""`transform` gives the right numbers, takes overrides, explains errors, and leaves the user's model alone."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from typing import Any, cast

import networkx as nx
import pytest
import torch
import torch.fx as fx
import torch.nn as nn
import torch.nn.functional as F
from models import MLP
from typed import given, scales_in

import abcfx
from abcfx.capture import EmittedModule
from abcfx.passes import PassError, ScaleInsertion, insert_scales, scale_nodes
from abcfx.pipeline import TransformOptions
from abcfx.plan.options import ApplyMode, DecayMode
from abcfx.plan.spec import Spec


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
FREE = cast("DecayMode", "free")


def spec_of(result: abcfx.Transformed, key: str) -> dict[str, Any]:
    return {name: dict(row)[key] for name, row in result.spec.items()}


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
    c = spec_of(
        abcfx.transform(MLP(64, hidden=3, bias=False), parametrization=abcfx.Parametrization(alignment=alignment)), "c"
    )
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
    asked = abcfx.Parametrization(table=parametrization, alignment=alignment)
    result = abcfx.transform(MLP(32, hidden=3, bias=False), optimizer=optimizer, parametrization=asked)
    expected = [row["c"][0], *[row["c"][1]] * 3, row["c"][2]]
    assert list(spec_of(result, "c").values()) == pytest.approx(expected)
    assert next(iter(spec_of(result, "g").values())) == pytest.approx(row["grad_exponent_g_at_init"][0])


def test_result_unpacks_and_the_groups_train_the_model() -> None:
    torch.manual_seed(0)
    result = abcfx.transform(MLP(64), base=MLP(16), lr=1e-2, weight_decay=0.1, optimizer="adamw")
    module, groups = result
    assert isinstance(module, fx.GraphModule) and isinstance(groups, list)
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
    assert Spec.from_json(result.spec.to_json()) == result.spec
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
    assert [node.name for node in scales_in(result.module)] == ["head_scale"]
    assert abcfx.transform(Normed(64), torch.randn(3, 6), base=Normed(16)).spec["emb.weight"]["c"] == 0.0


def test_the_model_given_is_not_touched() -> None:
    model = MLP(64)
    before = copy.deepcopy(model.state_dict())
    abcfx.transform(model, torch.randn(3, 20, generator=torch.Generator().manual_seed(0)), base=MLP(16).eval())
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_failure_leaves_the_model_untouched_even_in_place() -> None:
    model = MLP(64)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(abcfx.errors.InfeasibleError, match="head"):
        abcfx.transform(
            model, base=MLP(16), apply="inplace", overrides=abcfx.Overrides(exponents={"head": (0.5, 0.5, 0.0)})
        )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_absorb_in_place_keeps_the_object_and_makes_no_node() -> None:
    torch.manual_seed(0)
    model, base, x = MLP(64), MLP(16), torch.randn(3, 20)
    inserted = abcfx.transform(model, x, base=base)
    absorbed = abcfx.transform(model, x, base=base, apply="inplace")
    assert absorbed.module is model
    torch.testing.assert_close(model(x), inserted.module(x))


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
    losses: dict[str, list[float]] = {}
    modes: tuple[ApplyMode, ...] = ("insert", "absorb")
    for scales in modes:
        result = abcfx.transform(
            model, IDS, base=base, apply=scales, optimizer=optimizer, weight_decay=decay, lr=0.02, eps=1e-4
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
    assert isinstance(wide, EmittedModule)
    assert len(scales_in(wide)) == len(scale_nodes(given(wide.eval_graph))) > 0


def test_overrides_by_pattern() -> None:
    model = MLP(64, hidden=3)
    result = abcfx.transform(
        model, base=MLP(16, hidden=3), overrides=abcfx.Overrides(roles={"hidden.1": "plain"}), lr=0.1
    )
    plain = result.spec["hidden.1.weight"]
    assert plain["role"] == "plain" and plain["lr"] == 0.1 and plain["init_factor"] == 1.0 and plain["c"] == 0.0
    listed = abcfx.transform(MLP(64), base=MLP(16), overrides=abcfx.Overrides(exponents=[(0, 0), (0.5, 0), (1, 0)]))
    assert [listed.spec[f"{n}.weight"]["c"] for n in ("emb", "hidden.0", "head")] == pytest.approx([0, 0.5, 0])
    by_role = abcfx.transform(
        MLP(64), base=MLP(16), lr={"embedding": 0.2, "default": 0.1}, overrides=abcfx.Overrides(std={"readout": 0.5})
    )
    assert by_role.spec["emb.weight"]["lr"] == pytest.approx(0.2 * 4**-0.5)
    assert by_role.spec["head.bias"]["lr"] == 0.1
    assert by_role.spec["head.weight"]["init_factor"] == pytest.approx(0.5)


@pytest.mark.parametrize("argument", ["roles", "exponents", "alignment"])
def test_a_pattern_that_matches_nothing_raises(argument: str) -> None:
    options: dict[str, TransformOptions] = {
        "roles": {"overrides": abcfx.Overrides(roles={"hiden.0": "hidden"})},
        "exponents": {"overrides": abcfx.Overrides(exponents={"hiden.0": (0.0, 0.5)})},
        "alignment": {"parametrization": abcfx.Parametrization(alignment={"hiden.0": "no"})},
    }
    with pytest.raises(abcfx.errors.InvalidInputError, match=f"{argument}: the pattern 'hiden.0'.*\n.*hidden.0"):
        abcfx.transform(MLP(32), **options[argument])


@pytest.mark.parametrize(
    ("make_options", "message"),
    [
        (lambda: {"optimizer": "adadelta"}, "adadelta.*\n.*adafactor"),
        (lambda: {"optimizer": {"hidden": "muon"}}, "get no optimizer"),
        (lambda: {"optimizer": {"hiden.0": "muon", "default": "adam"}}, "hiden.0"),
        (
            lambda: {"overrides": abcfx.Overrides(decay_mode=cast("DecayMode", "free"))},
            "'independent', 'coupled', 'fixed'",
        ),
        (lambda: {"overrides": abcfx.Overrides(no_decay=["bais"])}, "no_decay.*bais"),
        (lambda: {"parametrization": "mu"}, "'mu'.*\n.*'sp', 'ntk'.*\n.*parametrization='mup'"),
        (lambda: {"parametrization": abcfx.Parametrization(alignment="some")}, "some.*\n.*'full', 'no', 'worst'"),
        (lambda: {"lr": -1.0}, "positive"),
        (lambda: {"lr": {"embeding": 1.0}}, "embeding"),
        (lambda: {"apply": "inline"}, "'insert', 'absorb', 'inplace', 'off'"),
        (lambda: {"capture": "exprt"}, "To fix: capture='export'"),
        (lambda: {"weight_decay": float("nan")}, "weight_decay"),
        (lambda: {"overrides": abcfx.Overrides(roles={"emb": "input"})}, "input.*\n.*embedding"),
        (lambda: {"overrides": abcfx.Overrides(exponents={"hidden.0": (0.0, 0.7)})}, "hidden.0.*0.5"),
        (lambda: {"overrides": abcfx.Overrides(exponents=[(0, 0)])}, "1 tuples were given for 3 layers"),
        (lambda: {"base": 64}, "function that builds"),
        (lambda: {"overrides": None}, r"overrides: .*got None.*\n.*overrides=abcfx.Overrides"),
        (lambda: {"schedule": 2.0}, r"schedule: .*got 2.0.*\n.*schedule=abcfx.Schedule"),
    ],
)
def test_bad_input_is_refused_by_name(make_options: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=message):
        abcfx.transform(MLP(32), **make_options())


class Extra(MLP):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.extra = nn.Linear(width, width)


def test_base_of_another_architecture_is_refused_at_the_first_difference() -> None:
    with pytest.raises(abcfx.errors.PairingError, match=r"target runs.*\n.*base runs"):
        abcfx.transform(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), base=nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    with pytest.raises(abcfx.errors.PairingError, match=r"(?s)extra.*none"):
        abcfx.transform(MLP(64), base=Extra(16))
    with pytest.raises(abcfx.errors.PairingError, match="ReLU"):
        abcfx.transform(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), base=nn.Sequential(nn.Linear(4, 4), nn.GELU()))


def test_an_op_without_a_rule_is_named_with_its_line_and_the_fix() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.vander(self.fc(x))[..., 1]

    with pytest.raises(
        abcfx.errors.UnknownOpError, match=r"(?s)vander.*test_transform.py.*torch.linalg.vander.*register_rule"
    ):
        abcfx.transform(Odd())


def test_a_registered_rule_is_used() -> None:
    @abcfx.rules.register_rule("special_i0e")
    def i0e(op: Any, x: Any) -> Any:
        return op.pointwise(x)

    class Odd(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.special.i0e(self.emb(x)))

    kinds = [data["kind"].name for _, data in abcfx.transform(Odd(16)).dag.nodes.items()]
    assert "pointwise" in kinds


def test_transforming_twice_is_refused() -> None:
    result = abcfx.transform(MLP(64), base=MLP(16))
    with pytest.raises(abcfx.errors.InvalidInputError, match="transformed before"):
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
    first = scales_in(result.module)[0]
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
        insert_scales(gm, [ScaleInsertion(nodes["head"], nodes["x"], 2.0)])
    assert gm.code == code and not insert_scales(gm, [ScaleInsertion(nodes["head"], nodes["relu_1"], 1.0)]).modified
    assert insert_scales(gm, [ScaleInsertion(nodes["head"], nodes["relu_1"], 2.0, "head")]).touched == ("head_scale",)
    with pytest.raises(PassError, match="twice"):
        insert_scales(gm, [ScaleInsertion(nodes["head"], nodes["head"].args[0], 2.0, "head")])


def test_vectors_follow_the_gradient_under_sgd() -> None:
    c = spec_of(abcfx.transform(MLP(64), base=MLP(16), optimizer="sgd"), "c")
    assert c["emb.bias"] == c["hidden.0.bias"] == -1.0 and c["head.bias"] == 0.0
    standard = abcfx.transform(MLP(64), base=MLP(16), optimizer="sgd", parametrization="sp")
    assert spec_of(standard, "c")["emb.bias"] == -0.5

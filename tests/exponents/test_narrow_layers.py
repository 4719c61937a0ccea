"""Inner layers with few outputs of many inputs start as readouts do, by the spectral condition."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from typed import number

import abcfx
from abcfx.plan.options import InitMode

X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(5))


class Narrow(nn.Module):
    """A residual model with a layer of `size` outputs, which `how` says more about, in one of its branches."""

    def __init__(self, width: int, how: str, size: int = 4) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3, bias=False)
        self.first, self.second, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.down, self.up = nn.Linear(width, size, bias="biased" in how), nn.Linear(size, width)
        self.other, self.query, self.out = nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.how = nn.LayerNorm(size), how

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(x)
        if self.how == "attention":  # one key-value head for all queries
            query = self.query(x).unflatten(-1, (-1, y.shape[-1])).transpose(-2, -3)
            return self.out(
                F.scaled_dot_product_attention(query, *[y[:, None].expand_as(query)] * 2).transpose(1, 2).flatten(2)
            )
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "bottleneck": lambda: self.up(F.gelu(y)),
            "biased": lambda: self.up(y),
            "adapter": lambda: self.out(x) + self.up(y),
            "gate": lambda: self.out(x) * torch.sigmoid(self.up(F.relu(y))),
            "two readers": lambda: self.up(y) * torch.sigmoid(self.other(y)),
            "normed": lambda: self.up(self.norm(y)),
        }
        return ways[self.how]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        h = h + F.gelu(self.inner(self.first(h)))
        return self.head(self.last(h + self.branch(self.second(h))))


def planned(how: str, width: int = 64, size: int = 4, **options: object) -> abcfx.Transformed:
    model, base = Narrow(width, how, size), Narrow(16, how, size)
    return abcfx.transform(model, X, base=base, **options)  # type: ignore[arg-type]


HOWS = ["bottleneck", "biased", "adapter", "gate", "two readers", "attention"]


@pytest.mark.parametrize("how", HOWS)
def test_a_narrow_layer_starts_as_a_readout_and_nothing_else_changes(how: str) -> None:
    result = planned(how)
    rows = {name.removesuffix(".weight"): row for name, row in result.spec.items()}
    exponents = {
        name: (row["role"], number(row["a"]) + row["b"], number(row["a"]) + row["c"])
        for name, row in rows.items()
        if row["role"] not in ("vector", "scalar", "plain")
    }
    expected = {"down": ("hidden", 1.0, 1.0), "stem": ("embedding", 0.0, 0.0), "head": ("readout", 1.0, 1.0)}
    expected |= {name: ("embedding", 0.0, 0.0) for name in ("up", "other") if name in exponents}
    expected |= {name: ("hidden", 0.5, 1.0) for name in ("inner", "query", "out") if name in exponents}
    assert exponents == expected
    assert result.outcome.alignments["down"].omega == 1.0
    assert result.solution.r["down"] == 0.0
    assert "few outputs" in rows["down"]["why"]
    assert not any("multiplied by" in note for note in result.notes)  # logits of small keys are no small scale


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor"])
@pytest.mark.parametrize("how", HOWS)
def test_what_reads_a_narrow_layer_does_not_learn_faster_at_its_cost(how: str, optimizer: str) -> None:
    assert planned(how, optimizer=optimizer).solution.r["down"] == 0.0


def start(how: str, change: Callable[[nn.Module], None]) -> tuple[object, object, object]:
    """Plan a model after a change of it and of its base, and return a, b and c of the narrow layer."""
    model, base = Narrow(64, how), Narrow(16, how)
    change(model)
    change(base)
    row = abcfx.transform(model, X, base=base).spec["down.weight"]
    return row["a"], row["b"], row["c"]


def test_an_adapter_that_starts_at_zero_and_a_probe_of_frozen_layers_keep_the_init_of_a_hidden_layer() -> None:
    def zero(model: nn.Module) -> None:
        nn.init.zeros_(model.get_parameter("up.weight"))

    def freeze(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in ("down", "up", "last", "head"))

    assert start("adapter", zero) == start("adapter", freeze) == (0.0, 0.5, 1.0)
    assert start("adapter", lambda model: None) == (0.5, 0.5, 0.5)


class Chained(nn.Module):
    """Narrow layers one behind another with nothing beside them, as in an autoencoder of autoencoders."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.downs, self.ups = (nn.ModuleList(nn.Linear(*s) for _ in "12") for s in ((width, 4), (4, width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.stem(x))
        for down, up in zip(self.downs, self.ups, strict=True):
            h = F.gelu(up(F.gelu(down(h))))
        return self.head(h)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_narrow_layers_one_behind_another_are_all_stable_once_trained(optimizer: str) -> None:
    """Each starts smaller than the one before, and the rates are those at which all outputs are of order 1."""
    result = abcfx.transform(Chained(64), X, base=Chained(16), optimizer={"*weight": optimizer, "*": "adam"})
    assert {result.spec[f"downs.{i}.weight"]["a"] for i in (0, 1)} == {0.5}
    assert all(result.solution.r[node] == 0.0 for node, _ in result.outcome.dag.layers())
    rates = [number(result.spec[f"{name}.weight"]["c"]) for name in ("ups.0", "ups.1", "downs.0", "downs.1")]
    assert rates[0] == rates[1] and rates[2] == rates[3], "a smaller start of the input is no reason for a higher rate"


class Attention(nn.Module):
    """Grouped-query attention of a growing number of heads on 2 key-value heads, fused in one layer or not."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.sizes, self.how, fused = (width, 16, 16), how, how != "apart"
        self.stem, self.norm, self.out = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, width)
        self.last, self.head, self.key_norm = nn.LayerNorm(width), nn.Linear(width, 3), nn.LayerNorm(16)
        self.layers = nn.ModuleList(nn.Linear(width, n) for n in ([width + 32] if fused else self.sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        y = self.norm(h)
        if self.how == "apart":
            q, k, v = (layer(y) for layer in self.layers)
        elif self.how == "sliced":
            z = self.layers[0](y)
            q, k, v = z[..., :-32], z[..., -32:-16], z[..., -16:]
        else:
            q, k, v = self.layers[0](y).split(self.sizes, -1)
        k = self.key_norm(k) if self.how == "normed" else k
        q, k, v = (each.unflatten(-1, (-1, 8)).transpose(1, 2) for each in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.head(self.last(h + self.out(y.transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("how", ["split", "sliced"])
@pytest.mark.parametrize("init", ["auto", "redraw"])
def test_rows_of_a_fused_layer_that_stay_start_as_a_layer_of_their_own_does(how: str, init: InitMode) -> None:
    """At width 256, fused queries, keys and values have the init that they have apart, multipliers included."""

    def stds(how: str) -> list[float]:
        torch.manual_seed(0)
        result = abcfx.transform(Attention(256, how), X, base=Attention(64, how), init=init)
        of_rows = []
        for name, row in result.spec.items():
            if name.startswith("layers.") and name.endswith("weight"):
                weight = result.module.get_parameter(name).detach() * 4 ** -number(row["a"])
                assert number(row["a"]) + row["c"] == 1.0
                of_rows += [float(part.std()) for part in weight.split([256, 16, 16] if len(weight) == 288 else 256)]
        return of_rows

    fused, apart = stds(how), stds("apart")
    assert fused == pytest.approx(apart, rel=0.1)
    assert fused[1] == pytest.approx(fused[0] / 2, rel=0.1)


def test_rows_in_front_of_a_norm_keep_their_init() -> None:
    result = abcfx.transform(Attention(256, "normed"), X, base=Attention(64, "normed"))
    rows = result.module.get_parameter("layers.0.weight").detach().split([256, 32])
    assert float(rows[1].std()) == pytest.approx(float(rows[0].std()), rel=0.05)


def test_a_norm_behind_a_narrow_layer_makes_its_init_void_and_that_is_told() -> None:
    result = planned("normed")
    row = result.spec["down.weight"]
    assert (row["a"], row["b"], row["c"], result.outcome.alignments["down"].omega) == (0.0, 0.5, 1.0, 0.5)
    assert any(note.startswith("down: ") and "no init prevents it" in note for note in result.notes)
    assert not any("no init prevents it" in note for note in planned("bottleneck").notes)


def test_a_norm_behind_further_layers_makes_it_void_too() -> None:
    """As in Gemma 3n's branches of low rank: each would multiply changes, and slow all layers before it."""

    class Blocks(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 3)
            self.down = nn.ModuleList(nn.Linear(width, 4, bias=False) for _ in range(2))
            self.up = nn.ModuleList(nn.Linear(4, width, bias=False) for _ in range(2))
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for down, up, norm in zip(self.down, self.up, self.norms, strict=True):
                x = x + norm(up(down(x)))
            return self.head(x)

    result = abcfx.transform(Blocks(64), X, base=Blocks(16), optimizer="adam")
    row = result.spec["down.0.weight"]
    assert number(row["a"]) + row["b"] == 0.5
    assert result.spec["stem.weight"]["c"] + number(result.spec["stem.weight"]["a"]) == 0.0
    assert any("only a norm reads what comes of them" in note for note in result.notes)


@pytest.mark.parametrize(("size", "a"), [(4, 0.5), (16, 0.5), (32, 0.25), (64, 0.0), (256, 0.0)])
def test_a_layer_is_narrow_by_as_much_as_it_has_fewer_outputs_than_inputs(size: int, a: float) -> None:
    """From width 16 to 64: with 32 outputs, the share of inputs that it has as outputs is 1 and then 1/2."""
    row = planned("bottleneck", size=size).spec["down.weight"]
    assert (row["a"], row["b"], row["c"]) == pytest.approx((a, 0.5, 1.0 - a))


def test_a_layer_whose_outputs_grow_more_slowly_is_narrow_in_part() -> None:
    def build(width: int, size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), nn.Linear(width, size), nn.ReLU(), nn.Linear(size, 3))

    row = abcfx.transform(build(64, 16), X, base=build(16, 8)).spec["1.weight"]
    assert (row["a"], row["b"], row["c"]) == pytest.approx((0.25, 0.5, 0.75))


@pytest.mark.parametrize(("table", "a", "b"), [("sp", 0.0, 0.5), ("ntk", 0.5, 0.0), ("mfp", 1.0, 0.0)])
def test_a_narrow_layer_has_what_a_table_gives_to_readouts(table: str, a: float, b: float) -> None:
    row = planned("bottleneck", parametrization=table).spec["down.weight"]
    assert (row["a"], row["b"]) == (a, b)


def test_without_alignment_or_with_a_role_of_the_users_nothing_is_assumed() -> None:
    option = abcfx.Parametrization(alignment="no")
    assert planned("bottleneck", parametrization=option).outcome.alignments["down"].omega == 0.5
    row = planned("bottleneck", overrides=abcfx.Overrides(roles={"down.weight": "hidden"})).spec["down.weight"]
    assert (row["a"], row["b"], row["c"]) == (0.0, 0.5, 1.0)


def _growth(how: str, role: str | None, widths: tuple[int, ...] = (64, 256, 1024)) -> float:
    """Return the exponent of width with which the first step of Adam changes the output of the narrow layer."""
    changes = []
    for width in widths:
        squares = 0.0
        for seed in range(3):
            torch.manual_seed(seed)
            overrides = abcfx.Overrides(roles={"down.weight": role} if role else {})
            result = planned(how, width, optimizer="adam", lr=1e-3, overrides=overrides)
            seen: list[torch.Tensor] = []
            hook = result.module.get_submodule("down").register_forward_hook(
                lambda *each, to=seen: to.append(each[2].detach())
            )
            (result.module(X) - 1).square().mean().backward()
            torch.optim.Adam(result.param_groups).step()
            result.module(X)
            hook.remove()
            squares += float((seen[1] - seen[0]).square().mean())
        changes.append(math.sqrt(squares))
    return math.log(changes[-1] / changes[0]) / math.log(widths[-1] / widths[0])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["bottleneck", "attention"])
def test_a_narrow_layer_blows_up_with_the_init_of_a_hidden_layer_and_not_with_its_own(how: str) -> None:
    """The scaling is measured, and is the reason for the rule."""
    hidden, own = _growth(how, "hidden"), _growth(how, None)
    assert hidden > 0.15 > own

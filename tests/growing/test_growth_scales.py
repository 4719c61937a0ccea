"""The scales of a larger copy equal those worked out by hand, and keep the function and the training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.capture import capture
from abcfx.dag.building import build_dag
from abcfx.growing import Scales, solve_scales
from abcfx.growing.equations import Equations
from abcfx.pairing.pair import PairedModels

VOCABULARY, LENGTH = 11, 5
TOKENS = torch.arange(3 * LENGTH).view(3, LENGTH) % VOCABULARY


Activation = Callable[[torch.Tensor], torch.Tensor]


class Mlp(nn.Module):
    def __init__(self, width: int, phi: Activation = F.gelu) -> None:
        super().__init__()
        self.phi, self.first = phi, nn.Linear(6, width)
        self.hidden, self.last = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.phi(self.hidden(self.phi(self.first(x)))))


class Gated(nn.Module):
    """A residual block with a gated MLP, of two widths."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.tok, self.norm, self.head = nn.Embedding(VOCABULARY, width), nn.RMSNorm(width), nn.Linear(width, 4)
        self.up, self.gate, self.down = (nn.Linear(*s, bias=False) for s in [(width, inner)] * 2 + [(inner, width)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        y = self.norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.tok, self.head = heads, nn.Embedding(VOCABULARY, width), nn.Linear(width, 4)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.head(x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Tied(nn.Module):
    """A model with a tied head after `last`: a norm, "affine" or "plain", or a function."""

    def __init__(self, width: int, last: str | Activation) -> None:
        super().__init__()
        self.tok, self.hidden = nn.Embedding(VOCABULARY, width), nn.Linear(width, width)
        self.last = nn.LayerNorm(width, elementwise_affine=last == "affine") if isinstance(last, str) else last

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        if isinstance(self.last, nn.LayerNorm):
            x = x + self.hidden(F.gelu(x))
        return F.linear(self.last(x), self.tok.weight)


class Convolutions(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3)
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, groups=width), nn.BatchNorm2d(width)
        self.grouped, self.head = nn.Conv2d(width, width, 1, groups=groups), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.second(F.gelu(self.first(x)))))
        return self.head(F.silu(self.grouped(self.depthwise(x))).mean((2, 3)))


def scales_of(
    large: nn.Module, small: nn.Module, x: torch.Tensor, multipliers: dict[str, float] | None = None
) -> tuple[Scales, float]:
    """Return the scales and the ratio m that they are exponents of."""
    captured, base = (capture(model, (x,), method="export", modes=("train",)) for model in (large, small))
    growth = PairedModels.of_graphs(captured, base).measured_growth
    assert growth is not None
    return solve_scales(build_dag(captured), growth, multipliers), growth.width_ratio


def weights(scales: Scales) -> dict[str, float]:
    """Return the exponents that are not zero."""
    return {name: float(v) for name in scales.exponents if (v := scales.exponent(name))}


def copy_into(large: nn.Module, small: nn.Module, scales: Scales, m: float) -> None:
    """Fill the large model with the small one's parameters, repeated along what grew, times m^v."""
    small_state = dict(small.named_parameters()) | dict(small.named_buffers())
    with torch.no_grad():
        for name, held in [*large.named_parameters(), *large.named_buffers()]:
            source = small_state[name]
            copies = [big // little for big, little in zip(held.shape, source.shape, strict=True)]
            factor = m ** float(scales.exponent(name)) if name in scales.exponents else 1.0
            held.copy_((source.repeat(copies) if copies else source) * factor)


IMAGE, ROWS = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)), torch.linspace(-2, 2, 18).view(3, 6)
QKV = ["q", "k", "v", "o"]
CASES: dict[str, tuple[Callable[[int], nn.Module], torch.Tensor, dict[str, float]]] = {
    "mlp": (lambda k: Mlp(8 * k), ROWS, {"hidden.weight": -1, "last.weight": -1}),
    "relu mlp": (lambda k: Mlp(8 * k, F.relu), ROWS, {"hidden.weight": -1, "last.weight": -1}),
    "gated": (lambda k: Gated(8 * k, 12 * k), TOKENS, {f"{n}.weight": -1 for n in ("up", "gate", "down", "head")}),
    "heads": (lambda k: Attention(8 * k, 2 * k), TOKENS, {f"{n}.weight": -1 for n in (*QKV, "head")}),
    "head_dim": (
        # q k / sqrt(head_dim) would grow by k^1/2: a quarter less for each, weight and bias
        lambda k: Attention(4 * k, 1),
        TOKENS,
        {f"{n}.weight": -1 for n in ("v", "o", "head")}
        | {f"{n}.{p}": -0.25 - (p == "weight") for n in "qk" for p in ("weight", "bias")},
    ),
    "tied, norm with gain": (
        lambda k: Tied(8 * k, "affine"),
        TOKENS,
        {"hidden.weight": -1, "last.weight": -1, "last.bias": -1},
    ),
    "tied, homogeneous": (lambda k: Tied(8 * k, F.relu), TOKENS, {"tok.weight": -0.5}),
    "convolutions": (
        lambda k: Convolutions(8 * k, 2 * k),
        IMAGE,
        {f"{n}.weight": -1 for n in ("second", "head")},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand_and_by_running_the_copy(name: str) -> None:
    build, x, expected = CASES[name]
    torch.manual_seed(0)
    small, large = build(1), build(4)
    scales, m = scales_of(large, small, x)
    assert m == 4.0
    assert weights(scales) == expected
    small, large = small.double().eval(), large.double().eval()
    x = x.double() if x.is_floating_point() else x
    copy_into(large, small, scales, m)
    torch.testing.assert_close(large(x), small(x), rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(1.1)  # what would be compared if the copies were not exact
    assert not torch.allclose(large(x), small(x), rtol=1e-3)


def test_groups_that_grow_in_size_contract_what_grows() -> None:
    scales, _ = scales_of(Convolutions(16, 2), Convolutions(8, 2), IMAGE)
    assert weights(scales) == {f"{n}.weight": -1 for n in ("second", "grouped", "head")}


def test_two_widths_at_once_have_a_factor_each() -> None:
    """width x2, inner x3: what contracts the one is divided by 2, what contracts the other by 3, exactly."""
    torch.manual_seed(0)
    small, large = Gated(8, 12), Gated(16, 36)
    scales, m = scales_of(large, small, TOKENS)
    assert m == 3.0
    (by_width,), (by_inner,) = (scales.exponents[f"{name}.weight"] for name in ("up", "down"))
    assert by_width == pytest.approx(math.log(2) / math.log(3)) and by_inner == 1.0
    assert scales.exponents["head.weight"] == scales.exponents["gate.weight"] == {by_width: Fraction(-1)}
    assert scales.exponents["down.weight"] == {by_inner: Fraction(-1)} and not scales.exponents["tok.weight"]
    small, large = small.double(), large.double()
    copy_into(large, small, scales, m)
    torch.testing.assert_close(large(TOKENS), small(TOKENS), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("a", "gain"), [(1.0, 0.0), (0.5, -0.5), (0.0, -1.0)])
def test_a_multiplier_on_a_tied_head_spares_the_gain(a: float, gain: float) -> None:
    """E is used uncontracted, so v_E = 0; the head's k^1 is taken by its multiplier m^-a and by the norm's gain."""
    torch.manual_seed(0)
    scales, _ = scales_of(Tied(16, "affine"), Tied(8, "affine"), TOKENS, {"tok#2": a})
    assert [float(scales.exponent(name)) for name in ("tok.weight", "last.weight", "last.bias")] == [0.0, gain, gain]


def test_a_multiplier_on_both_uses_moves_into_the_weight() -> None:
    """m^-a on the weight, everywhere, is m^a in the scale: only W = m^-a w is seen by the rest."""
    multipliers = {"first": -0.5, "hidden": 0.25, "last": 0.5}
    plain, _ = scales_of(Mlp(16), Mlp(8), ROWS)
    moved, _ = scales_of(Mlp(16), Mlp(8), ROWS, multipliers)
    for name, a in multipliers.items():
        assert moved.exponent(f"{name}.weight") == plain.exponent(f"{name}.weight") + Fraction(a)


@pytest.mark.parametrize(("last", "why"), [("plain", "an output of the model"), (F.gelu, "an output of the model")])
def test_a_tied_head_after_a_norm_without_gain_is_refused_by_name(last: str | Activation, why: str) -> None:
    with pytest.raises(abcfx.errors.InfeasibleError) as raised:
        scales_of(Tied(16, last), Tied(8, last), TOKENS)
    message = str(raised.value)
    assert "function preserving" in message and why in message and "m^1 too large" in message
    assert "F.linear(self.last(x), self.tok.weight)" in message
    head = message.split("preserving: ")[1].split(" ")[0]
    scales, _ = scales_of(Tied(16, last), Tied(8, last), TOKENS, {head: 1.0})
    assert scales.exponent("tok.weight") == 0


def test_added_constants_and_nonlinear_functions_of_parameters_are_pinned() -> None:
    """x + 1 and tanh(gain) keep their sizes, so that neither a layer before nor the gain can make up for a tied use."""

    class Shifted(nn.Module):
        def __init__(self, width: int, shift: str | None) -> None:
            super().__init__()
            self.tok, self.gain, self.shift = nn.Embedding(VOCABULARY, width), nn.Parameter(torch.ones(width)), shift

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tok(tokens) * torch.tanh(self.gain)
            x = x + 1 if self.shift == "number" else torch.cat([x, torch.ones_like(x)], 1) if self.shift else x
            return F.linear(x, self.tok.weight)

    scales, _ = scales_of(Shifted(16, None), Shifted(8, None), TOKENS)
    assert (float(scales.exponent("tok.weight")), float(scales.exponent("gain"))) == (-0.5, 0.0)
    for shift in ("number", "tensor"):
        with pytest.raises(abcfx.errors.InfeasibleError, match="output"):
            scales_of(Shifted(16, shift), Shifted(8, shift), TOKENS)


@pytest.mark.parametrize("name", ["mlp", "gated", "heads", "tied, norm with gain", "convolutions"])
def test_the_copy_trains_as_the_small_model_does_at_the_rates_of_the_lp(name: str) -> None:
    """Trajectory identity: the transformed large model, started as a copy, with the plan's Adam groups."""
    build, x, _ = CASES[name]
    torch.manual_seed(0)
    small, large = build(1).double().eval(), build(4).double().eval()
    x = x.double() if x.is_floating_point() else x
    result = abcfx.transform(large, (x,), base=small, lr=1e-2, eps=1e-30, capture=abcfx.Capture(verify=False))
    assert result.header.width_ratio == 4.0
    # the scales of the transformed pair are what the rates say
    v = {name: -math.log(1e-2 / row["lr"], 4.0) for name, row in result.spec.items()}
    small_state = dict(small.named_parameters())
    with torch.no_grad():
        for parameter, held in result.module.named_parameters():
            source = small_state[parameter]
            copies = [big // little for big, little in zip(held.shape, source.shape, strict=True)]
            held.copy_(source.repeat(copies) * 4.0 ** v[parameter])
    module = result.module.eval()
    ours, theirs = torch.optim.Adam(result.param_groups), torch.optim.Adam(small.parameters(), lr=1e-2, eps=1e-30)
    for _ in range(5):
        torch.testing.assert_close(module(x), small(x), rtol=1e-6, atol=1e-8)
        before = small(x).detach()
        for model, optimizer in ((module, ours), (small, theirs)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        assert not torch.allclose(small(x), before, rtol=1e-3)


def test_equations_are_exact_and_say_what_contradicts() -> None:
    third = Fraction(1, 3)
    equations = Equations()
    assert equations.require({"x": Fraction(1), "y": Fraction(3), 1.0: Fraction(-1)})  # x + 3 y = 1
    assert equations.require({"x": Fraction(2), "y": Fraction(6), 1.0: Fraction(-2)})
    assert not equations.require({"x": Fraction(1), "y": Fraction(3)})
    equations.least_squares([{"x": Fraction(1)}, {"x": Fraction(1), 1.0: Fraction(-2)}])  # x^2 + (x - 2)^2
    assert (equations.solution("x"), equations.solution("y")) == ({1.0: Fraction(1)}, {})
    assert equations.require({"z": Fraction(3), "y": Fraction(1), 1.0: Fraction(-1)})
    assert equations.solution("z") == {1.0: third} and equations.solution("never seen") == {}


def test_a_matrix_of_one_size_is_inverted_as_before() -> None:
    class Inverse(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.key, self.out = nn.Linear(6, width), nn.Linear(width, 9), nn.Linear(3, width)
            self.head = nn.Linear(width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x).relu()
            matrix = self.key(h).reshape(-1, 3, 3) + 4 * torch.eye(3)
            return self.head(h + self.out(torch.linalg.inv(matrix)[:, 0]))

    torch.manual_seed(0)
    x, small = torch.rand(5, 6), Inverse(16)
    torch.testing.assert_close(abcfx.grow(small, Inverse(32), x).module(x), small(x))

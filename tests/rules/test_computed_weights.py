"""A multiplier belongs to its parameter, whatever function of it and of others the weight is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typed import scales_in, tensor

import abcfx
from abcfx.plan.options import ApplyMode

MODES: tuple[ApplyMode, ...] = ("insert", "absorb")
Weight = Callable[["Computed"], torch.Tensor]


class Computed(nn.Module):
    """A hidden layer and a readout with weights that are computed from parameters in forward."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.width = how, width
        self.stem, self.plain = nn.Linear(6, width), nn.Linear(width, width)
        self.w, self.other = (nn.Parameter(torch.randn(width, width) * width**-0.5) for _ in range(2))
        self.out, self.more = (nn.Parameter(torch.randn(3, width) * width**-0.5) for _ in range(2))
        self.a = nn.Parameter(torch.randn(4, width) * width**-0.5)
        self.b = nn.Parameter(torch.randn(width, 4) * 0.5)
        self.ones, self.gain = nn.Parameter(torch.ones(width, width)), nn.Parameter(torch.ones(width, 1))
        self.extra = nn.Parameter(torch.randn(width, 6))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width // 2)), nn.Parameter(torch.zeros(width // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.stem(x))
        if self.how in READOUTS:
            return F.linear(F.relu(self.plain(h)), READOUTS[self.how](self))
        if self.how == "columns":
            h = F.linear(torch.cat([h, x], -1), torch.cat([self.w, self.extra], 1))
        elif self.how == "computed bias":
            h = F.linear(h, self.w, torch.cat([self.q_bias, self.v_bias * 2]))
        else:
            h = F.linear(h, HIDDEN[self.how](self))
        return F.linear(F.relu(h), self.out)


def rounded(w: torch.Tensor) -> torch.Tensor:
    return w + ((w * 64).round() / 64 - w).detach()


HIDDEN: dict[str, Weight] = {
    "low rank": lambda m: m.w + m.b @ m.a,
    "low rank alone": lambda m: m.b @ m.a,
    "low rank transposed": lambda m: (m.a.T @ m.b.T).T,
    "low rank by einsum": lambda m: torch.einsum("or,ri->oi", m.b, m.a),
    "low rank by einsum, transposed": lambda m: torch.einsum("ri,or->io", m.a, m.b).T,
    "sum": lambda m: m.w + m.other,
    "shifted": lambda m: m.w + torch.eye(m.width, dtype=m.w.dtype),
    "scaled": lambda m: m.w * m.ones,
    "scaled by a function": lambda m: m.w * torch.sigmoid(m.ones),
    "rows": lambda m: m.w * m.gain,
    "tanh": lambda m: torch.tanh(m.w),
    "clamp": lambda m: m.w.clamp(-0.2, 0.2),
    "softmax": lambda m: m.w.softmax(-1),
    "signed square": lambda m: m.w * m.w.abs(),
    "straight through": lambda m: rounded(m.w),
    "skew": lambda m: m.w - m.w.T,
}
READOUTS: dict[str, Weight] = {
    "readout: sum": lambda m: m.out + m.more,
    "readout: low rank": lambda m: m.out + m.out[:, :4] @ m.a,
    "readout: tanh": lambda m: torch.tanh(m.out),
    "readout: clamp": lambda m: m.out.clamp(-0.1, 0.1),
    "readout: rounded": lambda m: rounded(m.out),
    "readout: shifted": lambda m: m.out + torch.eye(3, m.width, dtype=m.w.dtype),
}
HOWS = [*HIDDEN, *READOUTS, "columns", "computed bias"]
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(how: str, width: int) -> nn.Module:
    torch.manual_seed(0)
    return Computed(width, how).double()


def transformed(how: str, width: int, apply: ApplyMode, parametrization: str = "mup") -> abcfx.Transformed:
    return abcfx.transform(
        built(how, width),
        X,
        base=built(how, 8),
        apply=apply,
        optimizer="adamw",
        lr=0.01,
        parametrization=parametrization,
    )


def trained(result: abcfx.Transformed) -> torch.Tensor:
    optimizer = torch.optim.AdamW(result.param_groups)
    for _ in range(3):
        optimizer.zero_grad()
        result.module(X).sin().square().sum().backward()
        optimizer.step()
    output: torch.Tensor = result.module(X).detach()
    return output


@pytest.mark.parametrize("parametrization", [pytest.param("mup", marks=pytest.mark.slow), "ntk"])
@pytest.mark.parametrize("how", HOWS)
def test_inserted_absorbed_and_folded_models_compute_the_same(how: str, parametrization: str) -> None:
    inserted, absorbed = (transformed(how, 32, mode, parametrization) for mode in ("insert", "absorb"))
    torch.testing.assert_close(absorbed.module(X), inserted.module(X), rtol=1e-9, atol=1e-12)
    expected = trained(inserted)
    torch.testing.assert_close(trained(absorbed), expected, rtol=1e-9, atol=1e-12)
    for result in (inserted, absorbed):
        torch.testing.assert_close(result.fold()(X), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in HOWS if how != "readout: shifted"])  # ones on three units, at any width
def test_sizes_and_changes_do_not_grow_with_width(how: str) -> None:
    """From 64 to 1,024 the output at init and its change after one step stay within a factor of two."""
    sizes, changes = [], []
    for width in (64, 1024):
        result = transformed(how, width, "insert")
        before = result.module(X).detach()
        sizes.append(float(before.square().mean().sqrt()))
        changes.append(float((one_step(result) - before).square().mean().sqrt()))
    growth = [math.log(after / before, 16) for before, after in (sizes, changes)]
    assert max(growth) < 0.25, growth


def one_step(result: abcfx.Transformed) -> torch.Tensor:
    optimizer = torch.optim.AdamW(result.param_groups)
    result.module(X).sum().backward()
    optimizer.step()
    output: torch.Tensor = result.module(X).detach()
    return output


def test_base_width_is_left_alone() -> None:
    for how in HOWS:
        model = built(how, 8)
        result = abcfx.transform(copy.deepcopy(model), X, base=built(how, 8))
        assert torch.equal(result.module(X), model(X)), how


def test_the_multiplier_of_one_addend_falls_on_no_other() -> None:
    result = transformed("low rank", 32, "insert")
    scaled = {str(node.args[0]) for node in scales_in(result.module)}
    assert "b" in scaled and "w" not in scaled and "relu" not in scaled


def test_factors_of_one_matrix_product_have_the_exponents_of_two_layers() -> None:
    """(B A) x and B (A x) are the same function."""

    class Apart(Computed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(F.relu(F.linear(F.linear(F.relu(self.stem(x)), self.a), self.b)), self.out)

    torch.manual_seed(0)
    apart = abcfx.transform(Apart(32, "").double(), X, base=Apart(8, "").double()).spec
    for how in ("low rank alone", "low rank transposed", "low rank by einsum", "low rank by einsum, transposed"):
        spec = transformed(how, 32, "insert").spec
        for name in ("a", "b"):
            assert [spec[name][key] for key in ("role", "a", "b", "c")] == [
                apart[name][key] for key in ("role", "a", "b", "c")
            ], (how, name)


class Styled(nn.Module):
    """A convolution whose weight is multiplied by a style for each sample, and maybe normed after that."""

    def __init__(self, width: int, normed: bool) -> None:
        super().__init__()
        self.normed = normed
        self.stem, self.style, self.head = nn.Conv2d(3, width, 1), nn.Linear(5, width), nn.Linear(width, 2)
        self.weight = nn.Parameter(torch.randn(width, width, 3, 3) * (9 * width) ** -0.5)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        h, (b, *size) = F.relu(self.stem(x)), (x.shape[0], *x.shape[2:])
        w = self.weight[None] * (self.style(z) + 1)[:, None, :, None, None]
        if self.normed:
            w = w * torch.rsqrt(w.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        y = F.conv2d(h.reshape(1, -1, *size), w.view(-1, *w.shape[2:]), padding=1, groups=b)
        return self.head(F.relu(y.view(b, -1, *size)).mean((2, 3)))


@pytest.mark.parametrize("normed", [True, False])
def test_a_weight_times_a_style_is_a_layer_and_slows_nothing_before_it(normed: bool) -> None:
    torch.manual_seed(0)
    x, z = torch.randn(3, 3, 4, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    result = abcfx.transform(Styled(32, normed).double(), (x, z), base=Styled(8, normed).double())
    found = {name: (row["role"], row["c"], row["init_factor"]) for name, row in result.spec.items()}
    assert found["weight"] == ("hidden", 1.0, 1.0)
    assert found["stem.weight"][:2] == found["style.weight"][:2] == ("embedding", 0.5)
    torch.testing.assert_close(result.fold()(x, z), result.module(x, z), rtol=1e-12, atol=1e-12)


class Tanh(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.tanh(weight)


class LowRank(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, weight.shape[1])), nn.Parameter(torch.randn(weight.shape[0], 4))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


@pytest.mark.parametrize("make", [lambda weight: Tanh(), LowRank], ids=["tanh", "low rank"])
def test_parametrizations_of_the_user_are_opened(make: Callable[[torch.Tensor], nn.Module]) -> None:
    def model(width: int) -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 3))
        for layer in (layers[2], layers[3]):
            nn.utils.parametrize.register_parametrization(layer, "weight", make(tensor(layer.weight)))
        return layers.double()

    inserted, absorbed = (
        abcfx.transform(model(32), X, base=model(8), apply=mode, parametrization="ntk") for mode in MODES
    )
    torch.testing.assert_close(absorbed.module(X), inserted.module(X), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(inserted.fold()(X), inserted.module(X), rtol=1e-9, atol=1e-12)

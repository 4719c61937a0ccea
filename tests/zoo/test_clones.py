"""The rates of the LP under full alignment equal those from cloning, parameter by parameter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hard_programs
import hard_sequence
import pytest
import torch
from clones import Clones, compare, compare_case
from torch import nn

from abcfx.errors import InfeasibleError
from abcfx.examples.gpt import GPT, GPTConfig

TABLE = Path(__file__).parent / "clones.jsonl"
ROWS = {row["name"]: row for row in map(json.loads, TABLE.read_text().splitlines())}
PART, PARTS = map(int, os.environ.get("ABCFX_ZOO_PART", "0/1").split("/"))
SAMPLE = ["gpt2 (clm)", "llama (clm)", "vit (image)", "resnet (image)"]
FIXED = {
    "rotary positions in complex numbers": "writes its number of heads and their size into forward",
}
CASES = [
    pytest.param(module, cases, i, id=case.name)
    for module, cases, found in (
        ("hard_sequence", "SEQUENCE", hard_sequence.SEQUENCE),
        ("hard_programs", "PROGRAMS", hard_programs.PROGRAMS),
    )
    for i, case in enumerate(found)
    if case.captured and case.name not in FIXED
]
QUICK = ["GPT with its loss", "einsum attention on bare parameters", "weight norm", "hypernetwork by functional_call"]


def agrees(row: Clones) -> None:
    assert row.grown and not row.differing


@pytest.mark.parametrize(("module", "cases", "index"), [case for case in CASES if case.id in QUICK])
def test_hard_case(module: str, cases: str, index: int) -> None:
    agrees(compare_case(module, cases, index))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "cases", "index"), [case for case in CASES if case.id not in QUICK])
def test_other_hard_case(module: str, cases: str, index: int) -> None:
    agrees(compare_case(module, cases, index))


@pytest.mark.parametrize("parametrization", ["mup", "sp"])
def test_example(parametrization: str) -> None:
    """Under SP too: Adam's full-alignment c are the same once multipliers are absorbed."""
    large, small = (GPT(GPTConfig(d_model=width)) for width in (64, 32))
    row = compare("gpt", large, small, (torch.zeros(3, 8, dtype=torch.long),), parametrization=parametrization)
    agrees(row)
    assert row.plain == 10 and not row.off_formula


class Mixed(nn.Module):
    """A Fourier transform over the width added to its input, as FNet's token mixing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.head = nn.Embedding(9, width), nn.Linear(width, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        return self.head(x + torch.fft.fft(x).real)


class GatedInput(nn.Module):
    """A convolution that makes content and gate, then sqrt(d) and positions, as Speech-to-Text's input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.up, self.head = width, nn.Linear(6, 2 * width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.glu(self.up(x)) * self.width**0.5 + 1)


@pytest.mark.parametrize("model", [Mixed, GatedInput])
def test_kind_1_nothing_to_compare_with(model: type[nn.Module]) -> None:
    """Some models have no copy with one factor per parameter, and the solve says so.

    Mixed: k copies of x have the spectrum k x_hat at multiples of k and 0 elsewhere, which is no copy of x_hat, and its
    RMS grows by k^1/2 beside x, which does not. GatedInput: the gate wants its half of `up` at k^0, sqrt(d) wants the
    content's half, of the same parameter, at k^-1/2.
    """
    inputs = torch.zeros(2, 3, dtype=torch.long) if model is Mixed else torch.zeros(2, 6)
    with pytest.raises(InfeasibleError, match="function preserving"):
        compare(model.__name__, model(16), model(8), (inputs,))
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.fft(x.repeat(2))
    torch.testing.assert_close(spectrum[::2], 2 * torch.fft.fft(x))
    assert float(spectrum[1::2].abs().max()) < 1e-5


class Scaled(nn.Module):
    """A projection with a bias, times sqrt(d), into a residual stream: the input of a Conformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.up = width, nn.Linear(6, width)
        self.inner, self.norm, self.head = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(nn.functional.gelu(self.up(x))) * self.width**0.5
        return self.head(self.norm(x))


class Normalised(nn.Module):
    """An L2-normalised tensor, of entries ~ d^-1/2, beside a bias, as in SwiftFormer's attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.proj, self.final = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.normalize(self.up(x), dim=-1)
        return self.final(self.proj(x) + x)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Scaled, {"inner.weight": (1.0, 1.5), "inner.bias": (0.0, 0.5)}),
        (Normalised, {"proj.weight": (0.5, 1.0), "proj.bias": (0.0, 0.5), "final.weight": (0.5, 0.0)}),
    ],
)
def test_kind_2_a_bias_is_of_order_one(model: type[nn.Module], expected: dict[str, tuple[float, float]]) -> None:
    """A bias is O(1) at every width (a = b = 0) by convention; a copy scales it with the tensor beside it.

    Scaled: times sqrt(d) the bias makes a stream of s = -1/2, and the LP asks that it changes by no more than its size,
    r = -1/2: c = e_in = 1, and 0 for the bias. A copy has s = r = 0, so 1/2 more for both: r - s, which is the change
    after the norm, is the same.
    Normalised: x has s = 1/2 and the bias makes the sum s = 0. proj may change the sum by r = 0 although its input is
    small, c = e_in - s_x = 1/2, and its bias too, c = 0. A copy keeps the sum at the size of x, so 1/2 more for both,
    and 1/2 less for `final`, which reads it (a = 1/2: c = 1 - a = 1/2).
    """
    row = compare(model.__name__, model(16), model(8), (torch.randn(2, 6),))
    assert {name: (c, clone) for name, (_, c, clone) in row.differing.items()} == expected


def expect_as_in_the_table(name: str) -> None:
    hf = pytest.importorskip("hf", reason="needs transformers")
    from clones import compare_type

    (each,) = [each for each in hf.types() if each.name == name]
    row, known = compare_type(each), ROWS[name]
    assert row.error.split(":")[0] == known["error"].split(":")[0]
    assert set(row.differing) == set(known["differing"])
    assert row.compared >= known["compared"]
    if "plain" in known:
        assert row.plain == known["plain"] and set(row.off_formula) == set(known["off_formula"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    assert not ROWS[name]["differing"] and not ROWS[name]["error"] and not ROWS[name].get("off_formula")
    expect_as_in_the_table(name)


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(ROWS)[PART::PARTS])
def test_type(name: str) -> None:
    expect_as_in_the_table(name)

"""Hyper-connections are found in any notation, and their generators get the exponents of readouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typed import given, number

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.examples.hyper_gpt import HyperGPT, HyperGPTConfig

WIDTHS, STEPS = (64, 128, 256, 512), 4
TOKENS = (torch.arange(8) * 7 % 8).repeat(2, 1)


def gpt(width: int) -> HyperGPT:
    return HyperGPT(HyperGPTConfig(d_model=width, n_layer=1))


# -- variants as people write them


def exponential(logits: Tensor, iters: int) -> Tensor:
    mix = torch.exp(logits - logits.amax((-1, -2), keepdim=True))
    for _ in range(iters):
        mix = mix / (mix.sum(2, keepdim=True) + 1e-8)
        mix = mix / (mix.sum(3, keepdim=True) + 1e-8)
    return mix


def reciprocals(logits: Tensor, iters: int) -> Tensor:
    mix = torch.nn.functional.softmax(logits, dim=-1) + 1e-6
    for _ in range(iters):
        mix = mix * (mix.sum(dim=-2, keepdim=True) + 1e-6).reciprocal()
        mix = mix.mul(mix.sum(dim=-1, keepdim=True).pow(-1))
    return mix


def logarithms(logits: Tensor, iters: int) -> Tensor:
    for _ in range(iters):
        logits = logits - torch.logsumexp(logits, -1, keepdim=True)
        logits = logits - torch.logsumexp(logits, -2, keepdim=True)
    return logits.exp()


def log_softmax(logits: Tensor, iters: int) -> Tensor:
    for _ in range(iters):
        logits = F.log_softmax(F.log_softmax(logits, dim=-1), dim=-2)
    return torch.exp(logits)


def potentials(logits: Tensor, iters: int) -> Tensor:
    u, v = torch.zeros_like(logits[..., 0]), torch.zeros_like(logits[..., 0, :])
    for _ in range(iters):
        u = -torch.logsumexp(logits + v.unsqueeze(-2), dim=-1)
        v = -torch.logsumexp(logits + u.unsqueeze(-1), dim=-2)
    return torch.exp(logits + u.unsqueeze(-1) + v.unsqueeze(-2))


def transposing(logits: Tensor, iters: int) -> Tensor:
    mix = logits.softmax(-1)
    for _ in range(2 * iters - 1):
        mix = F.normalize(mix.transpose(-1, -2), p=1.0, dim=-1)
    return mix


def by_einsum(mix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("btij,btjd->btid", mix, x)


def by_matmul(mix: Tensor, x: Tensor) -> Tensor:
    return torch.matmul(mix.transpose(-1, -2), x)


def by_bmm(mix: Tensor, x: Tensor) -> Tensor:
    batch, length, streams, width = x.shape
    product = torch.bmm(mix.reshape(-1, streams, streams), x.reshape(-1, streams, width))
    return product.view(batch, length, streams, width)


def by_sum(mix: Tensor, x: Tensor) -> Tensor:
    return (mix.unsqueeze(-1) * x.unsqueeze(-2)).sum(2)


class Handmade(nn.Module):
    """A model with one hyper-connection whose three generators are linear layers after a norm with a gain."""

    def __init__(self, width: int, streams: int, normalise: Callable[..., Tensor], mix: Callable[..., Tensor]) -> None:
        super().__init__()
        self.streams, self.normalise, self.mix = streams, normalise, mix
        self.first, self.inner, self.last = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 5)
        self.norm = nn.RMSNorm(streams * width)
        self.a = nn.Linear(streams * width, streams)
        self.b = nn.Linear(streams * width, streams)
        self.c = nn.Linear(streams * width, streams**2)
        self.alpha = nn.Parameter(torch.full((3,), 0.01))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.first(inputs).unsqueeze(-2).repeat(1, 1, self.streams, 1)
        flat = self.norm(x.flatten(-2))
        read = torch.sigmoid(self.alpha[0] * self.a(flat))
        write = 2 * torch.sigmoid(self.alpha[1] * self.b(flat))
        mix = self.normalise(self.alpha[2] * self.c(flat).unflatten(-1, (self.streams, self.streams)), 5)
        y = torch.relu(self.inner((read.unsqueeze(-1) * x).sum(-2)))
        x = self.mix(mix, x) + torch.einsum("btn,btd->btnd", write, y)
        return self.last(x.sum(-2))


class OneMatrix(nn.Module):
    """A model with one hyper-connection whose generators are one matrix; the norm is divided out last."""

    def __init__(self, width: int, streams: int = 3) -> None:
        super().__init__()
        self.streams, k = streams, streams * (streams + 2)
        self.first, self.inner, self.last = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 5)
        self.phi = nn.Parameter(0.02 * torch.randn(streams * width, k))
        self.alpha, self.beta = nn.Parameter(torch.full((3,), 0.01)), nn.Parameter(torch.zeros(k))

    def forward(self, inputs: Tensor) -> Tensor:
        n = self.streams
        x = self.first(inputs).unsqueeze(-2).repeat(1, 1, n, 1)
        flat = x.flatten(-2)
        read, write, mix = torch.split((flat @ self.phi) / (flat.norm(dim=-1, keepdim=True) + 1e-6), [n, n, n * n], -1)
        read = torch.sigmoid(self.alpha[0] * read + self.beta[:n])
        write = 2 * torch.sigmoid(self.alpha[1] * write + self.beta[n : 2 * n])
        mix = exponential((self.alpha[2] * mix + self.beta[2 * n :]).unflatten(-1, (n, n)), 5)
        y = torch.relu(self.inner(torch.einsum("btn,btnd->btd", read, x)))
        return self.last((by_einsum(mix, x) + write.unsqueeze(-1) * y.unsqueeze(2)).sum(-2))


INPUTS = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
VARIANTS = [
    (2, exponential, by_einsum),
    (4, reciprocals, by_matmul),
    (8, logarithms, by_sum),
    (3, log_softmax, by_bmm),
    (4, potentials, by_matmul),
    (2, transposing, by_einsum),
]


@pytest.mark.parametrize("capture", ["symbolic", "export"])
@pytest.mark.parametrize(("streams", "normalise", "mix"), VARIANTS, ids=lambda each: getattr(each, "__name__", each))
def test_a_handmade_hyper_connection_is_found_with_its_exponents(
    capture: CaptureMethod, streams: int, normalise: Callable[..., Tensor], mix: Callable[..., Tensor]
) -> None:
    if capture == "symbolic" and mix is by_bmm:
        pytest.skip("x.shape cannot be unpacked in a symbolic trace")
    large, small = (Handmade(width, streams, normalise, mix) for width in (128, 32))
    result = abcfx.transform(large, INPUTS, base=small, capture=capture, optimizer="adam")
    check(result, ["a.weight", "b.weight", "c.weight"])
    if capture == "symbolic":
        absolute = abcfx.transform(Handmade(64, streams, normalise, mix), INPUTS)
        check(absolute, ["a.weight", "b.weight", "c.weight"])


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_one_matrix_with_the_norm_after_it(capture: CaptureMethod) -> None:
    result = abcfx.transform(OneMatrix(128), INPUTS, base=OneMatrix(32), capture=capture)
    check(result, ["phi"])
    assert result.spec["beta"]["role"] == "scalar"


def check(result: abcfx.Transformed, generators: list[str]) -> None:
    kinds = [data["kind"].name for _, data in result.dag.nodes(data=True)]
    assert kinds.count("mix") == 1
    assert len(kinds) < 45, "the iterations were not taken together"
    for name in generators:
        row = result.spec[name]
        assert (row["role"], number(row["a"]) + row["b"], number(row["a"]) + row["c"]) == ("readout", 1.0, 1.0), name
    assert result.spec["inner.weight"]["role"] == "hidden"
    alpha = result.spec["alpha"]
    assert (alpha["role"], alpha["a"], alpha["b"], alpha["c"]) == ("scalar", 0.0, 0.0, 0.0)
    (mix,) = (node for node, data in result.dag.nodes(data=True) if data["kind"].name == "mix")
    streams = result.dag.nodes[mix]["kind"].inputs[1]
    assert result.dag.nodes[mix]["s"] == result.dag.nodes[streams]["s"]
    assert result.dag.nodes[mix]["r"] <= result.dag.nodes[streams]["r"]


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_the_module_gets_the_exponents_of_a_readout(capture: CaptureMethod) -> None:
    result = abcfx.transform(gpt(256), TOKENS, base=gpt(64), capture=capture, optimizer="adamw")
    assert any("1 product (scaled_dot_product_attention)" in note for note in result.notes), result.notes
    for name in ("blocks.0.attn_hc", "blocks.0.mlp_hc", "collapse"):
        weight = result.spec[f"{name}.weight"]
        assert (weight["role"], weight["a"], weight["b"], weight["c"]) == ("readout", 0.5, 0.5, 0.5)
        for vector in ("scale", "base"):
            row = result.spec[f"{name}.{vector}"]
            assert (row["role"], row["a"], row["b"], row["c"], row["growth"]) == ("scalar", 0, 0, 0, [0.0])


def test_sgd_takes_the_sum_over_the_width_into_account_that_a_gate_sends_back() -> None:
    sgd = abcfx.transform(
        gpt(256), TOKENS, base=gpt(64), optimizer="sgd", apply="off", capture=abcfx.Capture(verify=False)
    )
    assert sgd.spec["blocks.0.attn_hc.weight"]["c"] == 1.0
    assert sgd.spec["blocks.0.attn_hc.base"]["c"] == 0.0


def test_a_bottleneck_and_a_gate_that_do_not_weigh_their_own_input_are_no_generators() -> None:
    class Other(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 5)
            self.down, self.up, self.gate = nn.Linear(width, 3), nn.Linear(3, width), nn.Linear(width, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            x = torch.tanh(self.first(inputs))
            y = self.inner(x) * torch.sigmoid(self.gate(x))
            return self.last(y + self.up(torch.sigmoid(self.down(x))))

    result = abcfx.transform(Other(128), INPUTS, base=Other(32))
    for name in ("down.weight", "gate.weight"):
        assert (result.spec[name]["role"], result.spec[name]["b"]) == ("hidden", 0.5)


def check_slopes(widths: tuple[int, ...], seeds: int, tolerance: float) -> None:
    result = abcfx.coord_check(
        lambda width: gpt(width),
        TOKENS,
        widths=widths,
        seeds=range(seeds),
        steps=STEPS,
        capture=abcfx.Capture(verify=False),
    )
    print(result)
    last = [s for s in result.slopes if s.statistic == "update" and s.step == STEPS]
    ours, plain = ({s.node: s.mean for s in last if s.model == model} for model in ("transformed", "standard"))
    generators = [node for node in ours if "hc" in node or "collapse" in node]
    assert len(generators) == 3
    assert max(abs(given(slope)) for slope in ours.values()) < tolerance
    assert min(given(plain[node]) for node in generators) > 0.4
    assert result.control == "FAIL"


@pytest.mark.slow
def test_updates_of_every_layer_keep_their_size() -> None:
    check_slopes((64, 256), seeds=2, tolerance=0.4)


@pytest.mark.slow
def test_updates_of_every_layer_keep_their_size_up_to_width_512() -> None:
    check_slopes(WIDTHS, seeds=10, tolerance=0.15)

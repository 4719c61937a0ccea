"""The cost of DynamicAlignment: training steps with it and without it, and the time of its parts.

Run `OMP_NUM_THREADS=1 pytest -n 0 tests/benchmarks/test_dynamic_cost.py --benchmark-enable -s -m ""`. Variants take
turns in one run; printed are ratios of medians of processor time, for `every=10` of the means of ten steps. Only
wrong answers fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from models import sequential
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import abcfx
from abcfx.dynamic.measured import products_of_many
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.theory.parametrizations import Alignments


def gpt(width: int) -> nn.Module:
    return GPT(GPTConfig(d_model=width, n_layer=4))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (z.unflatten(-1, (-1, 16)).transpose(1, 2) for z in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, 10): patches of 4, a class token, four blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


MAKE: dict[str, Callable[[int], nn.Module]] = {"mlp": lambda width: sequential(width, 64, 10), "gpt": gpt, "vit": ViT}


def build(kind: str) -> tuple[abcfx.Transformed, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    inputs = {
        "mlp": torch.randn(128, 64),
        "gpt": torch.randint(0, 128, (16, 64)),
        "vit": torch.randn(16, 3, 32, 32),
    }[kind]
    labels = inputs if kind == "gpt" else torch.randint(0, 10, (len(inputs),))
    base = MAKE[kind](64)
    result = abcfx.transform(MAKE[kind](256), inputs, base=base, lr=1e-3, capture=abcfx.Capture(verify=False))
    return result, inputs, labels


def trainer(kind: str, every: int | None) -> Callable[[], float]:
    result, inputs, labels = build(kind)
    optimizer = torch.optim.Adam(result.groups(per_parameter=True))
    dynamic = None
    if every is not None:
        dynamic = abcfx.DynamicAlignment(result, optimizer, warmup=0, every=every)
        dynamic.capture_initial(inputs)

    def step() -> float:
        loss = F.cross_entropy(result.module(inputs).flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if dynamic is not None:
            dynamic.step()
        return loss.item()

    return step


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("kind", ["mlp", *(pytest.param(each, marks=pytest.mark.slow) for each in ("gpt", "vit"))])
def test_training_step_with_and_without(benchmark: BenchmarkFixture, kind: str, every: int) -> None:
    runs = [trainer(kind, None), trainer(kind, every)]
    seconds: list[list[float]] = [[], []]

    def one_round() -> None:
        for run, times in zip(runs, seconds, strict=True):
            start = time.process_time()
            for _ in range(every):
                run()
            times.append((time.process_time() - start) / every)

    rounds = 1 if benchmark.disabled else (100 if kind == "mlp" else 6)
    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=min(rounds - 1, 2))
    plain, dynamic = (median(times[-rounds:]) for times in seconds)
    benchmark.extra_info["ratio"] = dynamic / plain
    after = [[run() for _ in range(3)][-1] for run in runs]
    assert after[0] != after[1] and all(0 < loss < 6 for loss in after)  # both train, at other rates
    print(f"\n{kind}, every {every}: {dynamic / plain:.3f} of {plain * 1e3:.2f} ms")


@pytest.mark.parametrize("part", ["capture", "products", "LP", "whole measure"])
@pytest.mark.parametrize("kind", ["mlp", "gpt", "vit"])
def test_where_the_time_goes(benchmark: BenchmarkFixture, kind: str, part: str) -> None:
    """The rest, beside capture, products and LP, is bookkeeping."""
    result, inputs, _ = build(kind)
    dynamic = abcfx.DynamicAlignment(result, torch.optim.Adam(result.groups(per_parameter=True)), warmup=0, every=1)
    dynamic.capture_initial(inputs)
    for parameter in result.module.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    probe = dynamic._probe
    assert probe is not None
    alignment = dict(dynamic._smoothed)

    def capture() -> tuple[torch.Tensor, ...]:
        with probe._live.entered():
            return probe._run(probe.flat)

    results = capture()
    parts: dict[str, Callable[[], object]] = {
        "capture": capture,
        "products": lambda: products_of_many([layer for _, layer in probe._layer_states(results)]),
        "LP": lambda: dynamic._rate_factors.solve(alignment),
        "whole measure": dynamic.step,
    }
    benchmark.pedantic(
        parts[part], rounds=1 if benchmark.disabled else 30, warmup_rounds=0 if benchmark.disabled else 3
    )


def test_solve_of_two_hundred_parameters(benchmark: BenchmarkFixture) -> None:
    """A GPT of 16 layers has 199 parameters; alignments move a little between solves, as in a run."""
    model, base = (GPT(GPTConfig(d_model=width, n_layer=16)) for width in (128, 64))
    tokens = torch.zeros(2, 8, dtype=torch.long)
    result = abcfx.transform(model, tokens, base=base, capture=abcfx.Capture(verify=False))
    dynamic = abcfx.DynamicAlignment(result, torch.optim.Adam(result.groups(per_parameter=True)))
    generator = torch.Generator().manual_seed(0)
    current = {node: torch.tensor(terms) for node, terms in dynamic._smoothed.items()}

    def solve() -> dict[str, float]:
        for node, terms in current.items():
            current[node] = (terms + 0.01 * torch.randn(3, generator=generator)).clamp(0.5, 1.0)
        moved = {node: Alignments(*terms.tolist()) for node, terms in current.items()}
        start = time.process_time()
        c = dynamic._rate_factors.solve(moved)
        seconds.append(time.process_time() - start)
        return c

    seconds: list[float] = []
    rounds = 1 if benchmark.disabled else 50
    c = benchmark.pedantic(solve, rounds=rounds, warmup_rounds=rounds // 10)
    assert len(c) >= 66 and len(result.spec) >= 195
    print(f"\n{len(result.spec)} parameters: {median(seconds[-rounds:]) * 1e3:.2f} ms for one solve")

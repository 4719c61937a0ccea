"""The cost of a transformed model: training steps with absorbed and inserted scales, optimizer steps with groups.

Run `OMP_NUM_THREADS=1 pytest -n 0 tests/benchmarks/test_overhead.py --benchmark-enable -s -m ""`. Each test times its
variants by turns in one run, so that a busy machine slows all of them alike, and prints the median over rounds of each
one's time relative to the first; only wrong answers fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import abcfx
from abcfx.examples.gpt import GPT, GPTConfig

ROUNDS = 30


def by_turns(benchmark: BenchmarkFixture, variants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Measure the time of each variant over that of the first; the order changes from round to round."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def one_round() -> None:
        names.append(names.pop(0))
        for name in names:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)

    rounds = 1 if benchmark.disabled else ROUNDS
    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=min(rounds - 1, 5))
    of_rounds = {name: seconds[name][-rounds:] for name in variants}
    first = of_rounds[next(iter(variants))]
    ratios = {n: median(t / t0 for t, t0 in zip(each, first, strict=True)) for n, each in of_rounds.items()}
    benchmark.extra_info["ratios"] = ratios
    print("\n" + ", ".join(f"{n} {ratio:.3f} ({median(of_rounds[n]) * 1e3:.2f} ms)" for n, ratio in ratios.items()))
    return ratios


def gpt(width: int) -> nn.Module:
    torch.manual_seed(0)
    return GPT(GPTConfig(d_model=width, n_layer=4))


@pytest.mark.parametrize("width", [128, pytest.param(512, marks=pytest.mark.slow)])
def test_training_step(benchmark: BenchmarkFixture, width: int) -> None:
    """Forward and backward, eager: as written, absorbed (into the model's own object, and as a graph), inserted."""
    tokens = torch.randint(0, 128, (8, 64), generator=torch.Generator().manual_seed(0))
    own = gpt(width)
    abcfx.transform(own, tokens, base=gpt(64), apply="inplace", capture=abcfx.Capture(verify=False))
    graphs = {
        scales: abcfx.transform(
            gpt(width), tokens, base=gpt(64), apply=scales, capture=abcfx.Capture(verify=False)
        ).module
        for scales in ("absorb", "insert")
    }

    def step(module: nn.Module) -> Callable[[], object]:
        def run() -> None:
            F.cross_entropy(module(tokens).flatten(0, 1), tokens.flatten()).backward()
            for parameter in module.parameters():
                parameter.grad = None

        return run

    variants = {"as written": gpt(width), "absorbed, own object": own, "absorbed": graphs["absorb"]}
    by_turns(benchmark, {name: step(m) for name, m in (variants | {"inserted": graphs["insert"]}).items()})
    expected = graphs["insert"](tokens)
    for module in (own, graphs["absorb"]):
        torch.testing.assert_close(module(tokens), expected)


@pytest.mark.parametrize("implementation", ["foreach", "fused"])
@pytest.mark.parametrize("width", [128, pytest.param(512, marks=pytest.mark.slow)])
def test_optimizer_step(benchmark: BenchmarkFixture, width: int, implementation: str) -> None:
    """AdamW with the groups of the plan, beside one group of all parameters."""
    tokens = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    result = abcfx.transform(gpt(width), tokens, base=gpt(64), optimizer="adamw", capture=abcfx.Capture(verify=False))
    model = gpt(width)
    for parameter in (*model.parameters(), *result.module.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-3)
    foreach, fused = implementation == "foreach", implementation == "fused"
    one = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=foreach, fused=fused)
    ours = torch.optim.AdamW(result.param_groups, foreach=foreach, fused=fused)
    by_turns(benchmark, {"one group": one.step, f"{len(result.param_groups)} groups": ours.step})
    assert sum(len(group["params"]) for group in result.param_groups) == len(list(model.parameters()))

"""What DynamicAlignment costs: a whole training step with it against one without, and where its time goes.

Run `OMP_NUM_THREADS=1 pytest tests/benchmarks/test_dynamic_cost.py --benchmark-enable -s -m ""`. Variants take turns in
one run; printed are ratios of medians, for `every=10` of the means of ten steps. Only wrong answers fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import abcfx
from abcfx.alignment import moments
from abcfx.examples.gpt import GPT, GPTConfig


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def gpt(width: int) -> nn.Module:
    return GPT(GPTConfig(d_model=width, n_layer=4))


def build(kind: str) -> tuple[abcfx.Transformed, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    make = gpt if kind == "gpt" else mlp
    inputs = torch.randint(0, 128, (16, 64)) if kind == "gpt" else torch.randn(128, 64)
    labels = inputs if kind == "gpt" else torch.randint(0, 10, (128,))
    result = abcfx.transform(make(256), inputs, base=make(64), lr=1e-3, groups="parameter", verify=False)
    return result, inputs, labels


def trainer(kind: str, every: int | None) -> Callable[[], float]:
    result, inputs, labels = build(kind)
    optimizer = torch.optim.Adam(result.param_groups)
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
@pytest.mark.parametrize("kind", ["mlp", pytest.param("gpt", marks=pytest.mark.slow)])
def test_training_step_with_and_without(benchmark: BenchmarkFixture, kind: str, every: int) -> None:
    runs = [trainer(kind, None), trainer(kind, every)]
    seconds: list[list[float]] = [[], []]

    def one_round() -> None:
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(every):
                run()
            times.append((time.perf_counter() - start) / every)

    rounds = 1 if benchmark.disabled else (60 if kind == "mlp" else 8)
    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=min(rounds - 1, 2))
    plain, dynamic = (median(times[-rounds:]) for times in seconds)
    benchmark.extra_info["ratio"] = dynamic / plain
    after = [[run() for _ in range(3)][-1] for run in runs]
    assert after[0] != after[1] and all(0 < loss < 6 for loss in after)  # both train, at other rates
    print(f"\n{kind}, every {every}: {dynamic / plain:.3f} of {plain * 1e3:.2f} ms")


@pytest.mark.parametrize("part", ["probe", "products", "LP", "whole measure"])
@pytest.mark.parametrize("kind", ["mlp", "gpt"])
def test_where_the_time_goes(benchmark: BenchmarkFixture, kind: str, part: str) -> None:
    result, inputs, _ = build(kind)
    dynamic = abcfx.DynamicAlignment(result, torch.optim.Adam(result.param_groups), warmup=0, every=1)
    dynamic.capture_initial(inputs)
    for parameter in result.module.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    probe = dynamic._probe
    assert probe is not None
    z0, w0 = dynamic._first
    z, w = probe.inputs(), probe.weights()
    alignment = dict(dynamic._smoothed)
    parts: dict[str, Callable[[], object]] = {
        "probe": lambda: (probe.inputs(), probe.weights()),
        "products": lambda: [moments(z0[n], w0[n], z[n], w[n]) for n in z],
        "LP": lambda: dynamic._rates.solve(alignment),
        "whole measure": dynamic.step,
    }
    benchmark.pedantic(
        parts[part], rounds=1 if benchmark.disabled else 30, warmup_rounds=0 if benchmark.disabled else 3
    )

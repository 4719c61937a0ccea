"""On a GPU, models train under bf16 autocast, change in place on the device, and have their alignment measured."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.plan.options import ApplyMode

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
IDS = torch.randint(0, 128, (8, 33), generator=torch.Generator().manual_seed(0))


def gpt(width: int, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(d_model=width))


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ids: torch.Tensor,
    steps: int,
    dtype: torch.dtype | None = None,
) -> tuple[list[float], torch.Tensor]:
    losses = []
    for _ in range(steps):
        with torch.autocast(DEVICE, enabled=dtype is not None, dtype=dtype):
            logits = module(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, logits


@pytest.mark.parametrize("scales", ["insert", "absorb"])
def test_a_model_on_the_device_trains_under_bf16_autocast(scales: ApplyMode) -> None:
    ids = IDS.to(DEVICE)
    model = gpt(128).to(DEVICE)
    result = abcfx.transform(model, ids[:2, :-1], base=gpt(64).to(DEVICE), optimizer="adamw", apply=scales, lr=2**-8)
    assert {p.device.type for p in result.module.parameters()} == {DEVICE}
    losses, logits = train(result.module, torch.optim.AdamW(result.param_groups), ids, 10, dtype=torch.bfloat16)
    assert logits.dtype == torch.bfloat16
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.5


def test_autocast_follows_the_run_without_it() -> None:
    ids = IDS.to(DEVICE)
    runs = []
    for dtype in (None, torch.bfloat16):
        result = abcfx.transform(gpt(128), IDS[:2, :-1], base=gpt(64), optimizer="adamw", lr=2**-8)
        result.module.to(DEVICE)  # the same Parameter objects: groups made before hold them
        runs.append(train(result.module, torch.optim.AdamW(result.param_groups), ids, 10, dtype)[0])
    assert runs[1] == pytest.approx(runs[0], abs=0.05)


def test_absorbed_in_place_on_the_device_equals_the_cpu() -> None:
    outputs, losses = [], []
    for device in ("cpu", DEVICE):
        model, ids = gpt(128).to(device), IDS.to(device)
        base = gpt(64).to(device)
        result = abcfx.transform(model, ids[:2, :-1], base=base, optimizer="adamw", lr=2**-8, apply="inplace")
        assert result.module is model and next(model.parameters()).device.type == device
        outputs.append(model(ids[:, :-1]).detach().cpu())
        optimizer = torch.optim.AdamW(result.param_groups)
        steps = []
        for _ in range(5):
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)


def test_alignment_is_measured_on_the_device() -> None:
    rows = []
    for device in ("cpu", DEVICE):
        ids = IDS.to(device)
        result = abcfx.transform(gpt(128).to(device), ids[:2, :-1], base=gpt(64).to(device), optimizer="adam", lr=2**-8)
        optimizer = torch.optim.Adam(result.groups(per_parameter=True))
        dynamic = abcfx.DynamicAlignment(result, optimizer, warmup=2, every=1)
        dynamic.capture_initial(ids[:, :-1])
        for _ in range(5):
            loss = F.cross_entropy(result.module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            dynamic.step()
        rows.append([row for row in dynamic.history if row["step"] == 3])
    assert rows[0]
    for ours, theirs in zip(rows[1], rows[0], strict=True):
        assert ours["parameter"] == theirs["parameter"]
        for term in ("alpha", "omega", "u", "c"):
            assert (ours[term] is None) == (theirs[term] is None)
            assert ours[term] is None or ours[term] == pytest.approx(theirs[term], abs=0.02)

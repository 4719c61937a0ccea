"""Every public function leaves the models, random numbers and settings of torch that it was given as they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import abcfx
from abcfx.hyper_connections import HyperConnection, diagnose, find_hyper_connections


class Streams(nn.Module):
    """A model with one hyper-connection."""

    def __init__(self) -> None:
        """Make the hyper-connection and its layer."""
        super().__init__()
        self.mixed, self.layer = HyperConnection(8, 2), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both to streams (batch, 2, 8)."""
        read, write, mix = self.mixed(x)
        return self.mixed.update(x, self.layer(read), write, mix)


def mlp(width: int = 8) -> nn.Sequential:
    """Return a model with dropout and batch norm: one part in eval mode, one frozen, one in another dtype."""
    model = nn.Sequential(
        nn.Linear(4, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(width, width),
        nn.Linear(width, 2),
    )
    model[1].eval()
    model[4].bias.requires_grad_(False)
    return model.double()


def plain(width: int = 8) -> nn.Sequential:
    """Return a model that can grow and that has no active dropout."""
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)).eval()


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
BATCH = (X, torch.zeros(5, dtype=torch.long))


def _optimizer_check(models: list[nn.Module]) -> None:
    result = abcfx.transform(models[0], X, base=models[1])
    abcfx.check_optimizer(torch.optim.AdamW(result.param_groups), result)


def _dynamic(models: list[nn.Module]) -> None:
    result = abcfx.transform(models[0], X, base=models[1])
    dynamic = abcfx.DynamicAlignment(result, torch.optim.AdamW(result.groups(per_parameter=True)))
    dynamic.capture_initial(X)
    dynamic.load_state_dict(dynamic.state_dict())


def _fold(models: list[nn.Module]) -> None:
    result = abcfx.transform(models[0], X, base=models[1])
    result.fold()
    str(result), result.to_dict(), result.to_mermaid(), result.explain("0.weight")


def _grow(models: list[nn.Module]) -> None:
    with torch.random.fork_rng():
        large = plain(16)
    grown = abcfx.grow(models[0], large, X.float())
    abcfx.verify_growth(models[0], grown, (X.float(), BATCH[1]), raises=False)


CALLS: dict[str, tuple[Callable[[], list[nn.Module]], Callable[[list[nn.Module]], Any]]] = {
    "transform": (lambda: [mlp(16), mlp()], lambda m: abcfx.transform(m[0], X, base=m[1])),
    "absorb": (lambda: [mlp(16), mlp()], lambda m: abcfx.transform(m[0], X, base=m[1], apply="absorb")),
    "export": (lambda: [mlp(16), mlp()], lambda m: abcfx.transform(m[0], X, base=m[1], capture="export")),
    "record": (lambda: [mlp(16), mlp()], lambda m: abcfx.transform(m[0], X, base=m[1], capture="record")),
    "refused": (lambda: [mlp(16), mlp()], lambda m: abcfx.transform(m[0], X[:, :3], base=m[1])),
    "check_optimizer": (lambda: [mlp(16), mlp()], _optimizer_check),
    "dynamic": (lambda: [mlp(16), mlp()], _dynamic),
    "fold and reports": (lambda: [mlp(16), mlp()], _fold),
    "grow": (lambda: [plain()], _grow),
    "verify_growth": (
        lambda: [plain(), plain(16)],
        lambda m: abcfx.verify_growth(m[0], m[1], (X.float(), BATCH[1]), raises=False),
    ),
    "diagnose": (lambda: [Streams().eval()], lambda m: diagnose(model=m[0], args=torch.ones(3, 2, 8), samples=2)),
    "find": (lambda: [Streams()], lambda m: find_hyper_connections(m[0], torch.ones(3, 2, 8))),
    "coord_check": (
        list,
        lambda m: abcfx.coord_check(mlp, BATCH, widths=(8, 16), steps=1, seeds=1, control=False),
    ),
    "transfer_check": (
        list,
        lambda m: abcfx.transfer_check(
            mlp, [BATCH] * 5, widths=(8, 16), steps=5, seeds=1, lrs=[0.1, 0.2, 0.3], backend="sequential"
        ),
    ),
    "tune": (
        list,
        lambda m: abcfx.tune(mlp, [BATCH] * 5, width=8, steps=5, seeds=1, budget=10, backend="sequential"),
    ),
}


def _of_model(model: nn.Module) -> list[object]:
    """Return what may not change: modes, and of each tensor its identity, kind and values."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    kinds = [(name, id(t), t.dtype, t.device, t.requires_grad, t.grad is None, t.data.tolist()) for name, t in tensors]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return [
        *kinds,
        *hooks,
        *((name, module.training) for name, module in model.named_modules()),
        sorted(model.__dict__),
    ]


def _of_torch() -> list[object]:
    """Return the random states and settings of the process."""
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    ]


@pytest.mark.parametrize("call", CALLS)
def test_nothing_changed(call: str) -> None:
    """Dtype, device, mode, gradients, hooks and values of the models are as before, and so are random numbers."""
    make, function = CALLS[call]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    models = make()
    inputs = X.tolist()
    before = [_of_model(model) for model in models], _of_torch()
    try:
        function(models)
    except abcfx.AbcfxError:
        assert call == "refused"
    assert [_of_model(model) for model in models] == before[0]
    assert _of_torch() == before[1]
    assert X.tolist() == inputs and not X.requires_grad

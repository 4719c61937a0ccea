"""Inserted and absorbed scales give the same training run, for every optimizer and kind of model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

import pytest
import torch
import torch.nn.functional as F
from models import Lion
from torch import nn
from typed import scales_in

import abcfx
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.plan.options import ApplyMode
from abcfx.theory.optimizers import Optimizer

BASE, WIDTH, STEPS = 8, 32, 20  # m = 4: every factor is a power of two
CLASSES = 11


def mlp(width: int) -> nn.Module:
    layers = [nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*layers)


def tied_gpt(width: int) -> nn.Module:
    model = GPT(GPTConfig(vocab_size=CLASSES, block_size=5, n_layer=2, head_dim=4, d_model=width))
    model.head.weight = model.tok.weight
    return model


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


def resnet(width: int) -> nn.Module:
    stem = nn.Conv2d(3, width, 3, padding=1)
    return nn.Sequential(stem, ResidualBlock(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class MoE(nn.Module):
    """A mixture of two of four experts for each token, with their matrices stacked in one parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(CLASSES, width), nn.LayerNorm(width)
        self.router, self.head = nn.Linear(width, 4, bias=False), nn.Linear(width, CLASSES)
        self.up = nn.Parameter(torch.randn(4, width, 2 * width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(4, 2 * width, width) * (2 * width) ** -0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids).flatten(0, 1)
        y = self.norm(x)
        weights = self.router(y).softmax(-1)
        best, _ = weights.topk(2, dim=-1)
        weights = weights.masked_fill(weights < best[:, -1:], 0.0)
        experts = torch.bmm(F.silu(torch.bmm(y.expand(4, -1, -1), self.up)), self.down)
        return self.head(x + torch.einsum("ne,end->nd", weights, experts)).unflatten(0, ids.shape)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


IDS = torch.randint(0, CLASSES, (3, 5), generator=torch.Generator().manual_seed(1))
MODELS: dict[str, tuple[Callable[[int], nn.Module], torch.Tensor]] = {
    "MLP": (mlp, _noise(7, 6)),
    "GPT with tied head": (tied_gpt, IDS),
    "ResNet": (resnet, _noise(4, 3, 6, 6)),
    "MoE": (MoE, IDS),
}


class StackedMuon(torch.optim.Optimizer):
    """Jordan et al. 2024 for what torch's Muon refuses: kernels as matrices, stacked experts one by one."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 0.05)
                x = momentum.flatten(1) if p.ndim == 4 else momentum.transpose(-1, -2) if p.ndim == 3 else momentum
                tall, x = x.shape[-2] / x.shape[-1], x / x.norm(dim=(-2, -1), keepdim=True)
                for _ in range(5):
                    gram = x @ x.mT
                    x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
                x = x.mT if p.ndim == 3 else x.reshape(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * max(1.0, tall) ** 0.5 * x)


class Hyperparameters(TypedDict, total=False):
    """Numbers that `transform` is given."""

    lr: float
    eps: float
    weight_decay: float


class Trained(NamedTuple):
    """Options of `transform` and a function that builds the optimizers from its result."""

    optimizer: Optimizer | dict[str, Optimizer]
    make: Callable[[abcfx.Transformed], list[torch.optim.Optimizer]]
    options: Hyperparameters


def _adamw_and_muon(result: abcfx.Transformed) -> list[torch.optim.Optimizer]:
    groups = result.groups_for("muon")
    cls = torch.optim.Muon if all(p.ndim == 2 for group in groups for p in group["params"]) else StackedMuon
    return [cls(groups), torch.optim.AdamW(result.groups_for("adamw"))]


OPTIMIZERS = {
    "Adam": Trained("adam", lambda r: [torch.optim.Adam(r.param_groups)], {"lr": 0.01, "eps": 1e-3}),
    "Adam with weight decay": Trained(
        "adam", lambda r: [torch.optim.Adam(r.param_groups)], {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}
    ),
    "AdamW": Trained(
        "adamw", lambda r: [torch.optim.AdamW(r.param_groups)], {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}
    ),
    "SGD": Trained(
        "sgd", lambda r: [torch.optim.SGD(r.param_groups, momentum=0.9)], {"lr": 0.02, "weight_decay": 0.01}
    ),
    "Lion": Trained("lion", lambda r: [Lion(r.param_groups)], {"lr": 0.003, "weight_decay": 0.1}),
    "Adafactor": Trained(
        "adafactor", lambda r: [torch.optim.Adafactor(r.param_groups)], {"lr": 0.02, "weight_decay": 0.1}
    ),
    "Muon": Trained(
        {"hidden": "muon", "default": "adamw"}, _adamw_and_muon, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}
    ),
}


def transformed(name: str, scales: ApplyMode, trained: Trained) -> abcfx.Transformed:
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    base, model = build(BASE).double(), build(WIDTH).double()
    for each in (base, model):
        for parameter in each.parameters():
            if parameter.ndim == 1:  # Adafactor's updates follow the size of a parameter only where it has one
                nn.init.normal_(parameter, 0.5, 0.1)
    return abcfx.transform(
        model,
        inputs,
        base=base,
        optimizer=trained.optimizer,
        apply=scales,
        capture=abcfx.Capture(verify=False),
        **trained.options,
    )


def outputs(name: str, result: abcfx.Transformed, trained: Trained) -> torch.Tensor:
    """Train and return the outputs before each step."""
    _, inputs = MODELS[name]
    optimizers, found = trained.make(result), []
    for _ in range(STEPS):
        found.append(result.module(inputs))
        logits = found[-1].flatten(0, -2)
        loss = F.cross_entropy(logits, torch.arange(len(logits)) * 3 % CLASSES)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return torch.stack(found).detach()


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference over all steps, relative to the largest output of each step."""
    difference = (one - other).flatten(1).abs().amax(1) / one.flatten(1).abs().amax(1)
    return float(difference.max())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_inserted_and_absorbed_scales_train_alike(model: str, optimizer: str) -> None:
    trained = OPTIMIZERS[optimizer]
    inserted, absorbed = (transformed(model, scales, trained) for scales in ("insert", "absorb"))
    assert scales_in(inserted.module) and not any(
        "logits" not in n.meta["abcfx"].label for n in scales_in(absorbed.module)
    )
    ours = outputs(model, inserted, trained)
    assert float((ours[-1] - ours[0]).abs().max() / ours[0].abs().max()) > 0.05, "it must have learnt something"
    assert largest_difference(ours, outputs(model, absorbed, trained)) <= 1e-12


@pytest.mark.parametrize("key", ["lr", "eps", "weight_decay"])
def test_each_hyperparameter_counts(key: str) -> None:
    """The runs part if one number is left as it is with inserted scales."""
    trained = OPTIMIZERS["AdamW"]
    inserted, absorbed = (transformed("GPT with tied head", scales, trained) for scales in ("insert", "absorb"))
    plan = {name: replace(row, **{key: getattr(inserted.plan[name], key)}) for name, row in absorbed.plan.items()}
    absorbed = replace(absorbed, outcome=replace(absorbed.outcome, plan=plan))
    runs = [outputs("GPT with tied head", result, trained) for result in (inserted, absorbed)]
    assert largest_difference(*runs) > 1e-6

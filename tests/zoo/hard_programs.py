"""Models that are hard to capture for the way they are programmed, such as with branches and side effects."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cases import Case, rand
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from abcfx.rules import register_rule
from abcfx.rules.op import Op
from abcfx.rules.values import Value

WIDTH = 8


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.norm, self.up = nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.relu(self.first(x))
        return self.last(torch.cat([skip, self.up(F.relu(self.norm(self.down(skip))))], 1))


class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * WIDTH, WIDTH), nn.GRUCell(WIDTH, WIDTH)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        messages = self.message(torch.cat([nodes[source], nodes[target]], -1))
        received = torch.zeros_like(nodes).scatter_add(0, target[:, None].expand_as(messages), messages)
        return self.update(received, nodes)


class TimeEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.norm = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU()), nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        frequencies = torch.exp(-torch.arange(WIDTH // 2, device=x.device) / (WIDTH // 2) * 9.2)
        angles = time[:, None] * frequencies
        scale, shift = self.mlp(torch.cat([angles.sin(), angles.cos()], -1)).chunk(2, -1)
        return self.out(self.norm(x) * (1 + scale[:, None]) + shift[:, None])


class HyperConnections(nn.Module):
    """Streams mixed by a doubly stochastic matrix, which is reached in a fixed number of rounds or by a loop."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds, self.layer, self.logits = rounds, nn.Linear(WIDTH, WIDTH), nn.Parameter(rand(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mix = self.logits.exp()
        if self.rounds:
            for _ in range(self.rounds):
                mix = mix / mix.sum(0)
                mix = mix / mix.sum(1, keepdim=True)
        else:
            while (mix.sum(0) - 1).abs().max() > 1e-4:
                mix = mix / mix.sum(0)
                mix = mix / mix.sum(1, keepdim=True)
        streams = torch.einsum("ij,btjd->btid", mix, x[:, :, None].expand(-1, -1, 4, -1))
        return (streams + self.layer(streams.mean(2))[:, :, None]).sum(2)


class MovingAverage(nn.Module):
    average: torch.Tensor
    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("average", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
                self.calls += 1
        return self.linear(x - self.average)


class ClippedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clamp(-0.01, 0.01)


@register_rule(ClippedGradient)
def clipped_gradient(op: Op, x: Value) -> Value:
    return op.pointwise(x)


class StraightThrough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clipped: Callable[[torch.Tensor], torch.Tensor] = ClippedGradient.apply
        return self.second(clipped(self.first(x)))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.head = reentrant, nn.Linear(WIDTH, WIDTH)
        self.block = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.block, self.head(x), use_reentrant=self.reentrant))


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: list[torch.Tensor]


class Structured(nn.Module):
    """A module that takes and gives containers and calls one block four times."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind, self.block = kind, nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, batch: dict[str, torch.Tensor], *, scale: float = 1.0, **extra: torch.Tensor) -> object:
        hidden: list[torch.Tensor] = [batch["x"] * scale + sum(extra.values())]
        for _ in range(4):
            hidden.append(self.block(hidden[-1]))
        if self.kind is dict:
            return {"logits": hidden[-1], "hidden": tuple(hidden), "nothing": None}
        return hidden if self.kind is list else Answer(hidden[-1], hidden)


class Branches(nn.Module):
    def __init__(self, on: str) -> None:
        super().__init__()
        self.on, self.linear = on, nn.Linear(WIDTH, WIDTH)
        self.tables: dict[int, torch.Tensor] = {}
        self.seen = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.on == "shape":
            x = x.flip(1) if x.shape[1] > 4 else x * 2
        elif self.on == "data":
            x = x + 1 if x.mean() > 0 else x - 1
        elif self.on == "torch random":
            return x if self.training and torch.rand(()).item() < 0.5 else self.linear(x)
        elif self.on == "python random":
            return x if self.training and random.random() < 0.5 else self.linear(x)
        elif self.on == "table by size":
            if x.shape[1] not in self.tables:
                self.tables[x.shape[1]] = torch.arange(x.shape[1], dtype=x.dtype)
            x = x + self.tables[x.shape[1]][:, None]
        y = self.linear(x)
        if self.on == "side effect":
            self.seen = float(y.detach().mean())
        return y


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda row: F.relu(self.linear(row)).cumsum(0))(x)


class HyperNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.target = nn.Linear(WIDTH, WIDTH * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        weight = self.maker(task).view(WIDTH, WIDTH)
        return torch.func.functional_call(self.target, {"weight": weight}, (x,))


class Casts(nn.Module):
    """A module that runs a part in another dtype: by converting a layer in forward, or by autocast."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.gate, self.out = how, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "module":
            return self.out(x) * self.gate.to(torch.float32)(x.float())
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = self.gate(x)
        return self.out(x) * y.float()


def normed(norm: Callable[[nn.Linear], nn.Module]) -> nn.Sequential:
    return nn.Sequential(norm(nn.Linear(WIDTH, 16)), nn.ReLU(), norm(nn.Linear(16, WIDTH)))


X, X3 = (rand(4, WIDTH),), (rand(3, 6, WIDTH),)
PROGRAMS = [
    Case("U-Net with concatenation", UNet, (rand(3, 3, 8, 8),)),
    Case("message passing by scatter", MessagePassing, (rand(5, WIDTH), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))),
    Case("diffusion time embedding", TimeEmbedding, (rand(3, 6, WIDTH), torch.arange(3.0))),
    Case("hyper-connections, fixed Sinkhorn", lambda: HyperConnections(5), X3),
    Case("hyper-connections, Sinkhorn until converged", lambda: HyperConnections(0), X3, captured=False),
    Case("buffers updated in training", MovingAverage, X3),
    Case("custom autograd.Function", StraightThrough, X),
    Case("weight norm", lambda: normed(parametrizations.weight_norm), X),
    Case("spectral norm", lambda: normed(parametrizations.spectral_norm), X),
    Case("orthogonal", lambda: normed(parametrizations.orthogonal), X),
    Case("checkpointing", lambda: Checkpointed(False), X3),
    Case("checkpointing, reentrant", lambda: Checkpointed(True), X3),
    Case("dict out, keywords in, a block called four times", lambda: Structured(dict), ({"x": X[0]},), {"more": X[0]}),
    Case("list out", lambda: Structured(list), ({"x": X[0]},), {"scale": 2.0}),
    Case("dataclass out, unknown to pytree", lambda: Structured(Answer), ({"x": X[0]},)),
    Case("branch on a shape", lambda: Branches("shape"), X3),
    Case("branch on data", lambda: Branches("data"), X3, captured=False),
    Case("rand().item() stochastic depth", lambda: Branches("torch random"), X3, captured=False),
    Case("random.random() stochastic depth", lambda: Branches("python random"), X3, captured=False),
    Case("table kept by size", lambda: Branches("table by size"), X3),
    Case("float(y) kept as a side effect", lambda: Branches("side effect"), X3),
    Case("vmap", Mapped, X3),
    Case("hypernetwork by functional_call", HyperNetwork, (rand(4, WIDTH), rand(WIDTH, seed=1))),
    Case("module converted in forward", lambda: Casts("module"), X3),
    Case("autocast region", lambda: Casts("autocast"), X3),
]

"""Models whose muP is written by hand, as people write it: scaled init, scaled rates, multipliers in forward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

BASE, VOCAB, LENGTH, CLASSES = 32, 61, 12, 10


def fan_in_init(model: nn.Module, std: float = 1.0) -> None:
    """Draw every matrix and kernel with a standard deviation of std / sqrt(fan_in), tables with std, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d):
            nn.init.normal_(module.weight, std=std / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Readout(nn.Linear):
    """A readout as microsoft/mup has it: init as at the base width, and the input divided by the ratio of widths."""

    def __init__(self, width: int, outputs: int, bias: bool = False) -> None:
        super().__init__(width, outputs, bias=bias)
        self.multiplier = BASE / width

    def init(self) -> None:
        """Draw the weight with the standard deviation of the base width."""
        nn.init.normal_(self.weight, std=BASE**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.multiplier)


class MLP(nn.Module):
    """Linear layers with biases, ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(20, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = Readout(width, CLASSES, bias=True)
        fan_in_init(self)
        self.head.init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)


class Attention(nn.Module):
    """Causal attention with two heads, whose head_dim grows: logits are divided by it."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.scale = math.sqrt(BASE / 2) / (width / 2)
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width, bias=False)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width, bias=False)
        self.mask: torch.Tensor
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (each.view(b, t, 2, d // 2).transpose(1, 2) for each in (q, k, v))
        logits = q @ k.transpose(-1, -2) * self.scale
        y = logits.masked_fill(self.mask, float("-inf")).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and beside a skip connection."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(width), Attention(width, fused)
        self.ln2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """A decoder; the readout of a tied one is the table of its tokens, with the logits divided by the ratio."""

    def __init__(self, width: int, fused: bool = True, tied: bool = False) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCAB, width), nn.Embedding(LENGTH, width)
        self.places: torch.Tensor
        self.register_buffer("places", torch.arange(LENGTH))
        self.blocks = nn.ModuleList(Block(width, fused) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = Readout(width, VOCAB)
        fan_in_init(self)
        self.head.init()
        if tied:
            self.head.weight = self.tok.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids) + self.pos(self.places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ConvBlock(nn.Module):
    """Two convolutions, each before a group norm, and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(4, width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ResNet(nn.Module):
    """A stem, two residual blocks, and a readout of the mean over places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(2))
        self.mix = nn.Conv2d(width, width, 1)
        self.head = Readout(width, CLASSES)
        fan_in_init(self)
        self.head.init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class MoE(nn.Module):
    """Tokens, a router over four experts whose weights are stacked, and a readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.norm = nn.Embedding(VOCAB, width), nn.LayerNorm(width)
        self.router = Readout(width, 4)
        self.up = nn.Parameter(torch.randn(4, width, 2 * width) / math.sqrt(width))
        self.down = nn.Parameter(torch.randn(4, 2 * width, width) / math.sqrt(2 * width))
        self.final, self.head = nn.LayerNorm(width), Readout(width, VOCAB)
        fan_in_init(self)
        self.router.init()
        self.head.init()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids)
        h = self.norm(x)
        gates = self.router(h).softmax(-1)
        hidden = F.gelu(torch.einsum("btd,edh->bteh", h, self.up))
        out = torch.einsum("bteh,ehd->bted", hidden, self.down)
        x = x + (gates.unsqueeze(-1) * out).sum(2)
        return self.head(self.final(x))


class SSM(nn.Module):
    """Tokens, one gated diagonal state-space layer with a state of four entries per channel, and a readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.norm = nn.Embedding(VOCAB, width), nn.LayerNorm(width)
        self.enter, self.gate = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.step = nn.Linear(width, width)
        self.decay = nn.Parameter(torch.log(torch.arange(1.0, 5.0)).repeat(width, 1))
        self.leave = nn.Linear(width, width, bias=False)
        self.final, self.head = nn.LayerNorm(width), Readout(width, VOCAB)
        fan_in_init(self)
        self.head.init()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids)
        h = self.norm(x)
        u, dt = self.enter(h), F.softplus(self.step(h))
        rate = -self.decay.exp()
        state, outputs = torch.zeros_like(u[:, 0]).unsqueeze(-1), []
        for t in range(4):
            state = state * torch.exp(dt[:, t].unsqueeze(-1) * rate) + (dt[:, t] * u[:, t]).unsqueeze(-1)
            outputs.append(state.mean(-1))
        y = torch.stack(outputs, 1) * F.silu(self.gate(h[:, :4]))
        x = x[:, :4] + self.leave(y)
        return self.head(self.final(x))


def tokens() -> torch.Tensor:
    """Return four rows of tokens."""
    return torch.randint(VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))


def images() -> torch.Tensor:
    """Return three small images."""
    return torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def features() -> torch.Tensor:
    """Return five rows of features."""
    return torch.randn(5, 20, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Group:
    """The numbers of one parameter, which a fault may change."""

    lr: float
    weight_decay: float = 0.0
    eps: float = 1e-8


Edit = Callable[[nn.Module, float], None]
EditGroup = Callable[[str, Group, float], Group]


@dataclass(frozen=True)
class Case:
    """A model with hand-written muP and its inputs.

    Attributes:
        build: builds it at a width.
        inputs: makes its example input.
        hidden: parts of the names of its matrices of which both dims grow.
    """

    build: Callable[[int], nn.Module]
    inputs: Callable[[], torch.Tensor]
    hidden: tuple[str, ...]

    def is_hidden(self, name: str, parameter: torch.Tensor) -> bool:
        """Whether both dims of a parameter grow."""
        return any(part in name for part in self.hidden) and parameter.ndim > 1

    def make(self, edit: Edit | None = None) -> Callable[[int], nn.Module]:
        """Return the function that builds the model of a width, and then edits it, given the ratio of widths."""

        def build(width: int) -> nn.Module:
            torch.manual_seed(width)
            model = self.build(width)
            if edit is not None:
                with torch.no_grad():
                    edit(model, width / BASE)
            return model

        return build

    def adam(self, edit: EditGroup | None = None) -> Callable[[nn.Module], torch.optim.Optimizer]:
        """Return the function that builds AdamW with hand-written muP rates, and edits the numbers of parameters."""

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            m, groups = width_of(model) / BASE, []
            for name, parameter in model.named_parameters():
                hidden = self.is_hidden(name, parameter)
                group = Group(1e-2 / m, 0.1 * m) if hidden else Group(1e-2, 0.1 if parameter.ndim > 1 else 0.0)
                group = group if edit is None else edit(name, group, m)
                groups.append(
                    {"params": [parameter], "lr": group.lr, "weight_decay": group.weight_decay, "eps": group.eps}
                )
            return torch.optim.AdamW(groups)

        return optimizer

    def sgd(self) -> Callable[[nn.Module], torch.optim.Optimizer]:
        """Return the function that builds SGD with hand-written muP rates."""

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            m, groups = width_of(model) / BASE, []
            for name, parameter in model.named_parameters():
                is_readout = "head" in name or "router" in name
                is_fixed = self.is_hidden(name, parameter) or (is_readout and "bias" in name)
                groups.append({"params": [parameter], "lr": 1e-2 * (1.0 if is_fixed else m)})
            return torch.optim.SGD(groups)

        return optimizer


def width_of(model: nn.Module) -> int:
    """Return the width of one of these models."""
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    return head.in_features


CASES = {
    "mlp": Case(MLP, features, ("hidden",)),
    "gpt": Case(GPT, tokens, ("attn", "up", "down")),
    "split": Case(lambda width: GPT(width, fused=False), tokens, ("attn", "up", "down")),
    "tied": Case(lambda width: GPT(width, tied=True), tokens, ("attn", "up", "down")),
    "resnet": Case(ResNet, images, ("conv", "mix")),
    "moe": Case(MoE, tokens, ("up", "down")),
    "ssm": Case(SSM, tokens, ("enter", "gate", "step", "leave")),
}

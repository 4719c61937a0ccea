"""Models, an optimizer and a short training run that tests of several rooms use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.optimizer import ParamsT

import abcfx
from abcfx.capture.state_mark import MARK
from abcfx.examples.gpt import GPT, GPTConfig

Built = TypeVar("Built")
Parameters = ParamSpec("Parameters")


def seeded(build: Callable[Parameters, Built], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Built:
    """Build a model after torch's generator was set to seed 0."""
    torch.manual_seed(0)
    return build(*args, **kwargs)


def unmarked(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a state dict without the mark that says that a graph multiplies them."""
    return {name: tensor for name, tensor in state.items() if name != MARK}


def sequential(width: int, inputs: int, outputs: int, hidden: int = 1) -> nn.Sequential:
    """Build linear layers with ReLU between them, numbered 0, 2, 4, ...; `hidden` of them are square."""
    square = [module for _ in range(hidden) for module in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), *square, nn.Linear(width, outputs))


def small_gpt(width: int, layers: int = 2, head_dim: int = 16) -> GPT:
    """Build the GPT of the examples for 16 tokens, with weights from seed 0."""
    torch.manual_seed(0)
    return GPT(GPTConfig(d_model=width, n_layer=layers, block_size=16, head_dim=head_dim))


class MLP(nn.Module):
    """Linear layers with ReLU between them: 20 inputs, `hidden` square layers, 10 outputs."""

    def __init__(self, width: int, hidden: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.emb = nn.Linear(20, width, bias=bias)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(hidden))
        self.head = nn.Linear(width, 10, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.emb(x))
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)


class TwoLayers(nn.Module):
    """Two linear layers with 6 inputs and 3 outputs, for tests whose models do something beside them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.first(x)))
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Block(nn.Module):
    """A language model of 11 tokens with one residual branch and a norm before its head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, width)
        self.fc = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 11, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.emb(ids)
        return self.head(self.norm(x + torch.tanh(self.fc(x))))


class TiedBlock(nn.Module):
    """A language model of 50 tokens with one residual branch; its head has the weight of its embedding.

    The norm before the head has no gain with `affine=False`: then nothing can take the multiplier of the head.
    """

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(50, width), nn.LayerNorm(width, elementwise_affine=affine)
        self.block = nn.Linear(width, width)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        return self.head(self.norm(x + torch.tanh(self.block(x))))


class Attention(nn.Module):
    """A language model of one attention block whose logits are computed as `how` says.

    `factors` multiply the embedding, the queries and the input of the head, as scale nodes do after `transform`.
    """

    bias: torch.Tensor

    def __init__(self, width: int, heads: int, how: str, factors: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.heads, self.how, self.factors = heads, how, factors
        self.emb, self.ln, self.head = nn.Embedding(11, width), nn.LayerNorm(width), nn.Linear(width, 11)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.qkv = nn.Linear(width, 3 * width) if "fused" in how else None
        self.q_norm = nn.LayerNorm(width // heads) if "normed" in how else None
        self.softmax_scale = (width // heads) ** -0.5
        self.register_buffer("bias", torch.randn(heads, 5, 5, generator=torch.Generator().manual_seed(1)))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        d, how, kt = q.shape[-1], self.how, k.transpose(-1, -2)
        if how == "sdpa" or how.startswith("fused"):
            return F.scaled_dot_product_attention(q, k, v)
        if how == "sdpa with scale":
            return F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale, attn_mask=self.bias)
        if how == "baddbmm":  # ALiBi as BLOOM writes it
            b, h, t = q.shape[:3]
            flat = [x.reshape(b * h, t, -1) for x in (q, k, v)]
            bias = self.bias.repeat(b, 1, 1)
            logits = torch.baddbmm(bias, flat[0], flat[1].transpose(1, 2), beta=1.0, alpha=self.softmax_scale)
            return (logits.softmax(-1) @ flat[2]).view(b, h, t, -1)
        if how == "einsum":
            logits = torch.einsum("bhtd,bhsd->bhts", q, k) * self.softmax_scale
            return torch.einsum("bhts,bhsd->bhtd", logits.softmax(-1), v)
        written: dict[str, Callable[[], torch.Tensor]] = {
            "divided": lambda: q @ kt / math.sqrt(d),
            "scaled before": lambda: (q * self.softmax_scale) @ kt,
            "both sides": lambda: (q / d**0.25) @ (kt / d**0.25),
            "after a bias": lambda: (q @ kt + self.bias) * self.softmax_scale,
            "soft cap": lambda: 20 * torch.tanh(q @ kt / math.sqrt(d) / 20),
            "tensor": lambda: q @ kt / torch.sqrt(torch.tensor(float(d))),
            "normed": lambda: q @ kt / math.sqrt(d),
            "none": lambda: q @ kt,
            "mup": lambda: q @ kt * 8 / d,
            "unknown": lambda: q @ kt * ids.double().mean(),
        }
        return written[how]().softmax(-1) @ v

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        at_emb, at_logits, at_head = self.factors
        x = self.emb(ids) * at_emb
        b, t, n = x.shape
        y = self.ln(x)
        q, k, v = self.qkv(y).chunk(3, -1) if self.qkv is not None else (self.q(y), self.k(y), self.v(y))
        q, k, v = (z.view(b, t, self.heads, n // self.heads).transpose(1, 2) for z in (q, k, v))
        q = q if self.q_norm is None else self.q_norm(q)
        out = self.attend(q * at_logits, k, v, ids)
        x = x + self.o(out.transpose(1, 2).reshape(b, t, n))
        return self.head(x * at_head)


class AttentionModule(nn.Module):
    """A residual branch made of `nn.MultiheadAttention`, which is called as a module."""

    def __init__(self, width: int, factor: float = 1.0) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 2)
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum: Chen et al. 2023 (arXiv 2302.06675), algorithm 2."""

    abcfx_family = abcfx.OptimizerFamily("lion", "sign")

    def __init__(self, params: ParamsT, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"betas": betas})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((beta1 * momentum + (1 - beta1) * p.grad).sign(), alpha=-group["lr"])
                momentum.lerp_(p.grad, 1 - beta2)


def trained(result: abcfx.Transformed, ids: torch.Tensor, steps: int, sgd: bool = False) -> list[torch.Tensor]:
    """Train a transformed language model of 11 tokens and return its output before each step."""
    optimizer: torch.optim.Optimizer
    optimizer = torch.optim.SGD(result.param_groups) if sgd else torch.optim.AdamW(result.param_groups)
    outputs = []
    for _ in range(steps):
        out = result.module(ids)
        outputs.append(out.detach())
        optimizer.zero_grad()
        F.cross_entropy(out.flatten(0, 1), (ids.flatten() * 3 + 1) % 11).backward()
        optimizer.step()
    return outputs

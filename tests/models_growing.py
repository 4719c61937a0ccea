"""Models that tests make larger, each built from its widths and other sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, LENGTH = 23, 6
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def drawn(model: ModuleT, seed: int = 0, std: float = 0.1) -> ModuleT:
    """Turn a model to float64 and add noise to every parameter, so that no bias is 0 and no gain is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.ndim == 1:
                buffer.add_(0.3 * torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype))
    return model


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw token ids of a shape, (2, LENGTH) by default."""
    return torch.randint(0, VOCABULARY, shape or (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys by their positions; `table` (length, head_dim / 2) holds the angles."""
    one, two = x.chunk(2, -1)
    cos, sin = table.cos(), table.sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


class Block(nn.Module):
    """Attention with q, k, v in one matrix, then a gated MLP; grouped queries and rotary positions are optional."""

    table: torch.Tensor | None

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        inner: int,
        rotary: bool,
        norm: Callable[..., nn.Module],
        eps: float,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.rows = [width, kv_heads * self.head_dim, kv_heads * self.head_dim]
        self.norm1, self.norm2 = norm(width, eps=eps), norm(width, eps=eps)
        self.qkv, self.proj = nn.Linear(width, sum(self.rows)), nn.Linear(width, width)
        self.gate, self.up, self.down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        half = self.head_dim // 2
        table = torch.arange(64.0)[:, None] / 100.0 ** (torch.arange(half) / half)
        self.register_buffer("table", table if rotary else None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(self.rows, -1)
        )
        if self.table is not None:
            q, k = (rotate(y, self.table[: x.shape[1]]) for y in (q, k))
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, 1) for y in (k, v))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Gpt(nn.Module):
    """A decoder with `layers` blocks."""

    def __init__(
        self,
        width: int = 16,
        heads: int = 2,
        kv_heads: int | None = None,
        inner: int = 24,
        layers: int = 2,
        tied: bool = False,
        rotary: bool = True,
        norm: Callable[..., nn.Module] = nn.RMSNorm,
        eps: float = 1e-5,
        vocabulary: int = VOCABULARY,
    ) -> None:
        super().__init__()
        self.tok = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, kv_heads or heads, inner, rotary, norm, eps) for _ in range(layers)
        )
        self.norm, self.head = norm(width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tok.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Experts(nn.Module):
    """The k best of several experts, their weights renormalised to a sum of 1; every expert sees every token."""

    def __init__(self, width: int, inner: int, experts: int, k: int) -> None:
        super().__init__()
        self.router, self.k = nn.Linear(width, experts, bias=False), k
        self.up = nn.Parameter(torch.randn(experts, width, inner) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, width) * inner**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, index = self.router(x).softmax(-1).topk(self.k, -1)
        chosen = chosen / chosen.sum(-1, keepdim=True)
        weights = torch.zeros(*x.shape[:-1], self.up.shape[0], dtype=x.dtype).scatter(-1, index, chosen)
        inner = F.gelu(torch.einsum("btd,edf->btef", x, self.up))
        return torch.einsum("btef,efd,bte->btd", inner, self.down, weights)


class Moe(nn.Module):
    """A language model with one layer of experts, which are stacked in tensors."""

    def __init__(self, width: int = 16, inner: int = 24, experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.tok, self.norm = nn.Embedding(VOCABULARY, width), nn.LayerNorm(width)
        self.experts, self.head = Experts(width, inner, experts, k), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        return self.head(x + self.experts(self.norm(x)))


class Residual(nn.Module):
    """A convolution, a residual block and a linear head for images of 3 channels; `norm` takes the channels."""

    def __init__(self, channels: int = 8, norm: Callable[..., nn.Module] = nn.BatchNorm2d, groups: int = 1) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, channels, 3, padding=1), norm(channels)
        self.conv, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups), norm(channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        return self.head((x + self.norm2(self.conv(x))).mean((2, 3)))


class Mlp(nn.Module):
    """Three linear layers with GELU between them, 6 inputs and 4 outputs."""

    def __init__(self, width: int = 8, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or width
        self.first, self.hidden, self.last = nn.Linear(6, width), nn.Linear(width, hidden), nn.Linear(hidden, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.gelu(self.hidden(F.gelu(self.first(x)))))


class DenseMlp(nn.Module):
    """A gated MLP without biases, which `upcycle` turns into experts."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ListedExperts(nn.Module):
    """The k best of several experts, which are submodules; every expert sees every token."""

    def __init__(self, width: int, inner: int, experts: int = 4, k: int = 2, renormalise: bool = True) -> None:
        super().__init__()
        self.router, self.k, self.renormalise = nn.Linear(width, experts, bias=False), k, renormalise
        self.experts = nn.ModuleList(DenseMlp(width, inner) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, index = self.router(x).softmax(-1).topk(self.k, -1)
        chosen = chosen / chosen.sum(-1, keepdim=True) if self.renormalise else chosen
        weights = torch.zeros(*x.shape[:-1], len(self.experts), dtype=x.dtype).scatter(-1, index, chosen)
        return torch.stack([expert(x) for expert in self.experts], -1).mul(weights.unsqueeze(-2)).sum(-1)


class FusedExperts(nn.Module):
    """The k best of several experts in tensors (experts, in, out); columns of gate and up alternate in one tensor."""

    def __init__(self, width: int, inner: int, experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.router, self.k = nn.Linear(width, experts), k
        self.gate_up = nn.Parameter(torch.randn(experts, width, 2 * inner) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, width) * inner**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, index = self.router(x).topk(self.k, -1)
        weights = torch.zeros(*x.shape[:-1], self.down.shape[0], dtype=x.dtype).scatter(-1, index, chosen.softmax(-1))
        both = torch.einsum("btd,edf->btef", x, self.gate_up)
        inner = F.silu(both[..., 0::2]) * both[..., 1::2]
        return torch.einsum("btef,efd,bte->btd", inner, self.down, weights)


class Stream(nn.Module):
    """A language model with residual blocks x + mlp(norm(x)); `mlp` takes the width and the inner width."""

    def __init__(self, mlp: Callable[[int, int], nn.Module], width: int = 16, inner: int = 24, layers: int = 2) -> None:
        super().__init__()
        self.tok, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.mlps = nn.ModuleList(mlp(width, inner) for _ in range(layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tok(tokens)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return self.head(x)

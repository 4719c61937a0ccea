"""Parts that mix tokens: attention, recurrences, convolutions, memories, norms over channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .part import Part, Sizes, linear, matrix

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def heads(m: Any, x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (m.sizes.heads, -1)).transpose(1, 2)


def joined(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def by_einsum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril()
    return torch.einsum("bhqk,bhkd->bhqd", logits.masked_fill(~mask, float("-inf")).softmax(-1), v)


def normed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return (4.0 * q @ k.mT).softmax(-1) @ v


def rotated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    half = q.shape[-1] // 2
    angles = torch.arange(q.shape[-2], dtype=q.dtype)[:, None] / 10 ** (torch.arange(half, dtype=q.dtype) / half)
    c, s = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    q, k = (x * c + torch.cat([-x[..., half:], x[..., :half]], -1) * s for x in (q, k))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def separate(attend: Attend) -> Part:
    """Attention with a layer each for queries, keys and values."""
    return Part(
        lambda s: {name: linear(s.width) for name in "qkvo"},
        lambda m, x: m.o(joined(attend(heads(m, m.q(x)), heads(m, m.k(x)), heads(m, m.v(x))))),
    )


def fused(cut: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Part:
    """Attention with one layer for queries, keys and values, which a function cuts apart."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(m, each) for each in cut(m.qkv(x)))
        return m.o(joined(F.scaled_dot_product_attention(q, k, v)))

    return Part(lambda s: {"qkv": linear(s.width, 3 * s.width), "o": linear(s.width)}, run)


def shared_queries(m: Any, x: torch.Tensor) -> torch.Tensor:
    q, y = heads(m, m.q(x)), x.flip(1)
    first = F.scaled_dot_product_attention(q, heads(m, m.k(x)), heads(m, m.v(x)))
    return m.o(joined(first + F.scaled_dot_product_attention(q, heads(m, m.k(y)), heads(m, m.v(y)))))


def module_twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.attention(x, x, x, need_weights=False)[0]
    return y + m.attention(y, x, x, need_weights=False)[0]


def attention_module(s: Sizes) -> dict[str, nn.Module]:
    return {"attention": nn.MultiheadAttention(s.width, s.heads, batch_first=True)}


def recurrent(m: Any, x: torch.Tensor) -> torch.Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for i in range(x.shape[1]):
        state = torch.tanh(m.i(x[:, i]) + m.h(state))
        states.append(state)
    return torch.stack(states, 1)


def over_channels(module: Callable[[Sizes], nn.Module]) -> Part:
    """A module that takes (batch, width, time)."""
    return Part(lambda s: {"f": module(s)}, lambda m, x: m.f(x.transpose(1, 2)).transpose(1, 2))


SEQUENCE: dict[str, Part] = {
    "attention": separate(F.scaled_dot_product_attention),
    "attention written out": separate(written_out),
    "attention by einsum": separate(by_einsum),
    "attention with normed queries": separate(normed),
    "rotary attention": separate(rotated),
    "fused attention": fused(lambda z: z.chunk(3, -1)),
    "attention after relu": fused(lambda z: F.relu(z).chunk(3, -1)),
    "attention after gelu": fused(lambda z: F.gelu(z).chunk(3, -1)),
    "shared queries": Part(lambda s: {name: linear(s.width) for name in "qkvo"}, shared_queries),
    "attention module": Part(attention_module, lambda m, x: m.attention(x, x, x, need_weights=False)[0]),
    "attention module twice": Part(attention_module, module_twice),
    "linear attention": Part(
        lambda s: {name: linear(s.width, bias=False) for name in "qkv"},
        lambda m, x: m.q(x).softmax(-1) @ (m.k(x).softmax(1).mT @ m.v(x)),
    ),
    "memory": Part(
        lambda s: {"k": matrix(5, s.width), "v": matrix(5, s.width, 1.0)},
        lambda m, x: (x @ m.k.t()).softmax(-1) @ m.v,
    ),
    "lstm": Part(lambda s: {"f": nn.LSTM(s.width, s.width, batch_first=True)}, lambda m, x: m.f(x)[0]),
    "gru": Part(lambda s: {"f": nn.GRU(s.width, s.width, batch_first=True)}, lambda m, x: m.f(x)[0]),
    "recurrence": Part(lambda s: {"i": linear(s.width), "h": linear(s.width, bias=False)}, recurrent),
    "conv": over_channels(lambda s: nn.Conv1d(s.width, s.width, 3, padding=1)),
    "depthwise conv": over_channels(lambda s: nn.Conv1d(s.width, s.width, 3, padding=1, groups=s.width)),
    "grouped conv": over_channels(lambda s: nn.Conv1d(s.width, s.width, 3, padding=1, groups=2, bias=False)),
    "batch norm": over_channels(lambda s: nn.Sequential(nn.Conv1d(s.width, s.width, 1), nn.BatchNorm1d(s.width))),
    "group norm": over_channels(lambda s: nn.Sequential(nn.GroupNorm(4, s.width), nn.Conv1d(s.width, s.width, 1))),
    "mean of the past": Part(
        lambda s: {"f": linear(s.width)},
        lambda m, x: m.f(x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]),
    ),
    "token mixing": Part(
        lambda s: {"f": nn.Linear(6, 6), "g": linear(s.width)}, lambda m, x: m.g(m.f(x.transpose(1, 2)).transpose(1, 2))
    ),
    "largest and mean": Part(
        lambda s: {"f": linear(s.width)},
        lambda m, x: m.f(x) + x.amax(1, keepdim=True) - x.mean(1, keepdim=True),
    ),
}

"""Small models in the shape of published ones whose code is hard to capture, each planned with a narrower base."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import abcfx


class InvertedTransformer(nn.Module):
    """As iTransformer: each variable's series is a token; attention divides a number by the root of a size."""

    def __init__(self, width: int) -> None:
        """Make an embedding of series, one layer of attention and a head."""
        super().__init__()
        self.embed, self.qkv = nn.Linear(12, width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Forecast four steps of every variable of x (batch, time, variables)."""
        mean = x.mean(1, keepdim=True).detach()
        h = self.embed((x - mean).transpose(1, 2))
        q, k, v = self.qkv(h).chunk(3, -1)
        scale = 1.0 / math.sqrt(q.shape[-1])
        weights = torch.softmax(scale * torch.einsum("bld,bsd->bls", q, k), -1)
        h = h + self.out(weights @ v)
        return self.head(h).transpose(1, 2) + mean


class Retention(nn.Module):
    """As RetNet: a decay mask that is computed from buffers, in place of a softmax; a norm of each head."""

    decay: torch.Tensor

    def __init__(self, width: int, heads: int = 4) -> None:
        """Make an embedding, one layer of retention and a head."""
        super().__init__()
        self.heads = heads
        self.embed, self.qkv = nn.Embedding(16, width), nn.Linear(width, 3 * width, bias=False)
        self.gate, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm, self.head = nn.LayerNorm(width // heads, elementwise_affine=False), nn.Linear(width, 16)
        self.register_buffer("decay", torch.log(1 - 2 ** (-5 - torch.arange(heads, dtype=torch.float))))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of the next tokens."""
        h = self.embed(tokens)
        batch, length, width = h.shape
        steps = torch.arange(length, device=tokens.device)
        apart = (steps[:, None] - steps[None, :]).float()
        mask = torch.exp(apart * self.decay[:, None, None]).masked_fill(apart < 0, 0.0)
        mask = mask / mask.sum(-1, keepdim=True).sqrt()
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        kept = (q @ (k * (width // self.heads) ** -0.5).mT) * mask
        kept = kept / kept.detach().abs().sum(-1, keepdim=True).clamp(min=1, max=5e4)
        mixed = self.norm(kept @ v).transpose(1, 2).reshape(batch, length, width)
        return self.head(h + self.out(F.silu(self.gate(h)) * mixed))


class Speech(nn.Module):
    """As Whisper: a causal mask as a buffer that is not saved, sinusoids from numpy, and cross attention."""

    places: torch.Tensor
    mask: torch.Tensor

    def __init__(self, width: int) -> None:
        """Make an encoder of frames and a decoder with tied weights."""
        super().__init__()
        self.conv, self.tokens = nn.Conv1d(8, width, 3, stride=2, padding=1), nn.Embedding(16, width)
        angles = torch.arange(6)[:, None] * torch.exp(-np.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
        self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], 1))
        self.register_buffer("mask", torch.empty(8, 8).fill_(-np.inf).triu_(1), persistent=False)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.cross = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, frames: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of the next tokens."""
        heard = (F.gelu(self.conv(frames)).permute(0, 2, 1) + self.places).to(frames.dtype)
        h = self.tokens(tokens)
        scale = (h.shape[-1] // 4) ** -0.25
        q, k, v = (f(h).view(*h.shape[:2], 4, -1).permute(0, 2, 1, 3) for f in (self.q, self.k, self.v))
        logits = (q * scale) @ (k * scale).transpose(-1, -2) + self.mask[: h.shape[1], : h.shape[1]]
        h = h + (torch.softmax(logits.float(), -1).to(h.dtype) @ v).permute(0, 2, 1, 3).flatten(2)
        h = h + self.cross(h, heard, heard, need_weights=False)[0]
        return (h @ self.tokens.weight.to(h.dtype).mT).float()


class Rotary(nn.Module):
    """Rotary angles with a cache that a first call fills, as in ESM-2."""

    inv_freq: torch.Tensor

    def __init__(self, dim: int) -> None:
        """Make frequencies; the cache is empty."""
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim)))
        self._length: int | None = None
        self._cos: torch.Tensor | None = None
        self._sin: torch.Tensor | None = None

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate queries and keys."""
        if self._length != k.shape[-2] or self._cos is None or self._cos.device != k.device:
            self._length = k.shape[-2]
            angles = torch.outer(torch.arange(k.shape[-2]).type_as(self.inv_freq), self.inv_freq)
            both = torch.cat((angles, angles), -1)
            self._cos, self._sin = both.cos()[None, None], both.sin()[None, None]
        assert self._cos is not None and self._sin is not None
        return self._turned(q), self._turned(k)

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        assert self._cos is not None and self._sin is not None
        return x * self._cos + torch.cat((-second, first), -1) * self._sin


class Protein(nn.Module):
    """As ESM-2: embeddings rescaled by the share of masked tokens, and rotary attention."""

    def __init__(self, width: int) -> None:
        """Make an embedding, one layer of attention and a head."""
        super().__init__()
        self.tokens, self.qkv = nn.Embedding(16, width, padding_idx=0), nn.Linear(width, 3 * width)
        self.rotary, self.out, self.head = Rotary(width // 4), nn.Linear(width, width), nn.Linear(width, 16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of every residue."""
        padding = tokens.eq(0)
        h = self.tokens(tokens).masked_fill((tokens == 3).unsqueeze(-1), 0.0)
        observed = (tokens == 3).sum(-1).to(h.dtype) / (~padding).sum(-1).clamp(min=1)
        h = h * (1 - 0.12) / (1 - observed).clamp(min=0.5)[:, None, None]
        h = h * (1 - padding.unsqueeze(-1).type_as(h))
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        q, k = self.rotary(q * (q.shape[-1] ** -0.5), k)
        logits = (q @ k.mT).masked_fill(padding[:, None, None, :], float("-inf"))
        return self.head(h + self.out((torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2)))


class ClosureBlock(nn.Module):
    """As minGPT: the feed-forward part is a lambda over a ModuleDict, and the mask a slice of a buffer."""

    bias: torch.Tensor

    def __init__(self, width: int) -> None:
        """Make attention, and the feed-forward part as a closure."""
        super().__init__()
        self.attn, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        m = self.mlp
        self.mlpf: Callable[[torch.Tensor], torch.Tensor] = lambda x: m["c_proj"](F.gelu(m["c_fc"](x)))
        self.register_buffer("bias", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both parts."""
        length = x.size(1)
        q, k, v = (t.view(*x.shape[:2], 4, -1).transpose(1, 2) for t in self.attn(self.ln_1(x)).chunk(3, 2))
        logits = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        logits = logits.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        mixed = (F.softmax(logits, dim=-1) @ v).transpose(1, 2).contiguous().view(x.shape)
        x = x + self.proj(mixed)
        return x + self.mlpf(self.ln_2(x))


class ClosureGpt(nn.Module):
    """A minGPT of one block, with an assertion on the length and a loss beside the logits."""

    def __init__(self, width: int) -> None:
        """Make the parts as a ModuleDict."""
        super().__init__()
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(16, width), "wpe": nn.Embedding(16, width), "h": nn.ModuleList([ClosureBlock(width)])}
        )
        self.head = nn.Linear(width, 16, bias=False)

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits, and the loss if there are targets."""
        length = tokens.size(1)
        assert length <= 16, "too long"
        places = torch.arange(0, length, dtype=torch.long, device=tokens.device).unsqueeze(0)
        h = self.transformer["wte"](tokens) + self.transformer["wpe"](places)
        for block in self.transformer["h"].children():
            h = block(h)
        logits = self.head(h)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 0]])
SERIES, FRAMES = torch.linspace(-1, 1, 3 * 12 * 5).view(3, 12, 5), torch.linspace(-1, 1, 2 * 8 * 12).view(2, 8, 12)
MODELS: dict[str, tuple[Callable[[int], nn.Module], object]] = {
    "iTransformer": (InvertedTransformer, SERIES),
    "RetNet": (Retention, TOKENS),
    "Whisper": (Speech, (FRAMES, TOKENS)),
    "ESM-2": (Protein, TOKENS),
    "minGPT": (ClosureGpt, TOKENS),
}


@pytest.mark.parametrize("base_was_run", [False, True], ids=["new", "run before"])
@pytest.mark.parametrize("name", MODELS)
def test_published_shapes_are_planned(name: str, base_was_run: bool) -> None:
    """Each is planned, also with a base that has run and filled its caches, which is the normal case."""
    make, args = MODELS[name]
    torch.manual_seed(0)
    base = make(32)
    if base_was_run:
        base(*args) if isinstance(args, tuple) else base(args)
    result = abcfx.transform(make(64), args, base=base)
    roles = {each: row["role"] for each, row in result.spec.items() if each.endswith("weight") and "ln" not in each}
    # tied to the embedding, Whisper's head is no weight of its own
    expected = {"embedding", "hidden"} | (set() if name == "Whisper" else {"readout"})
    assert set(roles.values()) == expected, roles
    assert all(row["role"] != "plain" for row in result.spec.values())

"""Models of sequences that are hard to capture: attention in many notations, experts, recurrences, state spaces."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from cases import Case, ids, rand
from torch import nn

WIDTH, VOCABULARY = 16, 32


class FusedGPT(nn.Module):
    """A GPT with fused qkv, a tied head, an assert on the length and an optional loss."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> object:
        batch, length = tokens.shape
        assert length <= 64, f"{length} tokens are too many"
        x = self.wte(tokens) + self.wpe(torch.arange(length, device=tokens.device))
        q, k, v = (
            part.view(batch, length, 4, -1).transpose(1, 2) for part in self.qkv(self.norm(x)).split(WIDTH, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        logits = self.head(x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH)))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


class EinsumAttention(nn.Module):
    """Attention by einsum with weights of three dims."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(rand(WIDTH, 2, 8, seed=s) / 4) for s in range(3))
        self.o = nn.Parameter(rand(2, 8, WIDTH, seed=3) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (self.q, self.k, self.v))
        attention = torch.einsum("bhtk,bhsk->bhts", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        return x + torch.einsum("bhts,bhsk,hkd->btd", attention, v, self.o)


class Experts(nn.Module):
    """Two of four experts per token; `how` is the way the tokens reach them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.router = how, nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH)) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, WIDTH)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            if self.how == "dense":
                out = out + expert(flat) * ((chosen == number) * weights).sum(-1, keepdim=True)
            elif self.how in ("where", "nonzero"):
                is_where = self.how == "where"
                token, slot = torch.where(chosen == number) if is_where else (chosen == number).nonzero().unbind(1)
                out = out.index_add(0, token, expert(flat[token]) * weights[token, slot, None])
            else:
                for token, slot in (chosen == number).nonzero().tolist():
                    out[token] = out[token] + expert(flat[token]) * weights[token, slot]
        return out.view_as(x)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(WIDTH, 12, num_layers=2, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(WIDTH, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = (x.new_zeros(x.shape[0], 12), x.new_zeros(x.shape[0], 12))
        out = []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            out.append(self.head(state[0]))
        return torch.stack(out, 1)


class StateSpaceScan(nn.Module):
    """A selective state space, scanned by cumulative sums."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.step = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.to_b, self.to_c, self.out = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, WIDTH)
        self.decay = nn.Parameter(torch.zeros(WIDTH, 4))
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, gate = self.inner(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        delta = F.softplus(self.step(u))
        log_decay = (delta[..., None] * -torch.exp(self.decay)).cumsum(1)
        states = ((delta * u)[..., None] * self.to_b(u)[:, :, None] * torch.exp(-log_decay)).cumsum(1) * log_decay.exp()
        return self.out((states * self.to_c(u)[:, :, None]).sum(-1) * F.silu(gate))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class CausalEncoder(nn.Module):
    """torch's encoder with a mask that it inspects for being causal."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))


class ComplexRotary(nn.Module):
    """Rotary positions by complex multiplication, as Llama's first code has them."""

    turns: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        angles = torch.outer(torch.arange(64.0), 100 ** -(torch.arange(0, 8, 2) / 8))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def turned(y: torch.Tensor) -> torch.Tensor:
            y = y.view(*y.shape[:2], 2, 8)
            pairs = torch.view_as_complex(y.float().reshape(*y.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * self.turns[: x.shape[1], None]).flatten(3)

        return torch.einsum("bthd,bshd->bhts", turned(self.q(x)), turned(self.k(x)))


class LatentAttention(nn.Module):
    """Keys and values through a small latent, part of every key shared by the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.down = nn.Linear(WIDTH, 2 * 12), nn.Linear(WIDTH, 6 + 4)
        self.norm, self.up, self.out = nn.RMSNorm(6), nn.Linear(6, 2 * (8 + 8)), nn.Linear(16, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        latent, shared = self.down(x).split([6, 4], -1)
        k, v = self.up(self.norm(latent)).view(batch, length, 2, 16).transpose(1, 2).split([8, 8], -1)
        k = torch.cat([k, shared[:, None].expand(-1, 2, -1, -1)], -1)
        q = self.q(x).view(batch, length, 2, 12).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, 16))


class KeyValueCache(nn.Module):
    """Attention that writes into a cache buffer in forward and reads from it."""

    keys: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.kv, self.q = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("keys", torch.zeros(8, 32, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, v = self.kv(x).chunk(2, -1)
        with torch.no_grad():
            self.keys[: x.shape[0], : x.shape[1]] = k
        return (self.q(x) @ (k + self.keys[: x.shape[0], : x.shape[1]]).transpose(1, 2)).softmax(-1) @ v


SEQUENCE = [
    Case("GPT, fused qkv, tied head, assert on length", FusedGPT, (ids(3, 12),)),
    Case("GPT with its loss", FusedGPT, (ids(3, 12),), {"targets": ids(3, 12, seed=1)}),
    Case("einsum attention on bare parameters", EinsumAttention, (rand(3, 7, WIDTH),)),
    Case("experts, dense", lambda: Experts("dense"), (rand(3, 7, WIDTH),)),
    Case("experts, torch.where loop", lambda: Experts("where"), (rand(3, 7, WIDTH),)),
    Case("experts, nonzero of each", lambda: Experts("nonzero"), (rand(3, 7, WIDTH),)),
    Case("experts, loop over nonzero values", lambda: Experts("values"), (rand(3, 4, WIDTH),), captured=False),
    Case("nn.LSTM", lambda: Recurrent(nn.LSTM), (rand(3, 7, WIDTH),)),
    Case("nn.GRU", lambda: Recurrent(nn.GRU), (rand(3, 7, WIDTH),)),
    Case("nn.LSTMCell in a loop over time", CellLoop, (rand(3, 7, WIDTH),)),
    Case("state-space scan", StateSpaceScan, (rand(3, 7, WIDTH),)),
    Case("nn.MultiheadAttention", SelfAttention, (rand(3, 7, WIDTH),)),
    Case(
        "nn.Transformer",
        lambda: nn.Transformer(WIDTH, 4, 1, 1, 32, dropout=0.0, batch_first=True),
        (rand(3, 7, WIDTH), rand(3, 5, WIDTH)),
    ),
    Case("nn.TransformerEncoder with a causal mask", CausalEncoder, (rand(3, 7, WIDTH),)),
    Case("rotary positions in complex numbers", ComplexRotary, (rand(3, 7, WIDTH),)),
    Case("multi-head latent attention", LatentAttention, (rand(3, 7, WIDTH),)),
    Case("key-value cache written in forward", KeyValueCache, (rand(3, 7, WIDTH),)),
]

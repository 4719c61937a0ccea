"""A small GPT whose residual connections are hyper-connections: four streams, mixed by doubly stochastic matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from abcfx.examples.gpt import MLP, CausalSelfAttention, GPTConfig
from abcfx.hyper_connections import HyperConnection, HyperHead


@dataclass
class HyperGPTConfig(GPTConfig):
    """Sizes of the GPT, with the number of streams and of Sinkhorn iterations."""

    streams: int = 4
    sinkhorn_iters: int = 20


class HyperBlock(nn.Module):
    """Attention and MLP, each behind a norm and in a hyper-connection of its own."""

    def __init__(self, config: HyperGPTConfig) -> None:
        super().__init__()
        self.attn_hc = HyperConnection(config.d_model, config.streams, config.sinkhorn_iters)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attn = CausalSelfAttention(config)
        self.mlp_hc = HyperConnection(config.d_model, config.streams, config.sinkhorn_iters)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.mlp = MLP(config)
        for connection in (self.attn_hc, self.mlp_hc):
            nn.init.normal_(connection.base)  # the gates differ from the start, so that each stream has its own part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, write, mix = self.attn_hc(x)
        x = self.attn_hc.update(x, self.attn(self.norm1(y)), write, mix)
        y, write, mix = self.mlp_hc(x)
        return self.mlp_hc.update(x, self.mlp(self.norm2(y)), write, mix)


class HyperGPT(nn.Module):
    """A GPT over several residual streams: token ids (B, T) to logits (B, T, vocab_size)."""

    def __init__(self, config: HyperGPTConfig) -> None:
        super().__init__()
        self.tok = nn.Embedding(config.vocab_size, config.d_model)
        self.pos = nn.Parameter(0.02 * torch.randn(1, config.block_size, config.d_model))
        # Streams that start alike would send no gradient to the read gates and the mix.
        self.start = nn.Parameter(torch.randn(config.streams, config.d_model))
        self.blocks = nn.ModuleList(HyperBlock(config) for _ in range(config.n_layer))
        self.collapse = HyperHead(config.d_model, config.streams)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids) + self.pos[:, : ids.size(1)]
        x = x.unsqueeze(2) + self.start
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.collapse(x)))

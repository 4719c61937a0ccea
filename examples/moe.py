"""A mixture of experts that predicts the next character: a router sends each token to two of four stacked MLPs.

The router is a readout into experts, whose number does not grow: what goes into its softmax must not grow either.

python -m abcfx.examples.moe        (ten seconds)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.examples.text import characters_of_python

VOCABULARY, CONTEXT, EXPERTS, CHOSEN = 128, 8, 4, 2
BASE, WIDTH = 32, 256
LR = 2.0**-6


class Experts(nn.Module):
    """Every expert sees every token; the gates of those that were not chosen are zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, width, 2 * width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, 2 * width, width) * (2 * width) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = F.softmax(self.router(x), dim=-1)
        best, chosen = shares.topk(CHOSEN, dim=-1)
        gates = torch.zeros_like(shares).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        hidden = F.gelu(torch.einsum("bd,edf->ebf", x, self.up))
        return torch.einsum("ebf,efd,be->bd", hidden, self.down, gates)


class MoE(nn.Module):
    """The last CONTEXT characters, ids (B, CONTEXT), to logits (B, VOCABULARY) of the next one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(CONTEXT * VOCABULARY, width)  # of each place, a table of its own
        self.norm1, self.experts1 = nn.LayerNorm(width), Experts(width)
        self.norm2, self.experts2 = nn.LayerNorm(width), Experts(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids + VOCABULARY * torch.arange(CONTEXT, device=ids.device)).sum(1)
        x = x + self.experts1(self.norm1(x))
        x = x + self.experts2(self.norm2(x))
        return self.head(self.norm(x))


def main(width: int = WIDTH, steps: int = 60, lr: float = LR) -> dict[str, Any]:
    torch.manual_seed(0)
    ids = next(characters_of_python(1, batch=16, context=CONTEXT))[0]
    result = abcfx.transform(MoE(width), ids, base=lambda: MoE(BASE), optimizer="adamw", lr=lr)
    print(result)
    optimizer = torch.optim.AdamW(result.param_groups, weight_decay=0.0)
    losses = []
    for ids, targets in characters_of_python(steps, batch=64, context=CONTEXT):
        loss = F.cross_entropy(result.module(ids), targets[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"\nwidth {width}: loss {losses[0]:.3f} -> {sum(losses[-10:]) / 10:.3f} nats per character")
    ids, targets = next(characters_of_python(1, batch=16, context=CONTEXT))
    check = abcfx.coord_check(MoE, (ids, targets[:, -1]), widths=(32, 64, 128), optimizer="adamw")
    print(check)
    return {"losses": losses, "check": check}


if __name__ == "__main__":
    main()

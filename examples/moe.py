"""A mixture of experts that predicts the next character: a router sends each token to two of four MLPs.

The four MLPs, the experts, are stacked in two tensors. The router is a readout: its outputs, one for each expert, do
not grow in number as the model gets wider, and `transform` keeps their size as well.

python -m abcfx.examples.moe        (ten seconds)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.examples.text import VOCABULARY, characters_of_python

CONTEXT, EXPERTS, CHOSEN = 8, 4, 2
BASE, WIDTH = 32, 256
LR = 2.0**-6


class Experts(nn.Module):
    """Four MLPs behind a router. Each sees every token; the gate of an expert that was not chosen is zero."""

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
    """A model of the next character: ids of the last ones (B, CONTEXT) to logits (B, VOCABULARY)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(CONTEXT * VOCABULARY, width)  # each place in the context has a table of its own
        self.norm1, self.experts1 = nn.LayerNorm(width), Experts(width)
        self.norm2, self.experts2 = nn.LayerNorm(width), Experts(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids + VOCABULARY * torch.arange(CONTEXT, device=ids.device)).sum(1)
        x = x + self.experts1(self.norm1(x))
        x = x + self.experts2(self.norm2(x))
        return self.head(self.norm(x))


def main(width: int = WIDTH, steps: int = 60, lr: float = LR) -> dict[str, object]:
    """Train the transformed model, print the report and the losses, and check the layers over widths."""
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

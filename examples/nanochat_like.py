"""A GPT in the manner of nanochat: rotary positions, QK-norm, relu^2, untied head; Muon for matrices, AdamW otherwise.

It has three base rates, all times one multiplier, which are carried from width 64 to width 256. The large model is
planned on the meta device, where it takes no memory, and its weights are drawn afterwards.

python -m abcfx.examples.nanochat_like        (half a minute)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.examples.text import VOCABULARY, characters_of_python

HEAD_DIM, LAYERS, CONTEXT = 16, 2, 64
OPTIMIZERS = {"hidden": "muon", "default": "adamw"}
RATES = {"embedding": 0.05, "hidden": 0.02, "readout": 0.004}
MULTIPLIER = 2.0  # of all three rates, tuned at BASE: 1 is worse, 4 no better
BASE, WIDTH = 64, 256


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Normalise the last dim, without a gain."""
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions to (batch, heads, tokens, head_dim)."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)


class Block(nn.Module):
    """Attention with normalised queries and keys, and an MLP with relu^2; neither has biases or gains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def attention(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, C = x.size()
        q, k, v = (f(x).view(B, T, C // HEAD_DIM, HEAD_DIM).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = rms_norm(rotate(q, cos, sin)), rms_norm(rotate(k, cos, sin))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(rms_norm(x), cos, sin)
        return x + self.down(F.relu(self.up(rms_norm(x))).square())


class NanoGPT(nn.Module):
    """A decoder-only transformer: token ids (B, T) to logits (B, T, VOCABULARY), softly capped at 15."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(ids.size(1), device=ids.device)
        angles = torch.outer(steps, 1000.0 ** -(torch.arange(0, HEAD_DIM, 2, device=ids.device) / HEAD_DIM))
        cos, sin = angles.cos(), angles.sin()
        x = rms_norm(self.table(ids))
        for block in self.blocks:
            x = block(x, cos, sin)
        return 15 * torch.tanh(self.head(rms_norm(x)) / 15)


def plan(width: int, multiplier: float = MULTIPLIER) -> abcfx.Transformed:
    """Plan the model of a width on the meta device, without weights."""
    with torch.device("meta"):
        model, base = NanoGPT(width), NanoGPT(BASE)
    rates = {role: multiplier * lr for role, lr in RATES.items()}
    ids = torch.zeros(2, CONTEXT, dtype=torch.long, device="meta")
    # two tiny models with weights, from which it is measured how the model's own init depends on the width
    init = abcfx.InitLike(small=lambda: NanoGPT(32), large=lambda: NanoGPT(64))
    return abcfx.transform(model, ids, base=base, optimizer=OPTIMIZERS, lr=rates, init=init)


def materialise(result: abcfx.Transformed) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Give a planned model memory, draw its weights, and make its two optimizers."""
    module = result.module.to_empty(device="cpu")
    result.init_weights(module)
    muon = torch.optim.Muon(result.groups_for("muon", module), weight_decay=0.0)
    return module, [muon, torch.optim.AdamW(result.groups_for("adamw", module), betas=(0.8, 0.95))]


def train(module: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> float:
    """Train, and return the mean loss of the last tenth of the steps in nats per character."""
    losses = []
    for ids, targets in characters_of_python(steps, batch=8, context=CONTEXT):
        loss = F.cross_entropy(module(ids).flatten(0, 1), targets.flatten())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def main(width: int = WIDTH, steps: int = 40) -> dict[str, object]:
    """Train the large and the base model at the same three rates, print both losses, and check the layers."""
    torch.manual_seed(0)
    result = plan(width)
    print(result)
    loss = train(*materialise(result), steps)
    torch.manual_seed(0)
    base_loss = train(*materialise(plan(BASE)), steps)
    print(f"\nloss at width {BASE} {base_loss:.3f}, at width {width}, same three rates, {loss:.3f} nats per character")
    ids, _ = next(characters_of_python(1, batch=2, context=CONTEXT))
    check = abcfx.coord_check(NanoGPT, ids, widths=(32, 64, 128), optimizer=OPTIMIZERS, lr=1e-3)
    print(check)
    return {"base": base_loss, "transformed": loss, "check": check}


if __name__ == "__main__":
    main()

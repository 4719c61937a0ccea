"""A short training run of a transformed language model, for tests that compare trajectories."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import abcfx


def trained(result: abcfx.Transformed, ids: torch.Tensor, steps: int, sgd: bool = False) -> list[torch.Tensor]:
    """The output before each step."""
    optimizer = torch.optim.SGD(result.param_groups) if sgd else torch.optim.AdamW(result.param_groups)
    outputs = []
    for _ in range(steps):
        out = result.module(ids)
        outputs.append(out.detach())
        optimizer.zero_grad()
        F.cross_entropy(out.flatten(0, 1), (ids.flatten() * 3 + 1) % 11).backward()
        optimizer.step()
    return outputs

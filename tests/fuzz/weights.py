"""Parts whose weight is computed from parameters in forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .part import Part, linear, matrix

NORMED = torch.nn.utils.parametrizations


def computed(weight: Callable[[Any], torch.Tensor]) -> Part:
    """Make a part that is one square layer with the weight that a function computes from the part's parameters."""
    return Part(
        lambda s: {
            "w": matrix(s.width, s.width),
            "v": matrix(s.width, s.width),
            "ones": nn.Parameter(torch.ones(s.width, s.width)),
            "zeros": nn.Parameter(torch.zeros(s.width, s.width)),
            "gain": nn.Parameter(torch.ones(s.width, 1)),
            "a": matrix(4, s.width),
            "b": matrix(s.width, 4, 0.5),
            "mask": ((torch.arange(s.width)[:, None] + torch.arange(s.width)) % 2 == 0).double(),
        },
        lambda m, x: F.linear(x, weight(m)),
    )


def styled(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Multiply a weight by a style for each sample, and convolve all samples at once, as groups."""
    batch, time, _ = x.shape
    weight = m.w * (m.style(x.mean(1)) + 1)[:, None, :]
    weight = weight * torch.rsqrt(weight.square().sum(2, keepdim=True) + 1e-8)
    grouped = x.transpose(1, 2).reshape(1, -1, time)
    return F.conv1d(grouped, weight.flatten(0, 1).unsqueeze(-1), groups=batch).view(batch, -1, time).transpose(1, 2)


WEIGHTS: dict[str, Part] = {
    "masked": computed(lambda m: m.w * m.mask),
    "low rank update": computed(lambda m: m.w + m.b @ m.a),
    "sum of two": computed(lambda m: (m.w + m.v) * 0.7),
    "row gains": computed(lambda m: m.gain * m.w),
    "scaled entries": computed(lambda m: m.w * m.ones),
    "sigmoid mask": computed(lambda m: m.w * torch.sigmoid(m.zeros)),
    "tanh weight": computed(lambda m: torch.tanh(m.w)),
    "clamped weight": computed(lambda m: m.w.clamp(-0.3, 0.3)),
    "softmax weight": computed(lambda m: m.zeros.softmax(-1)),
    "signed square": computed(lambda m: m.w * m.w.abs()),
    "rounded weight": computed(lambda m: m.w + ((m.w * 32).round() / 32 - m.w).detach()),
    "skew": computed(lambda m: m.w - m.w.t()),
    "symmetric": computed(lambda m: (m.w + m.w.mT) / 2),
    "standardised": computed(lambda m: (m.w - m.w.mean(1, keepdim=True)) / (m.w.norm(dim=1, keepdim=True) + 1e-6)),
    "normed rows": computed(lambda m: m.gain * m.w / m.w.norm(dim=1, keepdim=True)),
    "cat of rows": computed(lambda m: torch.cat([m.w[::2], m.v[1::2]], 0)),
    "kron": Part(
        lambda s: {"w": matrix(s.width // 2, s.width // 2), "v": matrix(2, 2, 1.0)},
        lambda m, x: F.linear(x, torch.kron(m.v, m.w)),
    ),
    "shifted": computed(lambda m: m.w + torch.eye(m.sizes.width, dtype=m.w.dtype)),
    "styled weight": Part(lambda s: {"w": matrix(s.width, s.width), "style": linear(s.width)}, styled),
    "weight norm": Part(lambda s: {"f": NORMED.weight_norm(linear(s.width))}, lambda m, x: m.f(x)),
    "computed bias": Part(
        lambda s: {
            "w": matrix(s.width, s.width),
            "p": nn.Parameter(torch.zeros(s.width // 2)),
            "q": nn.Parameter(torch.zeros(s.width // 2)),
        },
        lambda m, x: F.linear(x, m.w, torch.cat([m.p, 2 * m.q])),
    ),
}

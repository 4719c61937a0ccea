"""Parts that act on each token by itself: layers, gates, concatenations, experts, shared layers, ops in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .part import Part, Sizes, linear, matrix


def two_layers(s: Sizes) -> dict[str, nn.Module]:
    return {"up": linear(s.width, s.hidden), "down": linear(s.hidden, s.width)}


ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...]
ACTIVATIONS = (F.relu, F.gelu, F.silu, torch.tanh, F.leaky_relu, F.softplus, F.mish, F.hardswish)


def mlp(act: Callable[[torch.Tensor], torch.Tensor]) -> Part:
    """Two layers with an activation function between them."""
    return Part(two_layers, lambda m, x: m.down(act(m.up(x))))


def gated(s: Sizes) -> dict[str, nn.Module]:
    return {"both": linear(s.width, 2 * s.hidden), "down": linear(s.hidden, s.width)}


def square_layers(*names: str) -> Any:
    return lambda s: {name: linear(s.width) for name in names}


def run_gated(m: Any, x: torch.Tensor) -> torch.Tensor:
    content, gate = m.both(x).chunk(2, -1)
    return m.down(F.silu(gate) * content)


def highway(m: Any, x: torch.Tensor) -> torch.Tensor:
    t = torch.sigmoid(m.g(x))
    return t * F.relu(m.f(x)) + (1 - t) * x


def film(m: Any, x: torch.Tensor) -> torch.Tensor:
    scale, shift = m.both(x).chunk(2, -1)
    return m.down((1 + scale) * F.gelu(m.up(x)) + shift)


def experts(m: Any, x: torch.Tensor) -> torch.Tensor:
    weights = m.router(x).softmax(-1)
    outs = torch.stack([each(x) for each in m.experts], -1)
    return (outs * weights.unsqueeze(-2)).sum(-1)


def stacked_experts(m: Any, x: torch.Tensor) -> torch.Tensor:
    weights = m.router(x).softmax(-1)
    hidden = F.silu(torch.einsum("bti,eij->btej", x, m.up))
    return torch.einsum("bte,btei->bti", weights, torch.einsum("btej,eji->btei", hidden, m.down))


def written(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.f(x).clone()
    y[..., 0] = 0.0
    y += m.g(x)
    return y.mul_(0.7)


def filled(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    y[..., ::2] = m.f(x)[..., ::2]
    return y + m.g(x)


DENSE: dict[str, Part] = {
    **{f"mlp {act.__name__}": mlp(act) for act in ACTIVATIONS},
    "mlp squared": Part(two_layers, lambda m, x: m.down(F.relu(m.up(x)).square())),
    "swiglu": Part(gated, run_gated),
    "glu": Part(gated, lambda m, x: m.down(F.glu(m.both(x), -1))),
    "highway": Part(square_layers("f", "g"), highway),
    "film": Part(
        lambda s: {
            "both": linear(s.width, 2 * s.hidden),
            "up": linear(s.width, s.hidden),
            "down": linear(s.hidden, s.width),
        },
        film,
    ),
    "squeeze and excite": Part(
        lambda s: {"down": linear(s.width, 4), "up": linear(4, s.width)},
        lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(x.mean(1, keepdim=True))))),
    ),
    "scalar gate": Part(
        lambda s: {"g": linear(s.width, 1), "f": linear(s.width)}, lambda m, x: torch.sigmoid(m.g(x)) * m.f(x)
    ),
    "learned scalar": Part(
        lambda s: {"f": linear(s.width), "alpha": nn.Parameter(torch.tensor(0.5))},
        lambda m, x: torch.tanh(m.alpha) * m.f(x),
    ),
    "product of two": Part(square_layers("f", "g"), lambda m, x: m.f(x) * m.g(x)),
    "cat": Part(
        lambda s: {"a": linear(s.width), "b": linear(2 * s.width, s.width)},
        lambda m, x: m.b(torch.cat([x, F.gelu(m.a(x))], -1)),
    ),
    "stack": Part(square_layers("a", "b"), lambda m, x: m.b(torch.stack([x, F.relu(m.a(x))], -2).mean(-2))),
    "bottleneck": Part(
        lambda s: {"down": linear(s.width, 4), "up": linear(4, s.width)}, lambda m, x: m.up(F.gelu(m.down(x)))
    ),
    "bare matrix": Part(lambda s: {"w": matrix(s.width, s.width)}, lambda m, x: x @ m.w),
    "einsum": Part(lambda s: {"w": matrix(s.width, s.width)}, lambda m, x: torch.einsum("bti,oi->bto", x, m.w)),
    "addmm": Part(
        lambda s: {"w": matrix(s.width, s.width), "b": nn.Parameter(torch.zeros(s.width))},
        lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w).view(x.shape),
    ),
    "twice": Part(square_layers("f"), lambda m, x: m.f(F.gelu(m.f(x)))),
    "transposed twin": Part(
        lambda s: {"f": linear(s.width, s.hidden, bias=False)},
        lambda m, x: F.linear(torch.tanh(m.f(x)), m.f.weight.t()),
    ),
    "siamese": Part(square_layers("f"), lambda m, x: m.f(x) - m.f(x.flip(1))),
    "experts": Part(
        lambda s: {
            "router": linear(s.width, 3, bias=False),
            "experts": nn.ModuleList(
                nn.Sequential(linear(s.width, s.hidden), nn.GELU(), linear(s.hidden, s.width)) for _ in "123"
            ),
        },
        experts,
    ),
    "stacked experts": Part(
        lambda s: {
            "router": linear(s.width, 3, bias=False),
            "up": nn.Parameter(torch.randn(3, s.width, s.hidden) * s.width**-0.5),
            "down": nn.Parameter(torch.randn(3, s.hidden, s.width) * s.hidden**-0.5),
        },
        stacked_experts,
    ),
    "written in place": Part(square_layers("f", "g"), written),
    "filled in place": Part(square_layers("f", "g"), filled),
    "addcmul": Part(square_layers("f", "g"), lambda m, x: torch.addcmul(m.f(x), m.g(x), x, value=0.5)),
    "gain": Part(lambda s: {"f": linear(s.width), "g": nn.Parameter(torch.ones(s.width))}, lambda m, x: m.f(x) * m.g),
    "gain around one": Part(
        lambda s: {"f": linear(s.width), "g": nn.Parameter(torch.zeros(s.width))}, lambda m, x: m.f(x) * (1 + m.g)
    ),
}

"""Functions with norms, means, residual sums, activations and gates, each in several spellings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .part import Sizes
from .spelled import Function, Run, Spelling, Spellings, Tensors, drawn, total

W = ("width",)


def layered(norm: Run) -> Run:
    return lambda m, x: F.linear(norm(m, x), m.w)


def with_var(m: Any, x: Tensor, var: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(var + 1e-5) * m.g + m.b


LAYER_NORM: Spellings = {
    "function": layered(lambda m, x: F.layer_norm(x, (x.shape[-1],), m.g, m.b)),
    "gain and bias after": layered(lambda m, x: F.layer_norm(x, (x.shape[-1],)) * m.g + m.b),
    "addcmul": layered(lambda m, x: torch.addcmul(m.b, F.layer_norm(x, (x.shape[-1],)), m.g)),
    "var": layered(lambda m, x: with_var(m, x, x.var(-1, keepdim=True, unbiased=False))),
    "squares": layered(lambda m, x: with_var(m, x, (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True))),
    "squares less square of mean": layered(
        lambda m, x: with_var(m, x, x.pow(2).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2)
    ),
    "rsqrt": layered(
        lambda m, x: (lambda c: c * torch.rsqrt((c * c).mean(-1, keepdim=True) + 1e-5) * m.g + m.b)(
            x - x.mean(-1, keepdim=True)
        )
    ),
    "var_mean": layered(
        lambda m, x: (lambda v: (x - v[1]) * (v[0] + 1e-5).rsqrt() * m.g + m.b)(
            torch.var_mean(x, -1, keepdim=True, correction=0)
        )
    ),
    "sums": layered(
        lambda m, x: (lambda c: c / ((c**2).sum(-1, keepdim=True) / x.shape[-1] + 1e-5).sqrt() * m.g + m.b)(
            x - x.sum(-1, keepdim=True) / x.shape[-1]
        )
    ),
    "group norm": layered(lambda m, x: F.group_norm(x.flatten(0, 1), 1, m.g, m.b).view(x.shape)),
    "gain on weight": lambda m, x: F.linear(F.layer_norm(x, (x.shape[-1],)), m.w * m.g) + F.linear(m.b, m.w),
}
RMS_NORM: Spellings = {
    "function": layered(lambda m, x: F.rms_norm(x, (x.shape[-1],), m.g, 1e-6)),
    "gain after": layered(lambda m, x: m.g * F.rms_norm(x, (x.shape[-1],), eps=1e-6)),
    "rsqrt": layered(lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.g),
    "gain first": layered(lambda m, x: m.g * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)),
    "gain with factor": layered(lambda m, x: x * (m.g * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6))),
    "sqrt": layered(lambda m, x: x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * m.g),
    "power": layered(lambda m, x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5 * m.g),
    "sum": layered(lambda m, x: x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + 1e-6).sqrt() * m.g),
    "reciprocal": layered(lambda m, x: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6).reciprocal() * m.g),
    "einsum": layered(
        lambda m, x: x * torch.rsqrt(torch.einsum("bti,bti->bt", x, x)[..., None] / x.shape[-1] + 1e-6) * m.g
    ),
    "vecdot": layered(lambda m, x: x * torch.rsqrt(torch.linalg.vecdot(x, x)[..., None] / x.shape[-1] + 1e-6) * m.g),
    "gain on weight": lambda m, x: F.linear(F.rms_norm(x, (x.shape[-1],), eps=1e-6), m.w * m.g),
}
L2_NORM: Spellings = {
    "normalize": layered(lambda m, x: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * m.g),
    "norm": layered(lambda m, x: x / x.norm(dim=-1, keepdim=True) * math.sqrt(x.shape[-1]) * m.g),
    "scale first": layered(lambda m, x: m.g * x.shape[-1] ** 0.5 * F.normalize(x, dim=-1)),
    "divided": layered(lambda m, x: x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5) * m.g),
    "rms": layered(lambda m, x: F.rms_norm(x, (x.shape[-1],), m.g, 1e-30)),
    "scale on weight": lambda m, x: F.linear(F.normalize(x, dim=-1) * m.g, m.w * x.shape[-1] ** 0.5),
    "scale after": lambda m, x: F.linear(F.normalize(x, dim=-1) * m.g, m.w) * x.shape[-1] ** 0.5,
}


def residual(join: Callable[[Tensor, Tensor], Tensor]) -> Run:
    return lambda m, x: join(x, F.linear(x, m.w))


RESIDUAL: Spellings = {
    "x first": residual(lambda x, f: x + f),
    "branch first": residual(lambda x, f: f + x),
    "torch.add": residual(lambda x, f: torch.add(x, f)),
    "in place": residual(lambda x, f: f.add_(x)),
    "minus minus": residual(lambda x, f: x - (-f)),
    "sum of list": residual(lambda x, f: total([x, f])),
    "stack": residual(lambda x, f: torch.stack([x, f]).sum(0)),
    "stack last": residual(lambda x, f: torch.stack([x, f], -1).sum(-1)),
    "mean of doubles": residual(lambda x, f: torch.stack([2 * x, 2 * f]).mean(0)),
    "half of doubles": residual(lambda x, f: 0.5 * (2 * x + 2 * f)),
    "addcmul": residual(lambda x, f: torch.addcmul(x, f, torch.ones_like(f))),
    "lerp": residual(lambda x, f: 2 * torch.lerp(x, f, 0.5)),
    "with alpha": residual(lambda x, f: torch.add(x, f / 3, alpha=3)),
    "baddbmm": lambda m, x: torch.baddbmm(x, x, m.w.T.expand(x.shape[0], -1, -1)),
    "identity in weight": lambda m, x: F.linear(x, m.w + torch.eye(x.shape[-1], dtype=x.dtype)),
    "einsum": residual(lambda x, f: torch.einsum("kbti->bti", torch.stack([x, f]))),
    "joined": lambda m, x: torch.cat([x, F.linear(x, m.w)], -1).unflatten(-1, (2, -1)).sum(-2),
}


def pooled(mean: Callable[[Tensor], Tensor]) -> Run:
    return lambda m, x: x + F.linear(F.relu(mean(x)), m.w)


TOKEN_MEAN: Spellings = {
    "mean": pooled(lambda x: x.mean(1, keepdim=True)),
    "sum over number": pooled(lambda x: x.sum(1, keepdim=True) / x.shape[1]),
    "scaled sum": pooled(lambda x: (x / x.shape[1]).sum(1, keepdim=True)),
    "einsum": pooled(lambda x: torch.einsum("bti->bi", x)[:, None] / x.shape[1]),
    "matmul": pooled(lambda x: torch.full((1, x.shape[1]), 1 / x.shape[1], dtype=x.dtype) @ x),
    "pool": pooled(lambda x: F.adaptive_avg_pool1d(x.mT, 1).mT),
    "avg_pool": pooled(lambda x: F.avg_pool1d(x.mT, x.shape[1]).mT),
    "cumsum": pooled(lambda x: x.cumsum(1)[:, -1:] / x.shape[1]),
    "loop": pooled(lambda x: total(x[:, i : i + 1] for i in range(6)) / 6),
    "softmax of zeros": pooled(lambda x: torch.zeros(1, 6, dtype=x.dtype).softmax(-1) @ x),
}


def feature_mean(mean: Callable[[Tensor], Tensor]) -> Run:
    return lambda m, x: F.linear(x, m.w) * torch.sigmoid(mean(x))


WIDTH_MEAN: Spellings = {
    "mean": feature_mean(lambda x: x.mean(-1, keepdim=True)),
    "sum over number": feature_mean(lambda x: x.sum(-1, keepdim=True) / x.shape[-1]),
    "scaled sum": feature_mean(lambda x: (x / x.shape[-1]).sum(-1, keepdim=True)),
    "matmul of ones": feature_mean(lambda x: x @ torch.ones(x.shape[-1], 1, dtype=x.dtype) / x.shape[-1]),
    "linear": feature_mean(lambda x: F.linear(x, torch.ones(1, x.shape[-1], dtype=x.dtype)) / x.shape[-1]),
    "einsum": feature_mean(lambda x: torch.einsum("bti->bt", x)[..., None] / x.shape[-1]),
}


def acted(act: Callable[[Tensor], Tensor]) -> Run:
    return lambda m, x: F.linear(act(F.linear(x, m.w)), m.v)


ACTIVATIONS: dict[str, Spellings] = {
    "silu": {
        "function": acted(F.silu),
        "by hand": acted(lambda x: x * torch.sigmoid(x)),
        "other order": acted(lambda x: x.sigmoid() * x),
        "divided": acted(lambda x: x / (1 + torch.exp(-x))),
    },
    "relu": {
        "function": acted(F.relu),
        "clamp": acted(lambda x: x.clamp(min=0)),
        "maximum": acted(lambda x: torch.maximum(x, torch.zeros_like(x))),
        "where": acted(lambda x: torch.where(x > 0, x, 0.0)),
        "masked": acted(lambda x: x * (x > 0)),
        "half of sum": acted(lambda x: (x + x.abs()) / 2),
        "masked_fill": acted(lambda x: x.masked_fill(x < 0, 0.0)),
        "negated min": acted(lambda x: -torch.clamp(-x, max=0)),
    },
    "squared": {
        "square": acted(lambda x: F.relu(x).square()),
        "power": acted(lambda x: F.relu(x) ** 2),
        "product": acted(lambda x: F.relu(x) * F.relu(x)),
        "with x": acted(lambda x: F.relu(x) * x),
    },
    "leaky": {
        "function": acted(lambda x: F.leaky_relu(x, 0.1)),
        "where": acted(lambda x: torch.where(x > 0, x, 0.1 * x)),
        "maximum": acted(lambda x: torch.maximum(x, 0.1 * x)),
        "two": acted(lambda x: F.relu(x) - 0.1 * F.relu(-x)),
    },
    "softplus": {
        "function": acted(F.softplus),
        "log1p": acted(lambda x: torch.log1p(torch.exp(x))),
        "logaddexp": acted(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
        "logsigmoid": acted(lambda x: -F.logsigmoid(-x)),
    },
    "sigmoid": {
        "function": acted(torch.sigmoid),
        "by hand": acted(lambda x: 1 / (1 + torch.exp(-x))),
        "reciprocal": acted(lambda x: (1 + torch.exp(-x)).reciprocal()),
        "tanh": acted(lambda x: (1 + torch.tanh(x / 2)) / 2),
    },
    "gelu": {
        "function": acted(lambda x: F.gelu(x, approximate="tanh")),
        "by hand": acted(lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        "half first": acted(
            lambda x: (0.5 + 0.5 * torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))) * x
        ),
    },
    "erf gelu": {
        "function": acted(F.gelu),
        "by hand": acted(lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    },
    "hardswish": {"function": acted(F.hardswish), "by hand": acted(lambda x: x * F.relu6(x + 3) / 6)},
    "mish": {"function": acted(F.mish), "by hand": acted(lambda x: x * torch.tanh(F.softplus(x)))},
    "elu": {
        "function": acted(F.elu),
        "where": acted(lambda x: torch.where(x > 0, x, torch.exp(x) - 1)),
        "expm1": acted(lambda x: F.relu(x) + torch.expm1(-F.relu(-x))),
    },
}


def lstm(m: Any, x: Tensor, cut: Callable[[Tensor], Iterable[Tensor]]) -> Tensor:
    h = c = torch.zeros_like(x[:, 0])
    states = []
    for t in range(6):
        i, f, g, o = cut(F.linear(x[:, t], m.i) + F.linear(h, m.h))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states, 1)


def rnn_by_hand(m: Any, x: Tensor) -> Tensor:
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(6):
        h = torch.tanh(F.linear(x[:, t], m.i) + F.linear(h, m.h))
        states.append(h)
    return torch.stack(states, 1)


def rnn_ahead(m: Any, x: Tensor) -> Tensor:
    h, states, ahead = torch.zeros_like(x[:, 0]), [], F.linear(x, m.i)
    for t in range(6):
        h = torch.tanh(ahead[:, t] + h @ m.h.T)
        states.append(h)
    return torch.stack(states, 1)


def modulated(x: Tensor, parts: Iterable[Tensor]) -> Tensor:
    scale, shift = parts
    return x * (1 + scale) + shift


FILM: Spellings = {
    "one plus": lambda m, x: (1 + F.linear(x, m.s)) * F.linear(x, m.w) + F.linear(x, m.t),
    "added": lambda m, x: F.linear(x, m.w) + F.linear(x, m.s) * F.linear(x, m.w) + F.linear(x, m.t),
    "addcmul": lambda m, x: torch.addcmul(F.linear(x, m.t), F.linear(x, m.s) + 1, F.linear(x, m.w)),
    "fused": Spelling(
        lambda m, x: modulated(F.linear(x, m.w), F.linear(x, m.st).chunk(2, -1)),
        lambda t: {"st": torch.cat([t["s"], t["t"]]), "w": t["w"]},
        {"st": ["s", "t"]},
    ),
}
HIGHWAY: Spellings = {
    "both": lambda m, x: (lambda t: t * F.linear(x, m.w) + (1 - t) * x)(torch.sigmoid(F.linear(x, m.s))),
    "difference": lambda m, x: (lambda t: x + t * (F.linear(x, m.w) - x))(torch.sigmoid(F.linear(x, m.s))),
    "lerp": lambda m, x: torch.lerp(x, F.linear(x, m.w), torch.sigmoid(F.linear(x, m.s))),
    "other sigmoid": lambda m, x: (
        torch.sigmoid(F.linear(x, m.s)) * F.linear(x, m.w) + torch.sigmoid(-F.linear(x, m.s)) * x
    ),
}
JOINED: Spellings = {
    "cat": lambda m, x: torch.cat([x, F.gelu(F.linear(x, m.a))], -1) @ torch.cat([m.w, m.v]),
    "two layers": lambda m, x: x @ m.w + F.gelu(F.linear(x, m.a)) @ m.v,
    "one weight": Spelling(
        lambda m, x: F.linear(torch.cat([x, F.gelu(F.linear(x, m.a))], -1), m.wv),
        lambda t: {"a": t["a"], "wv": torch.cat([t["w"], t["v"]]).T},
        {"wv": ["w", "v"]},
    ),
    "cut weight": Spelling(
        lambda m, x: (
            F.linear(x, m.wv[:, : m.sizes.width]) + F.linear(F.gelu(F.linear(x, m.a)), m.wv[:, m.sizes.width :])
        ),
        lambda t: {"a": t["a"], "wv": torch.cat([t["w"], t["v"]]).T},
        {"wv": ["w", "v"]},
    ),
}
GATE: Spellings = {
    "linear": lambda m, x: torch.sigmoid(F.linear(x, m.r)) * F.linear(x, m.w),
    "matmul": lambda m, x: torch.sigmoid(x @ m.r.T) * F.linear(x, m.w),
    "product and sum": lambda m, x: torch.sigmoid((x * m.r[0]).sum(-1, keepdim=True)) * F.linear(x, m.w),
    "vector": Spelling(
        lambda m, x: torch.sigmoid(x @ m.r).unsqueeze(-1) * F.linear(x, m.w), lambda t: {"r": t["r"][0], "w": t["w"]}
    ),
    "einsum": Spelling(
        lambda m, x: torch.sigmoid(torch.einsum("bti,i->bt", x, m.r))[..., None] * F.linear(x, m.w),
        lambda t: {"r": t["r"][0], "w": t["w"]},
    ),
    "expanded": lambda m, x: torch.sigmoid(F.linear(x, m.r)).expand_as(x) * F.linear(x, m.w),
    "repeated": lambda m, x: torch.sigmoid(F.linear(x, m.r)).repeat(1, 1, x.shape[-1]) * F.linear(x, m.w),
    "einsum product": lambda m, x: torch.einsum("btk,bto->bto", torch.sigmoid(F.linear(x, m.r)), F.linear(x, m.w)),
}
NUMBERS: Spellings = {  # a layer drawn without 1 / sqrt(width), and the number beside it
    "on weight": lambda m, x: F.linear(x, m.w * x.shape[-1] ** -0.5),
    "weight divided": lambda m, x: F.linear(x, m.w / math.sqrt(x.shape[-1])),
    "on input": lambda m, x: F.linear(x * x.shape[-1] ** -0.5, m.w),
    "on output": lambda m, x: F.linear(x, m.w) * x.shape[-1] ** -0.5,
    "output divided": lambda m, x: F.linear(x, m.w) / x.shape[-1] ** 0.5,
    "matmul": lambda m, x: (x @ m.w.T) * (1 / math.sqrt(x.shape[-1])),
    "both sides": lambda m, x: F.linear(x * x.shape[-1] ** -0.25, m.w) * x.shape[-1] ** -0.25,
    "fourth root on weight": lambda m, x: F.linear(x * x.shape[-1] ** -0.25, m.w * x.shape[-1] ** -0.25),
}


def gates(sizes: Sizes) -> Tensors:
    return {name: torch.randn(4 * sizes.width, sizes.width) * sizes.width**-0.5 for name in "ih"}


def wide(sizes: Sizes) -> Tensors:
    return {"w": torch.randn(sizes.width, sizes.width)}


FUNCTIONS: dict[str, Function] = {
    "layer norm": Function(drawn("w", g=W, b=W), LAYER_NORM),
    "rms norm": Function(drawn("w", g=W), RMS_NORM),
    "l2 norm": Function(drawn("w", g=W), L2_NORM),
    "residual": Function(drawn("w"), RESIDUAL),
    "mean over tokens": Function(drawn("w"), TOKEN_MEAN),
    "mean over features": Function(drawn("w"), WIDTH_MEAN),
    **{name: Function(drawn("w", "v"), acts) for name, acts in ACTIVATIONS.items()},
    "recurrence": Function(drawn("i", "h"), {"by hand": rnn_by_hand, "ahead": rnn_ahead}),
    "lstm": Function(
        gates,
        {
            "chunk": lambda m, x: lstm(m, x, lambda z: z.chunk(4, -1)),
            "split": lambda m, x: lstm(m, x, lambda z: z.split(m.sizes.width, -1)),
            "view": lambda m, x: lstm(m, x, lambda z: z.unflatten(-1, (4, -1)).unbind(-2)),
            "function": lambda m, x: torch.lstm(
                x,
                [torch.zeros(1, x.shape[0], x.shape[-1], dtype=x.dtype)] * 2,
                [m.i, m.h],
                False,
                1,
                0.0,
                False,
                False,
                True,
            )[0],
        },
    ),
    "film": Function(drawn("w", "s", "t"), FILM),
    "highway": Function(drawn("w", "s"), HIGHWAY),
    "concatenated": Function(drawn("a", "w", "v"), JOINED),
    "gate": Function(drawn("w", r=(1, "width")), GATE),
    "numbers": Function(wide, NUMBERS),
}

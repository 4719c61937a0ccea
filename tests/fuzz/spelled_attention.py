"""Functions with attention, each in several spellings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .spelled import Function, Run, Spelling, Spellings, drawn


def heads(m: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (m.sizes.heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(core: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
    """Return multi-head attention of which a function computes what comes between its layers, from q, k and v."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (heads(m, F.linear(x, w)) for w in (m.q, m.k, m.v))
        return F.linear(joined(core(q, k, v)), m.o)

    return run


def fused(cut: Callable[[Any, Tensor], Iterable[Tensor]]) -> Spelling:
    """Return attention with one layer for q, k and v, whose result a function cuts into three."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = cut(m, F.linear(x, m.qkv))
        return F.linear(joined(F.scaled_dot_product_attention(q, k, v)), m.o)

    return Spelling(run, lambda t: {"qkv": torch.cat([t["q"], t["k"], t["v"]]), "o": t["o"]}, {"qkv": ["q", "k", "v"]})


def sdpa(parts: Iterable[Tensor]) -> Tensor:
    q, k, v = parts
    return F.scaled_dot_product_attention(q, k, v)


def d(q: Tensor) -> int:
    return q.shape[-1]


def by_hand(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


ATTENTION: Spellings = {
    "sdpa": attend(lambda q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "scale at logits": attend(lambda q, k, v: (q @ k.mT / math.sqrt(d(q))).softmax(-1) @ v),
    "scale at q": attend(lambda q, k, v: (q * d(q) ** -0.5 @ k.mT).softmax(-1) @ v),
    "scale at k": attend(lambda q, k, v: (q @ (k / d(q) ** 0.5).mT).softmax(-1) @ v),
    "scale at both": attend(lambda q, k, v: ((q * d(q) ** -0.25) @ (k * d(k) ** -0.25).mT).softmax(-1) @ v),
    "sdpa, own scale": attend(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=d(q) ** -0.5)),
    "sdpa, scale 1": attend(lambda q, k, v: F.scaled_dot_product_attention(q * d(q) ** -0.5, k, v, scale=1.0)),
    "einsum": attend(
        lambda q, k, v: torch.einsum(
            "bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) * d(q) ** -0.5).softmax(-1), v
        )
    ),
    "bmm": attend(
        lambda q, k, v: torch.bmm(
            (torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT) / d(q) ** 0.5).softmax(-1), v.flatten(0, 1)
        ).view(q.shape)
    ),
    "baddbmm": attend(
        lambda q, k, v: (
            torch.baddbmm(
                torch.zeros(1, 1, 1, dtype=q.dtype), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=d(q) ** -0.5
            ).softmax(-1)
            @ v.flatten(0, 1)
        ).view(q.shape)
    ),
    "product and sum": attend(
        lambda q, k, v: ((q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) * d(q) ** -0.5).softmax(-1) @ v
    ),
    "softmax by hand": attend(lambda q, k, v: by_hand(q @ k.mT / d(q) ** 0.5) @ v),
    "log softmax": attend(lambda q, k, v: (q @ k.mT / d(q) ** 0.5).log_softmax(-1).exp() @ v),
    "logsumexp": attend(
        lambda q, k, v: (lambda z: (z - z.logsumexp(-1, keepdim=True)).exp())(q @ k.mT / d(q) ** 0.5) @ v
    ),
    "transposed": attend(lambda q, k, v: (k @ q.mT / d(q) ** 0.5).softmax(-2).mT @ v),
    "weights on the right": attend(lambda q, k, v: (v.mT @ (q @ k.mT / d(q) ** 0.5).softmax(-1).mT).mT),
    "times the inverse": attend(lambda q, k, v: (q @ k.mT * (1 / d(q) ** 0.5)).softmax(-1) @ v),
    "negated twice": attend(lambda q, k, v: (-(q @ (-k).mT) / d(q) ** 0.5).softmax(-1) @ v),
    "with zero mask": attend(
        lambda q, k, v: (q @ k.mT / d(q) ** 0.5 + torch.zeros(q.shape[-2], q.shape[-2], dtype=q.dtype)).softmax(-1) @ v
    ),
    "fused, chunks": fused(lambda m, z: (heads(m, each) for each in z.chunk(3, -1))),
    "fused, split": fused(lambda m, z: (heads(m, each) for each in z.split(m.sizes.width, -1))),
    "fused, slices": fused(
        lambda m, z: (heads(m, z[..., i * m.sizes.width : (i + 1) * m.sizes.width]) for i in range(3))
    ),
    "fused, unbind": fused(lambda m, z: z.unflatten(-1, (3, m.sizes.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)),
    "fused, index": fused(
        lambda m, z: (lambda y: (y[0], y[1], y[2]))(z.unflatten(-1, (3, m.sizes.heads, -1)).permute(2, 0, 3, 1, 4))
    ),
    "fused, select": fused(
        lambda m, z: (lambda y: (y.select(2, i).transpose(1, 2) for i in range(3)))(
            z.unflatten(-1, (3, m.sizes.heads, -1))
        )
    ),
    "weights joined": lambda m, x: F.linear(
        joined(sdpa(heads(m, each) for each in F.linear(x, torch.cat([m.q, m.k, m.v])).chunk(3, -1))), m.o
    ),
    "by heads": Spelling(
        lambda m, x: torch.einsum(
            "bhtd,hdo->bto",
            sdpa(torch.einsum("bti,hdi->bhtd", x, w) for w in (m.q, m.k, m.v)),
            m.o,
        ),
        lambda t: {
            **{n: t[n].unflatten(0, (2, -1)) for n in "qkv"},
            "o": t["o"].T.unflatten(0, (2, -1)),
        },
    ),
    "module function": Spelling(
        lambda m, x: F.multi_head_attention_forward(
            *(x.transpose(0, 1),) * 3,
            m.sizes.width,
            m.sizes.heads,
            m.qkv,
            None,
            None,
            None,
            False,
            0.0,
            m.o,
            None,
            need_weights=False,
        )[0].transpose(0, 1),
        lambda t: {"qkv": torch.cat([t["q"], t["k"], t["v"]]), "o": t["o"]},
        {"qkv": ["q", "k", "v"]},
    ),
}


def tempered(core: Callable[..., Tensor]) -> Run:
    """Return attention with a temperature for each sample, which a layer computes."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (heads(m, F.linear(x, w)) for w in (m.q, m.k, m.v))
        tau = F.linear(x.mean(1), m.t).exp()[..., None, None]
        return F.linear(joined(core(q, k, v, tau, d(q) ** -0.5)), m.o)

    return run


TEMPERED: Spellings = {
    "tau first": tempered(lambda q, k, v, tau, s: (s * (q @ k.mT * tau)).softmax(-1) @ v),
    "scale first": tempered(lambda q, k, v, tau, s: (s * (q @ k.mT) * tau).softmax(-1) @ v),
    "tau and scale": tempered(lambda q, k, v, tau, s: (tau * s * (q @ k.mT)).softmax(-1) @ v),
    "tau at q": tempered(lambda q, k, v, tau, s: (q * tau @ k.mT * s).softmax(-1) @ v),
    "tau at k, scale at q": tempered(lambda q, k, v, tau, s: (q * s @ (k * tau).mT).softmax(-1) @ v),
    "einsum": tempered(lambda q, k, v, tau, s: (torch.einsum("bhqd,bhkd->bhqk", q, k) * tau * s).softmax(-1) @ v),
    "sdpa": tempered(lambda q, k, v, tau, s: F.scaled_dot_product_attention(q * tau, k, v)),
    "fused, mul": tempered(lambda q, k, v, tau, s: (q @ k.mT).mul(tau).mul(s).softmax(-1) @ v),
}


def learned(core: Callable[..., Tensor]) -> Run:
    """Return attention with a learned number beside the logits."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (heads(m, F.linear(x, w)) for w in (m.q, m.k, m.v))
        return F.linear(joined(core(m, q, k, v, d(q) ** -0.5)), m.o)

    return run


LEARNED: Spellings = {
    "tau first": learned(lambda m, q, k, v, s: (s * (q @ k.mT * m.t)).softmax(-1) @ v),
    "scale first": learned(lambda m, q, k, v, s: (s * (q @ k.mT) * m.t).softmax(-1) @ v),
    "tau times scale": learned(lambda m, q, k, v, s: (q @ k.mT * (m.t * s)).softmax(-1) @ v),
    "tau at q": learned(lambda m, q, k, v, s: (m.t * q @ k.mT * s).softmax(-1) @ v),
    "tau and scale at k": learned(lambda m, q, k, v, s: (q @ (k * s * m.t).mT).softmax(-1) @ v),
    "sdpa": learned(lambda m, q, k, v, s: F.scaled_dot_product_attention(q * m.t, k, v)),
}
NORMED_QK: Spellings = {
    "normalize": learned(
        lambda m, q, k, v, s: (m.t * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v
    ),
    "by hand": learned(
        lambda m, q, k, v, s: (
            (m.t * (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).mT).softmax(-1) @ v
        )
    ),
    "rsqrt": learned(
        lambda m, q, k, v, s: (
            (
                (q * q.square().sum(-1, keepdim=True).rsqrt()) @ (k * k.pow(2).sum(-1, keepdim=True).rsqrt()).mT * m.t
            ).softmax(-1)
            @ v
        )
    ),
    "cosine": learned(
        lambda m, q, k, v, s: (m.t * F.cosine_similarity(q.unsqueeze(-2), k.unsqueeze(-3), dim=-1)).softmax(-1) @ v
    ),
    "mean squares": learned(
        lambda m, q, k, v, s: (
            (m.t * F.rms_norm(q, (d(q),), eps=1e-30) @ F.rms_norm(k, (d(k),), eps=1e-30).mT / d(q)).softmax(-1) @ v
        )
    ),
    "linalg": learned(
        lambda m, q, k, v, s: (
            (m.t * (q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v
        )
    ),
}
LINEAR_ATTENTION: Spellings = {
    "keys with values first": attend(lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v)),
    "queries with keys first": attend(lambda q, k, v: (q.softmax(-1) @ k.softmax(-2).mT) @ v),
    "einsum": attend(
        lambda q, k, v: torch.einsum(
            "bhqd,bhdv->bhqv", q.softmax(-1), torch.einsum("bhkd,bhkv->bhdv", k.softmax(-2), v)
        )
    ),
    "einsum of three": attend(lambda q, k, v: torch.einsum("bhkd,bhkv,bhqd->bhqv", k.softmax(-2), v, q.softmax(-1))),
    "product and sum": attend(
        lambda q, k, v: (q.softmax(-1).unsqueeze(-2) * (v.mT @ k.softmax(-2)).unsqueeze(-3)).sum(-1)
    ),
}


MEMORY: Spellings = {
    "matmul": lambda m, x: (x @ m.k.T).softmax(-1) @ m.v,
    "linear": lambda m, x: F.linear(F.linear(x, m.k).softmax(-1), m.v.T),
    "einsum": lambda m, x: torch.einsum("btk,ki->bti", torch.einsum("bti,ki->btk", x, m.k).softmax(-1), m.v),
    "sdpa": lambda m, x: F.scaled_dot_product_attention(
        x, m.k.expand(x.shape[0], -1, -1), m.v.expand(x.shape[0], -1, -1), scale=1.0
    ),
    "product and sum": lambda m, x: ((x @ m.k.T).softmax(-1).unsqueeze(-1) * m.v).sum(-2),
}


FUNCTIONS: dict[str, Function] = {
    "attention": Function(drawn(*"qkvo"), ATTENTION),
    "attention with a temperature": Function(drawn(*"qkvo", t=(1, "width")), TEMPERED),
    "attention with a learned number": Function(drawn(*"qkvo", t=(1,)), LEARNED),
    "attention of normed queries": Function(drawn(*"qkvo", t=(1,)), NORMED_QK),
    "linear attention": Function(drawn(*"qkvo"), LINEAR_ATTENTION),
    "memory": Function(drawn(k=(5, "width"), v=(5, "width")), MEMORY),
}

"""Functions that are made of layers, each in several spellings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .spelled import Function, Spelling, Spellings, drawn, total

W = ("width",)


def swiglu(parts: Iterable[Tensor]) -> Tensor:
    gate, content = parts
    return F.silu(gate) * content


LINEAR: Spellings = {
    "F.linear": lambda m, x: F.linear(x, m.w, m.b),
    "matmul": lambda m, x: x @ m.w.T + m.b,
    "added first": lambda m, x: m.b + x @ m.w.mT,
    "from the left": lambda m, x: (m.w @ x.mT).mT + m.b,
    "einsum": lambda m, x: torch.einsum("bti,oi->bto", x, m.w) + m.b,
    "einsum weight first": lambda m, x: torch.einsum("oi,bti->bto", m.w, x) + m.b,
    "einsum ellipsis": lambda m, x: torch.einsum("...i,oi->...o", x, m.w).add(m.b),
    "product and sum": lambda m, x: (x.unsqueeze(-2) * m.w).sum(-1) + m.b,
    "addmm": lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w.t()).view(x.shape),
    "baddbmm": lambda m, x: torch.baddbmm(m.b, x, m.w.t().expand(x.shape[0], -1, -1)),
    "bmm": lambda m, x: torch.bmm(x, m.w.t().expand(x.shape[0], -1, -1)) + m.b,
    "mm": lambda m, x: x.flatten(0, 1).mm(m.w.t()).unflatten(0, x.shape[:2]) + m.b,
    "tensordot": lambda m, x: torch.tensordot(x, m.w, dims=([2], [1])) + m.b,
    "inner": lambda m, x: torch.inner(x, m.w) + m.b,
    "conv": lambda m, x: F.conv1d(x.mT, m.w.unsqueeze(-1), m.b).mT,
    "conv2d": lambda m, x: F.conv2d(x.mT.unsqueeze(-1), m.w[:, :, None, None], m.b).squeeze(-1).mT,
    "column": lambda m, x: (m.w @ x.unsqueeze(-1)).squeeze(-1) + m.b,
    "twice negated": lambda m, x: F.linear(x, m.w, m.b).neg().neg(),
    "negated both": lambda m, x: F.linear(-x, -m.w, m.b),
    "negated bias": lambda m, x: F.linear(x, m.w) - (-m.b),
    "halved and doubled": lambda m, x: F.linear(2 * x, m.w / 2, m.b),
    "number after": lambda m, x: 2 * F.linear(x, 0.5 * m.w) + m.b,
    "divided": lambda m, x: F.linear(x / 3, m.w) / (1 / 3) + m.b,
    "cut weight": lambda m, x: (
        torch.cat([F.linear(x, m.w[: m.sizes.width // 2]), F.linear(x, m.w[m.sizes.width // 2 :])], -1) + m.b
    ),
    "chunked weight": lambda m, x: torch.cat(
        [F.linear(x, w, b) for w, b in zip(m.w.chunk(2), m.b.chunk(2), strict=True)], -1
    ),
    "cut input": lambda m, x: F.linear(x[..., :8], m.w[:, :8]) + F.linear(x[..., 8:], m.w[:, 8:]) + m.b,
    "halves of input": lambda m, x: (
        total(x_ @ w_.T for x_, w_ in zip(x.chunk(2, -1), m.w.chunk(2, -1), strict=True)) + m.b
    ),
    "bias row": Spelling(lambda m, x: F.linear(x, m.w) + m.b[0], lambda t: {"w": t["w"], "b": t["b"][None]}),
    "stored transposed": Spelling(lambda m, x: x @ m.w + m.b, lambda t: {"w": t["w"].T, "b": t["b"]}),
    "transposed einsum": Spelling(
        lambda m, x: torch.einsum("bti,io->bto", x, m.w) + m.b, lambda t: {"w": t["w"].T, "b": t["b"]}
    ),
    "transposed addmm": Spelling(
        lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w).view(x.shape), lambda t: {"w": t["w"].T, "b": t["b"]}
    ),
    "stored as kernel": Spelling(
        lambda m, x: F.conv1d(x.mT, m.w, m.b).mT, lambda t: {"w": t["w"][..., None], "b": t["b"]}
    ),
    "stored in heads": Spelling(
        lambda m, x: torch.einsum("bti,hoi->btho", x, m.w).flatten(2) + m.b,
        lambda t: {"w": t["w"].unflatten(0, (2, -1)), "b": t["b"]},
    ),
    "stored in two": Spelling(
        lambda m, x: torch.cat([F.linear(x, m.u), F.linear(x, m.v)], -1) + m.b,
        lambda t: {"u": t["w"].chunk(2)[0], "v": t["w"].chunk(2)[1], "b": t["b"]},
        {"u": ["w"], "v": ["w"]},
    ),
    "two weights joined": Spelling(
        lambda m, x: F.linear(x, torch.cat([m.u, m.v]), m.b),
        lambda t: {"u": t["w"].chunk(2)[0], "v": t["w"].chunk(2)[1], "b": t["b"]},
        {"u": ["w"], "v": ["w"]},
    ),
    "stored in columns": Spelling(
        lambda m, x: F.linear(x.chunk(2, -1)[0], m.u) + F.linear(x.chunk(2, -1)[1], m.v) + m.b,
        lambda t: {"u": t["w"].chunk(2, 1)[0], "v": t["w"].chunk(2, 1)[1], "b": t["b"]},
        {"u": ["w"], "v": ["w"]},
    ),
}


CHAIN: Spellings = {
    "one after the other": lambda m, x: F.linear(F.linear(x, m.a), m.b),
    "product first": lambda m, x: F.linear(x, m.b @ m.a),
    "transposed": lambda m, x: x @ m.a.T @ m.b.T,
    "product transposed": lambda m, x: x @ (m.b @ m.a).T,
    "transposed product": lambda m, x: x @ (m.a.T @ m.b.T),
    "einsum of three": lambda m, x: torch.einsum("bti,ri,or->bto", x, m.a, m.b),
    "einsum weights": lambda m, x: F.linear(x, torch.einsum("or,ri->oi", m.b, m.a)),
    "einsum reversed": lambda m, x: torch.einsum("or,ri,bti->bto", m.b, m.a, x),
    "mm": lambda m, x: torch.matmul(x, torch.mm(m.b, m.a).t()),
    "multi_dot": lambda m, x: F.linear(x, torch.linalg.multi_dot([m.b, m.a])),
    "chain_matmul": lambda m, x: torch.linalg.multi_dot([x.flatten(0, 1), m.a.T, m.b.T]).unflatten(0, x.shape[:2]),
    "from the left": lambda m, x: (m.b @ (m.a @ x.mT)).mT,
}
FUNCTIONS: dict[str, Function] = {
    "linear": Function(drawn("w", b=W), LINEAR),
    "two square": Function(drawn("a", "b"), CHAIN),
    "two with hidden": Function(drawn(a=("hidden", "width"), b=("width", "hidden")), CHAIN),
    "low rank": Function(drawn(a=(4, "width"), b=("width", 4)), CHAIN),
    "low rank update": Function(
        drawn("w", a=(4, "width"), b=("width", 4)),
        {
            "two paths": lambda m, x: F.linear(x, m.w) + 0.5 * F.linear(F.linear(x, m.a), m.b),
            "merged": lambda m, x: F.linear(x, m.w + 0.5 * (m.b @ m.a)),
            "merged transposed": lambda m, x: x @ (m.w.T + 0.5 * (m.a.T @ m.b.T)),
            "scale first": lambda m, x: F.linear(x, m.w) + F.linear(F.linear(0.5 * x, m.a), m.b),
            "scale between": lambda m, x: F.linear(F.linear(x, m.a) * 0.5, m.b) + F.linear(x, m.w),
            "addmm": lambda m, x: F.linear(x, torch.addmm(m.w, m.b, m.a, alpha=0.5)),
            "baddbmm": lambda m, x: torch.baddbmm(
                F.linear(x, m.w), F.linear(x, m.a), m.b.T.expand(x.shape[0], -1, -1), alpha=0.5
            ),
        },
    ),
    "sum of two": Function(
        drawn("w", "v"),
        {
            "two paths": lambda m, x: F.linear(x, m.w) + F.linear(x, m.v),
            "one weight": lambda m, x: F.linear(x, m.w + m.v),
            "matmul": lambda m, x: x @ m.w.T + x @ m.v.T,
            "stacked": lambda m, x: F.linear(x, torch.stack([m.w, m.v]).sum(0)),
            "added": lambda m, x: F.linear(x, torch.add(m.v, m.w)),
            "joined": lambda m, x: F.linear(torch.cat([x, x], -1), torch.cat([m.w, m.v], 1)),
            "sum of list": lambda m, x: total(F.linear(x, each) for each in (m.w, m.v)),
            "batched": lambda m, x: torch.einsum("bti,koi->bto", x, torch.stack([m.w, m.v])),
        },
    ),
    "weighed sum of two": Function(
        drawn("w", "v", e=(1,), f=(1,)),
        {
            "two paths": lambda m, x: m.e * F.linear(x, m.w) + m.f * F.linear(x, m.v),
            "one weight": lambda m, x: F.linear(x, m.e * m.w + m.f * m.v),
            "factors on inputs": lambda m, x: F.linear(m.e * x, m.w) + F.linear(x * m.f, m.v),
            "products of weights": lambda m, x: F.linear(x, m.w * m.e) + F.linear(x, m.f * m.v),
        },
    ),
    "activations and edges": Function(
        drawn("w", "v"),
        {
            "two layers": lambda m, x: F.silu(x) @ m.w + x @ m.v,
            "one sum": lambda m, x: (F.silu(x).unsqueeze(-1) * m.w + x.unsqueeze(-1) * m.v).sum(-2),
            "two sums": lambda m, x: (F.silu(x).unsqueeze(-1) * m.w).sum(-2) + (x.unsqueeze(-1) * m.v).sum(-2),
            "einsum": lambda m, x: torch.einsum("bti,io->bto", F.silu(x), m.w) + torch.einsum("bti,io->bto", x, m.v),
            "joined": lambda m, x: torch.cat([F.silu(x), x], -1) @ torch.cat([m.w, m.v]),
        },
    ),
    "row gains": Function(
        drawn("w", g=W),
        {
            "after": lambda m, x: m.g * F.linear(x, m.w),
            "after the other way": lambda m, x: F.linear(x, m.w) * m.g,
            "on rows": lambda m, x: F.linear(x, m.g[:, None] * m.w),
            "on rows unsqueezed": lambda m, x: F.linear(x, m.w * m.g.unsqueeze(1)),
            "einsum": lambda m, x: torch.einsum("bti,oi,o->bto", x, m.w, m.g),
            "einsum after": lambda m, x: torch.einsum("bto,o->bto", F.linear(x, m.w), m.g),
            "stored as column": Spelling(
                lambda m, x: F.linear(x, m.g * m.w), lambda t: {"w": t["w"], "g": t["g"][:, None]}
            ),
        },
    ),
    "column gains": Function(
        drawn("w", g=W),
        {
            "before": lambda m, x: F.linear(x * m.g, m.w),
            "before the other way": lambda m, x: F.linear(m.g * x, m.w),
            "on columns": lambda m, x: F.linear(x, m.w * m.g),
            "on columns first": lambda m, x: x @ (m.g * m.w).T,
            "einsum": lambda m, x: torch.einsum("bti,oi,i->bto", x, m.w, m.g),
        },
    ),
    "scalar": Function(
        drawn("w", e=(1,)),
        {
            "after": lambda m, x: m.e * F.linear(x, m.w),
            "before": lambda m, x: F.linear(x * m.e, m.w),
            "on weight": lambda m, x: F.linear(x, m.w * m.e),
            "einsum": lambda m, x: torch.einsum("bti,oi,k->bto", x, m.w, m.e),
            "zero-dim": Spelling(lambda m, x: m.e * F.linear(x, m.w), lambda t: {"w": t["w"], "e": t["e"][0]}),
        },
    ),
    "gated": Function(
        drawn("d", g=("hidden", "width"), u=("hidden", "width"), d=("width", "hidden")),
        {
            "two layers": lambda m, x: F.linear(F.silu(F.linear(x, m.g)) * F.linear(x, m.u), m.d),
            "other order": lambda m, x: F.linear(F.linear(x, m.u) * F.silu(F.linear(x, m.g)), m.d),
            "silu by hand": lambda m, x: F.linear(
                F.linear(x, m.g) * torch.sigmoid(F.linear(x, m.g)) * F.linear(x, m.u), m.d
            ),
            "joined": lambda m, x: F.linear(swiglu(F.linear(x, torch.cat([m.g, m.u])).chunk(2, -1)), m.d),
            "fused chunk": Spelling(
                lambda m, x: F.linear(swiglu(F.linear(x, m.gu).chunk(2, -1)), m.d),
                lambda t: {"gu": torch.cat([t["g"], t["u"]]), "d": t["d"]},
                {"gu": ["g", "u"]},
            ),
            "fused split": Spelling(
                lambda m, x: F.linear(swiglu(F.linear(x, m.gu).split(m.sizes.hidden, -1)), m.d),
                lambda t: {"gu": torch.cat([t["g"], t["u"]]), "d": t["d"]},
                {"gu": ["g", "u"]},
            ),
            "fused slices": Spelling(
                lambda m, x: (lambda y: F.linear(F.silu(y[..., : m.sizes.hidden]) * y[..., m.sizes.hidden :], m.d))(
                    F.linear(x, m.gu)
                ),
                lambda t: {"gu": torch.cat([t["g"], t["u"]]), "d": t["d"]},
                {"gu": ["g", "u"]},
            ),
            "fused unbind": Spelling(
                lambda m, x: (lambda y: F.linear(F.silu(y[0]) * y[1], m.d))(
                    F.linear(x, m.gu).unflatten(-1, (2, -1)).unbind(-2)
                ),
                lambda t: {"gu": torch.cat([t["g"], t["u"]]), "d": t["d"]},
                {"gu": ["g", "u"]},
            ),
            "fused narrow": Spelling(
                lambda m, x: (
                    lambda y: F.linear(
                        F.silu(y.narrow(-1, 0, m.sizes.hidden)) * y.narrow(-1, m.sizes.hidden, m.sizes.hidden), m.d
                    )
                )(F.linear(x, m.gu)),
                lambda t: {"gu": torch.cat([t["g"], t["u"]]), "d": t["d"]},
                {"gu": ["g", "u"]},
            ),
        },
    ),
    "experts": Function(
        drawn(r=(3, "width"), u=(3, "hidden", "width"), d=(3, "width", "hidden")),
        {
            "stacked": lambda m, x: torch.einsum(
                "bte,btei->bti",
                F.linear(x, m.r).softmax(-1),
                torch.einsum("btej,eij->btei", F.silu(torch.einsum("bti,eji->btej", x, m.u)), m.d),
            ),
            "loop": lambda m, x: total(
                F.linear(x, m.r).softmax(-1)[..., i : i + 1] * F.linear(F.silu(F.linear(x, m.u[i])), m.d[i])
                for i in range(3)
            ),
            "stack and sum": lambda m, x: (
                torch.stack([F.linear(F.silu(F.linear(x, m.u[i])), m.d[i]) for i in range(3)], -1)
                * F.linear(x, m.r).softmax(-1).unsqueeze(-2)
            ).sum(-1),
            "matmul": lambda m, x: (
                (F.silu(x.unsqueeze(1) @ m.u.mT) @ m.d.mT) * F.linear(x, m.r).softmax(-1).permute(0, 2, 1)[..., None]
            ).sum(1),
            "unbound": lambda m, x: total(
                p.unsqueeze(-1) * F.linear(F.silu(F.linear(x, u)), d)
                for p, u, d in zip(F.linear(x, m.r).softmax(-1).unbind(-1), m.u.unbind(0), m.d.unbind(0), strict=True)
            ),
            "weighed before": lambda m, x: torch.einsum(
                "btej,eij->bti",
                F.silu(torch.einsum("bti,eji->btej", x, m.u)) * F.linear(x, m.r).softmax(-1).unsqueeze(-1),
                m.d,
            ),
        },
    ),
    "convolution": Function(
        drawn(w=("width", "width", 3), b=W),
        {
            "conv": lambda m, x: F.conv1d(x.mT, m.w, m.b, padding=1).mT,
            "shifted layers": lambda m, x: (
                total(F.linear(F.pad(x, (0, 0, 1, 1))[:, i : i + x.shape[1]], m.w[:, :, i]) for i in range(3)) + m.b
            ),
            "unfolded": lambda m, x: F.linear(F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).flatten(2), m.w.flatten(1), m.b),
            "conv2d": lambda m, x: F.conv2d(x.mT.unsqueeze(2), m.w.unsqueeze(2), m.b, padding=(0, 1)).squeeze(2).mT,
            "einsum": lambda m, x: torch.einsum("btik,oik->bto", F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1), m.w) + m.b,
            "bias after": lambda m, x: F.conv1d(x.mT, m.w, padding=1).mT + m.b,
        },
    ),
    "depthwise": Function(
        drawn(w=("width", 1, 3)),
        {
            "conv": lambda m, x: F.conv1d(x.mT, m.w, padding=1, groups=x.shape[-1]).mT,
            "shifted gains": lambda m, x: total(
                F.pad(x, (0, 0, 1, 1))[:, i : i + x.shape[1]] * m.w[:, 0, i] for i in range(3)
            ),
            "product and sum": lambda m, x: (F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1) * m.w.squeeze(1)).sum(-1),
            "einsum": lambda m, x: torch.einsum("btik,ik->bti", F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1), m.w[:, 0]),
        },
    ),
    "grouped": Function(
        lambda s: {"w": torch.randn(s.width, s.width // 2, 1) * (s.width // 2) ** -0.5},
        {
            "conv": lambda m, x: F.conv1d(x.mT, m.w, groups=2).mT,
            "einsum": lambda m, x: torch.einsum(
                "btgi,goi->btgo", x.unflatten(-1, (2, -1)), m.w.squeeze(-1).unflatten(0, (2, -1))
            ).flatten(2),
            "two layers": lambda m, x: torch.cat(
                [F.linear(part, w) for part, w in zip(x.chunk(2, -1), m.w.squeeze(-1).chunk(2), strict=True)], -1
            ),
            "matmul": lambda m, x: (
                x.unflatten(-1, (2, -1)).unsqueeze(-2) @ m.w.squeeze(-1).unflatten(0, (2, -1)).mT
            ).flatten(2),
        },
    ),
}

"""What the rules say of sizes and changes is what the ops do when they run, at widths 64 and 1,024."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fft, nn

import abcfx
from abcfx.dag.arguments import tensors
from abcfx.dag.interpreter import Interpreter
from abcfx.rules.builder import DagBuilder

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


AXIS: dict[str, Any] = {"axis": 1}  # numpy's name of `dim`


def of_first(function: Callable[..., torch.Tensor], **options: object) -> Function:
    """Return a function of two activations that is one of the first alone."""
    return lambda h, k: function(h, **options)


def transforms() -> Iterator[tuple[str, Function, float]]:
    """Yield each Fourier transform over channels with each norm, and the exponent of its RMS."""
    backward = {"fft": 0.5, "rfft": 0.5, "hfft": 0.5, "ifft": -0.5, "irfft": -0.5, "ihfft": -0.5}
    for name, exponent in backward.items():
        function = getattr(fft, name)
        yield name, of_first(function), exponent
        yield f"{name}, forward", of_first(function, norm="forward"), -exponent
        yield f"{name}, ortho", of_first(function, norm="ortho"), 0.0
    for name in ("fft2", "rfft2", "hfft2", "ifft2", "irfft2", "ihfft2", "fftn", "rfftn", "ifftn", "irfftn"):
        function = getattr(fft, name)
        exponent = backward[name[:-1]]
        yield name, of_first(function), exponent
        yield f"{name}, tokens", of_first(function, dim=(0, 1)), 0.0
    yield "fft, tokens", lambda h, k: fft.fft(h, dim=1), 0.0
    yield "fft, padded", lambda h, k: fft.fft(h, n=2 * h.shape[-1]), 0.5
    yield "irfft, as long", lambda h, k: fft.irfft(fft.rfft(h, norm="ortho"), n=h.shape[-1]), -0.5
    yield "ihfftn", lambda h, k: fft.ihfftn(h, dim=(2,)), -0.5
    yield "fftshift", lambda h, k: fft.fftshift(fft.fft(h, norm="ortho")), 0.0
    yield "stft", lambda h, k: torch.stft(h[0], 16, window=torch.ones(16), return_complex=True), 0.0


SIZES: Mapping[str, tuple[Function, float, float]] = {
    **{name: (function, exponent, exponent) for name, function, exponent in transforms()},
    "matmul": (lambda h, k: h @ k.mT, 0.5, 1.0),
    "einsum": (lambda h, k: torch.einsum("btd,bsd->bts", h, k), 0.5, 1.0),
    "einsum, one operand": (lambda h, k: torch.einsum("btd->bt", h.abs()), 1.0, 1.0),
    "einsum, a letter alone": (lambda h, k: torch.einsum("btd,bt->bt", h.abs(), h[..., 0]), 1.0, 1.0),
    "multiply and sum": (lambda h, k: (h * k).sum(-1), 0.5, 1.0),
    "multiply and mean": (lambda h, k: (h * k).mean(-1), -0.5, 0.0),
    "matmul over the number of channels": (lambda h, k: (h @ k.mT) / h.shape[-1], -0.5, 0.0),
    "inner": (lambda h, k: torch.inner(h[0], k[0]), 0.5, 1.0),
    "vecdot": (lambda h, k: torch.linalg.vecdot(h, k), 0.5, 1.0),
    "tensordot": (lambda h, k: torch.tensordot(h[0], k[0], dims=([1], [1])), 0.5, 1.0),
    "tensordot of aten": (lambda h, k: torch.ops.aten.tensordot.default(h[0], k[0], [1], [1]), 0.5, 1.0),
    "chain_matmul": (lambda h, k: torch.linalg.multi_dot([h[0], k[0].mT, h[0]]), 0.5, 1.0),
    "cosine_similarity": (lambda h, k: F.cosine_similarity(h, k, dim=-1), -0.5, 0.0),
    "addmm": (lambda h, k: torch.addmm(h[0], h[0] @ k[0].mT, k[0], beta=0.5, alpha=2.0), 0.5, 1.0),
    "baddbmm": (lambda h, k: torch.baddbmm(h[:, :, :4], h, k.mT, beta=0, alpha=1 / h.shape[-1]), -0.5, 0.0),
    "addbmm": (lambda h, k: torch.addbmm(h[0, :, :4], h, k.mT), 0.5, 1.0),
    "addmv": (lambda h, k: torch.addmv(h[:, 0, 0], h[:, 0], k[0, 0], alpha=3), 0.5, 1.0),
    "addr": (lambda h, k: torch.addr(h[:, 0, :4], h[:, 0, 0], k[0, :, 1]), 0.0, 0.0),
    "addcmul": (lambda h, k: torch.addcmul(h, h, k, value=2.0), 0.0, 0.0),
    "addcmul, scaled": (lambda h, k: torch.addcmul(h, h, k, value=h.shape[-1] ** 0.5), 0.5, 0.5),
    "add, scaled": (lambda h, k: torch.add(h, k, alpha=h.shape[-1] ** 0.5), 0.5, 0.5),
    "kron": (lambda h, k: torch.kron(h[0, :2, :8], k[0, :2]), 0.0, 0.0),
    "outer": (lambda h, k: torch.outer(h[0, 0], k[0, 1]), 0.0, 0.0),
    "cross": (lambda h, k: torch.linalg.cross(h[:, :3], k[:, :3], dim=1), 0.0, 0.0),
    "cdist": (lambda h, k: torch.cdist(h, k), 0.5, 0.5),
    "cdist, 1": (lambda h, k: torch.cdist(h, k, p=1.0), 1.0, 1.0),
    "pairwise_distance": (lambda h, k: F.pairwise_distance(h, k), 0.5, 0.5),
    "lerp": (lambda h, k: torch.lerp(h, k, torch.sigmoid(k)), 0.0, 0.0),
    "cumsum": (lambda h, k: h.abs().cumsum(-1), 1.0, 1.0),
    "trapezoid": (lambda h, k: torch.trapezoid(h.abs(), dim=-1), 1.0, 1.0),
    "nansum": (lambda h, k: h.abs().nansum(-1), 1.0, 1.0),
    "sum of squares": (lambda h, k: (h * h).sum(-1), 1.0, 1.0),
    "mean, by numpy's name": (lambda h, k: h.abs().mean(**AXIS), 0.0, 0.0),
    "norm": (lambda h, k: torch.linalg.vector_norm(h, dim=-1), 0.5, 0.5),
    "norm, 3": (lambda h, k: torch.linalg.vector_norm(h, 3, dim=-1), 1 / 3, 1 / 3),
    "norm, inf": (lambda h, k: torch.linalg.vector_norm(h, math.inf, dim=-1), 0.0, 0.0),
    "matrix_norm": (lambda h, k: torch.linalg.matrix_norm(h), 0.5, 0.5),
    "prod": (lambda h, k: h[..., :3].tanh().prod(-1), 0.0, 0.0),
    "std_mean": (lambda h, k: torch.std_mean(h, dim=-1)[0], 0.0, 0.0),
    "atan2": (lambda h, k: torch.atan2(h, 1 + k.abs()), 0.0, 0.0),
    "hypot": (lambda h, k: torch.hypot(h, k), 0.0, 0.0),
    "logit": (lambda h, k: torch.logit(h.sigmoid()), 0.0, 0.0),
    "inverse": (lambda h, k: torch.inverse(torch.eye(4) * 4 + torch.tanh(h[:, :, :4])), 0.0, 0.0),
    "channel_shuffle": (lambda h, k: F.channel_shuffle(h.mT[..., None], 4), 0.0, 0.0),
    "local_response_norm": (lambda h, k: F.local_response_norm(h.mT[..., None], 5), 0.0, 0.0),
    "grid_sample": (
        lambda h, k: F.grid_sample(h.mT.unflatten(2, (2, 2)), k[:, :2, None, :2].tanh(), align_corners=False),
        0.0,
        0.0,
    ),
    "mse_loss, sum": (lambda h, k: F.mse_loss(h, k, reduction="sum"), 1.0, 1.0),
    "cross entropies, sum": (
        lambda h, k: F.binary_cross_entropy_with_logits(h, k.sigmoid(), reduction="sum"),
        1.0,
        1.0,
    ),
    "kl_div, batchmean": (lambda h, k: F.kl_div(h.abs(), k.sigmoid(), reduction="batchmean"), 1.0, 1.0),
    "diagonal": (lambda h, k: (h @ k.mT).diagonal(dim1=-2, dim2=-1), 0.5, 1.0),
    "mse_loss": (lambda h, k: F.mse_loss(h, k), 0.0, 0.0),
}


class Each(nn.Module):
    """Returns what each function makes of two activations of shape (batch, tokens, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(64, width), nn.Linear(64, width)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.functions(self.one(x), self.other(x))

    def functions(self, h: torch.Tensor, k: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: function(h, k) for name, (function, _, _) in SIZES.items()}


INPUT = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0))


@cache
def said() -> dict[str, tuple[float, float]]:
    """Return the exponents of size and change of each result, as the rules say, relative to those of h and k."""
    model, base = Each(32), Each(16)
    every = abcfx.Capture(outputs="*")  # also the scalars, which are taken for by-products unless they are named
    outcome = abcfx.transform(model, INPUT, base=base, optimizer="sgd", apply="off", capture=every).outcome
    builder = DagBuilder({p: name for name, p in outcome.captured.module.named_parameters()})
    returned = Interpreter(outcome.captured.module, builder, guesses_unknown=False).run(outcome.captured.module.graph)
    found = {}
    for name, result in zip(SIZES, tensors(returned), strict=True):
        node = str(result.node)
        found[name] = -outcome.fixed.size(node), outcome.solution.r["one"] - outcome.solution.r[node]
    return found


@cache
def measured() -> dict[str, tuple[float, float]]:
    """Return the slopes of RMS and of its change when h and k move along h and k, between widths 64 and 1,024."""
    sizes: dict[str, list[tuple[float, float]]] = {name: [] for name in SIZES}
    for width in (64, 1024):
        generator = torch.Generator().manual_seed(1)
        h, k = (torch.randn(48, 4, width, generator=generator, dtype=torch.float64) for _ in range(2))
        model = Each(4)
        torch.set_default_dtype(torch.float64)
        try:
            before, after = model.functions(h, k), model.functions(h + 1e-4 * (h + k), k + 1e-4 * (2 * h + k))
        finally:
            torch.set_default_dtype(torch.float32)
        for name in SIZES:
            sizes[name].append((rms(before[name]), rms(after[name] - before[name])))
    return {
        name: (math.log(large[0] / small[0], 16), math.log(max(large[1], 1e-30) / max(small[1], 1e-30), 16))
        for name, (small, large) in sizes.items()
    }


def rms(x: torch.Tensor) -> float:
    return float(x.abs().square().mean().sqrt())


@pytest.mark.parametrize("name", SIZES)
def test_size_and_change_are_those_of_a_run(name: str) -> None:
    _, *exponents = SIZES[name]
    assert said()[name] == pytest.approx(exponents, abs=1e-6), "what the rules say"
    assert measured()[name] == pytest.approx(exponents, abs=0.15), "what a run shows"

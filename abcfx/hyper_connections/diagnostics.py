"""The six diagnostics of a hyper-connection, each on tensors of one's own; every number is per matrix or per token.

Shapes: streams x (..., n, d), D = n d; weight (k, D) or (..., k, D), k = (2 + n) n; scale (3,); base (k,).
Nothing here costs more than the k mixing values m of a token: the Jacobian of gates and mix with respect to x is
J(m) A with A = dm/dx = r W - m r^2 f^T / D (f: x flattened, r = 1 / rms(f)), and its norms need only A A^T, k x k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from abcfx.errors import InvalidInputError
from abcfx.hyper_connections.module import StreamWeights, split_values
from abcfx.hyper_connections.sinkhorn import gauge_basis, sinkhorn, sinkhorn_jacobian

SATURATED = 0.05


class SinkhornError(NamedTuple):
    """How far a mixing matrix is from doubly stochastic.

    `worst`: largest |sum - 1| over rows and columns; `rows`: mean over rows; `rate`: by how much one more iteration
    shrinks the error, sigma_2^2 in the limit (Knight 2008).
    """

    worst: Tensor
    rows: Tensor
    rate: Tensor


def sinkhorn_error(mix: Tensor) -> SinkhornError:
    """Diagnostic 1, of matrices (..., n, n)."""
    rows, columns = (mix.sum(-1) - 1).abs(), (mix.sum(-2) - 1).abs()
    return SinkhornError(torch.maximum(rows.amax(-1), columns.amax(-1)), rows.mean(-1), spectrum(mix).second.square())


def iterations_needed(mix: Tensor, tolerance: float = 1e-3) -> Tensor:
    """How many iterations bring the error of sums below `tolerance`: ln(tolerance) / (2 ln sigma_2)."""
    return torch.tensor(tolerance, dtype=mix.dtype).log() / (2 * spectrum(mix).second.log())


class Spectrum(NamedTuple):
    """`norm`: largest singular value, 1 for a doubly stochastic matrix: mixing can not make streams larger.

    `second`: second largest, what is kept of the differences between streams.
    """

    norm: Tensor
    second: Tensor


def spectrum(mix: Tensor) -> Spectrum:
    """Diagnostic 2, of matrices (..., n, n) with n > 1."""
    values = torch.linalg.svdvals(mix)
    return Spectrum(values[..., 0], values[..., 1])


class QuotientJacobian(NamedTuple):
    """Singular values of dC / dZ on the (n - 1)^2 directions of the logits that C can see (1/n at Z = 0).

    `leak`: Frobenius norm of dC / dZ on the other directions, which is 0 after enough iterations.
    """

    largest: Tensor
    smallest: Tensor
    condition: Tensor
    leak: Tensor


def quotient_jacobian(logits: Tensor, iters: int = 20, eps: float = 1e-6) -> QuotientJacobian:
    """Diagnostic 3, of logits (..., n, n)."""
    jacobian, n = sinkhorn_jacobian(logits, iters, eps), logits.shape[-1]
    basis = gauge_basis(n, dtype=logits.dtype, device=logits.device)
    values = torch.linalg.svdvals(basis.mT @ jacobian @ basis)
    blind = torch.eye(n * n, dtype=logits.dtype, device=logits.device) - basis @ basis.mT
    largest, smallest = values[..., 0], values[..., -1]
    return QuotientJacobian(largest, smallest, largest / smallest, torch.linalg.matrix_norm(jacobian @ blind))


class Sensitivity(NamedTuple):
    """|change of the mix (read gates, write gates)| per relative change |dx| / |x| of a token's streams.

    For the direction of x that changes them most, ||DC||_2 ||x||, and for a typical one, ||DC||_F ||x|| / sqrt(D).
    """

    mix: Tensor
    read: Tensor
    write: Tensor
    mix_typical: Tensor
    read_typical: Tensor
    write_typical: Tensor


def sensitivity(
    x: Tensor, weight: Tensor, scale: Tensor, base: Tensor, iters: int = 20, eps: float = 1e-6
) -> Sensitivity:
    """Diagnostic 4, per token."""
    n, (values, gain) = x.shape[-2], _values(x, weight, eps)
    size = float(x.shape[-1] * n)
    square = x.flatten(-2).to(weight.dtype).square().sum(-1)
    weights = weight @ weight.mT
    outer = values.unsqueeze(-1) * values.unsqueeze(-2)
    r2 = gain.square()
    covariance = r2 * weights + outer * (r2.square() * square[..., None, None] / size**2 - 2 * r2 / size)
    logits = split_values(values, scale, base, n)
    read, write = torch.sigmoid(logits.read), torch.sigmoid(logits.write)
    parts = (
        (scale[2] * sinkhorn_jacobian(logits.mix, iters, eps), slice(2 * n, None)),
        (torch.diag_embed(scale[0] * read * (1 - read)), slice(0, n)),
        (torch.diag_embed(2 * scale[1] * write * (1 - write)), slice(n, 2 * n)),
    )
    worst, typical = list[Tensor](), list[Tensor]()
    for jacobian, rows in parts:
        gram = jacobian @ covariance[..., rows, rows] @ jacobian.mT
        worst.append((torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0) * square).sqrt())
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        typical.append((trace.clamp(min=0) * square / size).sqrt())
    return Sensitivity(*worst, *typical)


class LogitUpdate(NamedTuple):
    """|change of the mixing logits of a token| by one step on it, in all and by the change of each parameter alone.

    `seen`: the share of it that the mixing matrix can see.
    """

    total: Tensor
    weight: Tensor
    scale: Tensor
    base: Tensor
    seen: Tensor


def logit_update(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    base: Tensor,
    optimizer: str = "sgd",
    lr: float = 1e-3,
    lr_weight: float | None = None,
    iters: int = 20,
    eps: float = 1e-6,
) -> LogitUpdate:
    """Diagnostic 5, per token: one step on |C - I|^2, with the gradient of that token alone.

    Args:
        optimizer: "sgd", or "adam" (its first step: lr times the sign of the gradient).
        lr: absolute learning rate of scale and base, and of the generator where `lr_weight` is None.
    """
    direction: Callable[[Tensor], Tensor]
    directions = {"sgd": lambda gradient: gradient, "adam": torch.sign}
    if optimizer not in directions:
        raise InvalidInputError(f"logit_update: optimizer={optimizer!r}; expected one of {', '.join(directions)}.")
    direction = directions[optimizer]
    n, (values, gain) = x.shape[-2], _values(x, weight, eps)
    lr_weight = lr if lr_weight is None else lr_weight
    raw, logits = values[..., 2 * n :], split_values(values, scale, base, n).mix
    distance = sinkhorn(logits, iters, eps) - torch.eye(n, dtype=values.dtype, device=values.device)
    jacobian = sinkhorn_jacobian(logits, iters, eps)
    gradient = 2 * (jacobian.mT @ distance.flatten(-2).unsqueeze(-1)).squeeze(-1)
    flat = x.flatten(-2).to(weight.dtype) * gain[..., 0]
    # dW = lr direction(s g x^T) is an outer product for both optimizers, so that dW x needs no matrix of width
    length = (flat * direction(flat)).sum(-1, keepdim=True)
    d_raw = -lr_weight * direction(scale[2] * gradient) * length
    d_scale = -lr * direction((gradient * raw).sum(-1, keepdim=True))
    d_base = -lr * direction(gradient)
    total = (scale[2] + d_scale) * (raw + d_raw) - scale[2] * raw + d_base
    basis = gauge_basis(n, dtype=values.dtype, device=values.device)
    parts = (total, scale[2] * d_raw, d_scale * raw, d_base)
    whole, of_weight, of_scale, of_base = (torch.linalg.vector_norm(part, dim=-1) for part in parts)
    seen = torch.linalg.vector_norm(total @ basis, dim=-1) / whole
    return LogitUpdate(whole, of_weight, of_scale, of_base, seen)


class GateStatistics(NamedTuple):
    """Of the read gates (0 to 1) and write gates (0 to 2) of each token.

    `read`, `write`: mean; `read_total`: sum over streams; `write_largest`; `read_saturated`, `write_saturated`: share
    of gates within 5 % of their range of one of its ends, where they have no gradient left.
    """

    read: Tensor
    write: Tensor
    read_total: Tensor
    write_largest: Tensor
    read_saturated: Tensor
    write_saturated: Tensor


def gate_statistics(read: Tensor, write: Tensor) -> GateStatistics:
    """Diagnostic 6, of gates (..., n)."""

    def saturated(gate: Tensor) -> Tensor:
        return ((gate < SATURATED) | (gate > 1 - SATURATED)).to(gate.dtype).mean(-1)

    return GateStatistics(
        read.mean(-1), write.mean(-1), read.sum(-1), write.amax(-1), saturated(read), saturated(write / 2)
    )


def mixing_logits(x: Tensor, weight: Tensor, scale: Tensor, base: Tensor, eps: float = 1e-6) -> StreamWeights:
    """Logits of read gates, write gates and mixing matrix of each token."""
    return split_values(_values(x, weight, eps)[0], scale, base, x.shape[-2])


def _values(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(mixing values (..., k), 1 / rms of each token (..., 1, 1)), for one weight or for one to each token."""
    if weight.ndim < 2 or weight.shape[-1] != x.shape[-1] * x.shape[-2]:
        raise InvalidInputError(
            f"hyper-connection: streams {tuple(x.shape)} and a generator of shape {tuple(weight.shape)} do not fit.\n"
            f"  expected: x (..., n, d) and weight ((2 + n) n, n d)."
        )
    flat = x.flatten(-2).to(weight.dtype)
    gain = torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
    return torch.einsum("...kd,...d->...k", weight, flat) * gain, gain.unsqueeze(-1)

"""The six diagnostics of a hyper-connection as functions of tensors; they return a number for each matrix or token.

A hyper-connection keeps n residual streams of width d. From a token's streams x it computes k mixing values with a
weight matrix (the generator), and from these read gates, write gates and the matrix that mixes the streams.

Shapes: streams x (..., n, d), D = n d; weight (k, D) or (..., k, D), k = (2 + n) n; scale (3,); base (k,). No
diagnostic needs a matrix with a side of D. Gates and mix depend on x through the k mixing values m of a token, so their
Jacobian with respect to x is J(m) A with A = dm/dx = r W - m r^2 f^T / D (f: x flattened, r = 1 / rms(f)), and its
norms need only A A^T, k x k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from abcfx.errors import InvalidInputError
from abcfx.hyper_connections.module import StreamWeights, split_values
from abcfx.hyper_connections.shapes import check_generator
from abcfx.hyper_connections.sinkhorn_iterations import gauge_basis, sinkhorn, sinkhorn_jacobian
from abcfx.support import arguments
from abcfx.support.choices import choose

SATURATED = 0.05  # share of a gate's range at either end within which the gate counts as saturated


_DIRECTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"sgd": lambda gradient: gradient, "adam": torch.sign}


_PARAMETERS = {
    "x": arguments.tensor(2),
    "weight": arguments.tensor(2),
    "scale": arguments.tensor(1),
    "base": arguments.tensor(1),
}
_ITERATION = {"iters": arguments.whole(), "eps": arguments.number(at_least=0)}


class SinkhornError(NamedTuple):
    """How far mixing matrices are from doubly stochastic (rows and columns sum to 1); a tensor entry for each matrix.

    Attributes:
        worst: largest |sum - 1| over rows and columns.
        rows: mean of |sum - 1| over rows.
        rate: factor by which one more Sinkhorn iteration shrinks the error; in the limit sigma_2^2, sigma_2 being the
            second largest singular value (Knight 2008).
    """

    worst: Tensor
    rows: Tensor
    rate: Tensor


@arguments.checked(mix=arguments.tensor(2, square=True))
def sinkhorn_error(mix: Tensor) -> SinkhornError:
    """Diagnostic 1: measure how far the sums of rows and columns of mixing matrices are from 1.

    Args:
        mix: matrices that mix the n residual streams of hyper-connections, (..., n, n).

    Returns:
        Tensors (...,): the largest error, the mean error of rows, and the factor by which an iteration shrinks the
        error.

    Example:
        >>> round(float(sinkhorn_error(torch.eye(4)).worst), 6)
        0.0
    """
    rows, columns = (mix.sum(-1) - 1).abs(), (mix.sum(-2) - 1).abs()
    return SinkhornError(torch.maximum(rows.amax(-1), columns.amax(-1)), rows.mean(-1), spectrum(mix).second.square())


@arguments.checked(mix=arguments.tensor(2, square=True), tolerance=arguments.number(above=0))
def iterations_needed(mix: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Return how many Sinkhorn iterations bring the error of row and column sums below a tolerance, for each matrix.

    It is ln(tolerance) / (2 ln sigma_2), with sigma_2 the second largest singular value of the matrix.

    Args:
        mix: mixing matrices (..., n, n) after many iterations.
        tolerance: largest error of a sum.
    """
    return torch.tensor(tolerance, dtype=mix.dtype).log() / (2 * spectrum(mix).second.log())


class Spectrum(NamedTuple):
    """The two largest singular values of each mixing matrix, which mixes the n streams of a hyper-connection.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        norm: the largest; 1 for a doubly stochastic matrix, which cannot make streams larger.
        second: the second largest: the share of the differences between streams that mixing keeps.
    """

    norm: Tensor
    second: Tensor


@arguments.checked(mix=arguments.tensor(2, square=True))
def spectrum(mix: Tensor) -> Spectrum:
    """Diagnostic 2: return the two largest singular values of mixing matrices (..., n, n), with n > 1.

    They say by how much mixing makes streams larger, and how much of their differences it keeps.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
    """
    values = torch.linalg.svdvals(mix)
    return Spectrum(values[..., 0], values[..., 1])


class QuotientJacobian(NamedTuple):
    """How a mixing matrix C = sinkhorn(Z) responds to its logits Z, from the singular values of the Jacobian dC / dZ.

    Adding a constant to a row or a column of Z changes nothing after many iterations; the other (n - 1)^2 directions
    do.

    Attributes:
        largest, smallest: singular values on those (n - 1)^2 directions; both are 1/n at Z = 0.
        condition: largest over smallest.
        leak: Frobenius norm on the directions that should change nothing; 0 after enough iterations.
    """

    largest: Tensor
    smallest: Tensor
    condition: Tensor
    leak: Tensor


def quotient_jacobian(logits: Tensor, iters: int = 20, eps: float = 1e-6) -> QuotientJacobian:
    """Diagnostic 3: measure how mixing matrices respond to their logits, in directions that should matter or not.

    Args:
        logits: logits of the mixing matrices, (..., n, n).
        iters, eps: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1), and what is added to
            entries and sums.

    Returns:
        Tensors (...,): largest and smallest response, their ratio, and the response that should be 0.
    """
    jacobian, n = sinkhorn_jacobian(logits, iters, eps), logits.shape[-1]
    basis = gauge_basis(n, dtype=logits.dtype, device=logits.device)
    values = torch.linalg.svdvals(basis.mT @ jacobian @ basis)
    blind = torch.eye(n * n, dtype=logits.dtype, device=logits.device) - basis @ basis.mT
    largest, smallest = values[..., 0], values[..., -1]
    return QuotientJacobian(largest, smallest, largest / smallest, torch.linalg.matrix_norm(jacobian @ blind))


class Sensitivity(NamedTuple):
    """How much a token's mixing matrix and its gates change per relative change |dx| / |x| of the token's streams x.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        mix, read, write: change of the mixing matrix, the read gates and the write gates, in the direction of x that
            changes them most.
        mix_typical, read_typical, write_typical: the same in a typical (random) direction.
    """

    mix: Tensor
    read: Tensor
    write: Tensor
    mix_typical: Tensor
    read_typical: Tensor
    write_typical: Tensor


@arguments.checked(**_PARAMETERS, **_ITERATION)
def sensitivity(
    x: Tensor, weight: Tensor, scale: Tensor, base: Tensor, iters: int = 20, eps: float = 1e-6
) -> Sensitivity:
    """Diagnostic 4: measure, for each token, how much its gates and its mixing matrix change when its streams change.

    Args:
        x: the n residual streams of width d of each token, (..., n, d).
        weight, scale, base: parameters of the hyper-connection: the generator ((2 + n) n, n d), a weight that computes
            the gates and the mixing matrix from x, and scales (3,) and bases.
        iters, eps: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1), and what is added in
            them and in the norm of x.

    Returns:
        Tensors (...,): change per relative change of x, for mix, read and write gates, worst and typical direction.
    """
    check_generator(x, weight, scale, base)
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
    """How far one optimizer step on a token moves the logits of its mixing matrix (norm over the n^2 logits).

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        total: change by all parameters together.
        weight, scale, base: change by one of the parameters alone: the generator (the weight that computes the logits
            from the streams), scales, bases.
        seen: share of the total that changes the mixing matrix; constants added to rows or columns do not.
    """

    total: Tensor
    weight: Tensor
    scale: Tensor
    base: Tensor
    seen: Tensor


@arguments.checked(
    **_PARAMETERS,
    **_ITERATION,
    lr=arguments.number(at_least=0),
    lr_weight=arguments.optional(arguments.number(at_least=0)),
)
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
    """Diagnostic 5: measure, for each token, how far one step of SGD or Adam moves the logits of its mixing matrix C.

    The step is on the loss |C - I|^2 of that token alone.

    Args:
        x: the n residual streams of width d of each token, (..., n, d).
        weight, scale, base: parameters of the hyper-connection: the generator ((2 + n) n, n d), scales (3,) and bases.
        optimizer: "sgd", or "adam" (its first step: lr times the sign of the gradient).
        lr: absolute learning rate of scales and bases, and of the generator (the weight that computes gates and mixing
            matrix) where `lr_weight` is None.
        lr_weight: absolute learning rate of the generator.
        iters, eps: number of Sinkhorn iterations (each scales rows, then columns, to the sum 1), and what is added in
            them and in the norm of x.

    Returns:
        Tensors (...,): the norm of the change by all parameters, by each alone, and the share that changes C.

    Raises:
        InvalidInputError: there is no such optimizer, or the shapes do not fit.
    """
    direction = _DIRECTIONS[choose("optimizer", optimizer, _DIRECTIONS)]
    check_generator(x, weight, scale, base)
    n, (values, gain) = x.shape[-2], _values(x, weight, eps)
    lr_weight = lr if lr_weight is None else lr_weight
    raw, logits = values[..., 2 * n :], split_values(values, scale, base, n).mix
    distance = sinkhorn(logits, iters, eps) - torch.eye(n, dtype=values.dtype, device=values.device)
    jacobian = sinkhorn_jacobian(logits, iters, eps)
    gradient = 2 * (jacobian.mT @ distance.flatten(-2).unsqueeze(-1)).squeeze(-1)
    flat = x.flatten(-2).to(weight.dtype) * gain[..., 0]
    # dW = lr direction(s g x^T) is an outer product for both optimizers, so dW x needs no matrix with a side of D.
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
    """Summary of each token's read gates (0 to 1) and write gates (0 to 2) over the n streams of a hyper-connection.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.

    Attributes:
        read, write: mean over streams.
        read_total: sum of the read gates over streams.
        write_largest: largest write gate.
        read_saturated, write_saturated: share of gates within 5 % of one end of their range, where they hardly learn.
    """

    read: Tensor
    write: Tensor
    read_total: Tensor
    write_largest: Tensor
    read_saturated: Tensor
    write_saturated: Tensor


@arguments.checked(read=arguments.tensor(1), write=arguments.tensor(1))
def gate_statistics(read: Tensor, write: Tensor) -> GateStatistics:
    """Diagnostic 6: summarise the read and write gates (..., n) of tokens: means, sums, and how many are saturated.

    A hyper-connection keeps n residual streams instead of one; weights computed from them read, write and mix them.
    """

    if read.shape != write.shape:
        raise arguments.wrong("write", write, f"gates of the shape of the read gates, {tuple(read.shape)}")

    def saturated(gate: Tensor) -> Tensor:
        """Return the share of gates, scaled to 0..1, that are within 5 % of one end."""
        return ((gate < SATURATED) | (gate > 1 - SATURATED)).to(gate.dtype).mean(-1)

    return GateStatistics(
        read.mean(-1), write.mean(-1), read.sum(-1), write.amax(-1), saturated(read), saturated(write / 2)
    )


@arguments.checked(**_PARAMETERS, eps=arguments.number(at_least=0))
def mixing_logits(x: Tensor, weight: Tensor, scale: Tensor, base: Tensor, eps: float = 1e-6) -> StreamWeights:
    """Compute for each token the logits of its read gates, its write gates and its mixing matrix.

    Args:
        x: the n residual streams of width d of each token, (..., n, d).
        weight, scale, base: parameters of the hyper-connection: the generator ((2 + n) n, n d), a weight that computes
            the gates and the mixing matrix from x, and scales (3,) and bases.
        eps: added to the mean square of x.

    Returns:
        Logits `read` and `write` (..., n) and `mix` (..., n, n).
    """
    check_generator(x, weight, scale, base)
    return split_values(_values(x, weight, eps)[0], scale, base, x.shape[-2])


def _values(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute each token's mixing values W x / rms(x), from which its gates and mixing matrix follow.

    Args:
        x: the n residual streams of width d of each token, (..., n, d).
        weight: the generator W, one for all tokens (k, n d) or one for each (..., k, n d).
        eps: added to the mean square of x.

    Returns:
        Mixing values (..., k), and 1 / rms(x) (..., 1, 1).

    Raises:
        InvalidInputError: the shapes do not fit together.
    """
    if weight.ndim < 2 or weight.shape[-1] != x.shape[-1] * x.shape[-2]:
        raise InvalidInputError(
            f"hyper-connection: streams {tuple(x.shape)} do not fit a generator of shape {tuple(weight.shape)}.\n"
            f"  expected: x (..., n, d) and weight ((2 + n) n, n d)."
        )
    flat = x.flatten(-2).to(weight.dtype)
    gain = torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
    return torch.einsum("...kd,...d->...k", weight, flat) * gain, gain.unsqueeze(-1)

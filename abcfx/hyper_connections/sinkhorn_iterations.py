"""Sinkhorn normalisation of a matrix of logits, its Jacobian, and the directions of the logits that it cannot see.

n x n logits Z become positive matrices C whose rows and columns sum to 1. Adding a number to a row or to a column of Z
changes nothing in the limit of many iterations. There are 2n - 1 such *gauge* directions, to which C is blind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abcfx.support import arguments
from abcfx.support.numbers import check_number, check_whole


def sinkhorn(logits: Tensor, iters: int = 20, eps: float = 1e-6) -> Tensor:
    """Turn logits into matrices whose columns sum to 1, and whose rows do in the limit of many iterations.

    C = softmax(Z, rows) + eps, divided by (column sums + eps); then iters - 1 times divided by (row sums + eps) and by
    (column sums + eps): the arithmetic of DeepSeek V4's inference code. The last division is by columns, so it is C
    transposed, applied to streams, that keeps identical streams identical.

    Args:
        logits: (..., n, n).
        iters: number of times that columns are normalised, at least 1.
        eps: added to entries and sums; the error of the sums never falls below it.

    Raises:
        InvalidInputError: the logits are not square matrices, or iters is below 1.

    Example:
        >>> [round(float(total), 4) for total in sinkhorn(torch.randn(3, 3)).sum(0)]
        [1.0, 1.0, 1.0]
    """
    check_logits(logits, iters, eps)
    return normalised(logits, iters, eps)


def normalised(logits: Tensor, iters: int, eps: float) -> Tensor:
    """Do what `sinkhorn` does, without checking the arguments, which a symbolic trace could not follow.

    Args:
        logits: (..., n, n).
        iters: number of times that columns are normalised to the sum 1; rows are normalised in between.
        eps: added to entries and sums.
    """
    mix = torch.softmax(logits, -1) + eps
    mix = mix / (mix.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        mix = mix / (mix.sum(-1, keepdim=True) + eps)
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
    return mix


def check_logits(logits: Tensor, iters: int, eps: float) -> None:
    """Raise InvalidInputError unless the logits are square matrices, iters is at least 1 and eps not negative."""
    arguments.tensor(2, square=True)("sinkhorn: logits", logits)
    check_whole("sinkhorn: iters", iters)
    check_number("sinkhorn: eps", eps, at_least=0)


def sinkhorn_jacobian(logits: Tensor, iters: int = 20, eps: float = 1e-6) -> Tensor:
    """Return the Jacobian dC / dZ of C = sinkhorn(Z), (..., n^2, n^2): entries of C by entries of Z, both row by row.

    All n^2 tangents go through the iterations together, so there is no loop over entries and no autograd graph.

    Args:
        logits: Z, (..., n, n).
        iters, eps: number of iterations, and what is added to entries and sums.
    """
    check_logits(logits, iters, eps)
    n = logits.shape[-1]
    soft = torch.softmax(logits, -1)
    units = torch.eye(n * n, dtype=logits.dtype, device=logits.device).view(n * n, n, n)
    mix, soft = (soft + eps).unsqueeze(-3), soft.unsqueeze(-3)
    tangent = soft * (units - (soft * units).sum(-1, keepdim=True))
    mix, tangent = _divided(mix, tangent, -2, eps)
    for _ in range(iters - 1):
        mix, tangent = _divided(mix, tangent, -1, eps)
        mix, tangent = _divided(mix, tangent, -2, eps)
    return tangent.flatten(-2).mT


def _divided(mix: Tensor, tangent: Tensor, dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """Divide a matrix by its own sums along a dim, and carry its derivatives through the division.

    Args:
        mix: the matrix, (..., 1, n, n).
        tangent: its derivatives in n^2 directions, (..., n^2, n, n).
        dim: -1 to divide by the sums of rows, -2 by those of columns.
        eps: added to the sums.

    Returns:
        The divided matrix and its derivatives.
    """
    sums = mix.sum(dim, keepdim=True) + eps
    mix = mix / sums
    return mix, (tangent - mix * tangent.sum(dim, keepdim=True)) / sums


def _float_type(option: str, value: object) -> None:
    """Raise an error unless the value of the argument `option` is a floating-point dtype.

    Raises:
        InvalidInputError: it is something else.
    """
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise arguments.wrong(option, value, "a floating-point dtype such as torch.float64")


def _device(option: str, value: object) -> None:
    """Refuse what is no device of this machine.

    Raises:
        InvalidInputError: it is something else.
    """
    try:
        torch.empty(0, device=value)  # type: ignore[call-overload]
    except (AssertionError, RuntimeError, TypeError) as error:  # torch raises all three
        raise arguments.wrong(option, value, "a device of this machine", f"{option.split()[-1]}='cpu'") from error


def gauge_projector(streams: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Return the projector (n^2, n^2) onto those n x n logits that change sinkhorn(logits): rows and columns sum to 0.

    `sinkhorn` divides rows and columns of exp(logits) by their sums in turn. The projector is (I - 11^T/n) kron (I -
    11^T/n), of rank (n - 1)^2. I minus it projects onto the others (constants added to rows or columns), to which
    `sinkhorn` is blind.

    Args:
        streams: n.
        dtype, device: of the result.

    Raises:
        InvalidInputError: there is no such number of streams, no such dtype, or no such device here.
    """
    check_whole("gauge_projector: streams", streams)
    arguments.optional(_float_type)("gauge_projector: dtype", dtype)
    arguments.optional(_device)("gauge_projector: device", device)
    centred = torch.eye(streams, dtype=dtype, device=device) - 1 / streams
    return torch.kron(centred, centred)


def gauge_basis(streams: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Return an orthonormal basis (n^2, (n - 1)^2) of the n x n logits whose rows and columns sum to 0.

    These are the logits that change sinkhorn(logits), which divides rows and columns of exp(logits) by their sums in
    turn, and onto which `gauge_projector` projects; made of Helmert contrasts.

    Args:
        streams: n.
        dtype, device: of the result.
    """
    n = streams
    contrasts = torch.zeros(n, n - 1, dtype=dtype, device=device)
    for k in range(1, n):
        contrasts[:k, k - 1] = (k * (k + 1)) ** -0.5
        contrasts[k, k - 1] = -((k / (k + 1)) ** 0.5)
    return torch.kron(contrasts, contrasts)

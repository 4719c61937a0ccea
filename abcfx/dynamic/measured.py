"""Alignment exponents of one layer, measured: how far its updates and its activations really line up.

A layer computes y = z w^T. Since the first moment its output has changed by z0 dw^T + dz w0^T + dz dw^T. The alignment
of each of these products is log_n [ rms(product) / (rms(left) rms(right)) ] with n = fan_in: 1/2 for independent
factors (central limit theorem), 1 for aligned ones (Everett et al. 2024, arXiv 2407.05872). An RMS is taken over all
entries of a tensor, all tokens together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from abcfx.errors import InvalidInputError
from abcfx.support.choices import choose

Norm: TypeAlias = Literal["rms", "spectral"]
Multiply: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# (z0, w0, z, w) of one layer; z is None where the input is known to be z0 still
LayerState: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]
# RMS of dz, of dw and of the products z0 dw^T, dz w0^T, dz dw^T
Products: TypeAlias = tuple[float, float, float, float, float]

_LEAST, _MOST = 1e-12, 1e12  # between these a norm can be squared in float32 without under- or overflow
_SMALLEST = 1e-300  # a mean square in float64 below this comes from zeros and underflow alone


class Measured(NamedTuple):
    """Alignment exponents of dW x0 (`alpha`), of W0 dx (`omega`), of dW dx (`u`); None for a term that is absent."""

    alpha: float | None
    omega: float | None
    u: float | None


class Moments(NamedTuple):
    """Mean squares of a product and of its two factors; averaged over ranks they are those of the joined batch."""

    product: float
    left: float
    right: float

    def alignment(self, fan_in: int) -> float | None:
        """Return log_n of the ratio of RMS, 0 for a product that vanishes, None where there is no such ratio.

        There is none where a factor is zero, where a number is not finite, and where n = 1.
        """
        if fan_in <= 1 or min(self.left, self.right) < _SMALLEST or not math.isfinite(sum(self)):
            return None
        if self.product < _SMALLEST:
            return 0.0
        return (math.log(self.product) - math.log(self.left) - math.log(self.right)) / (2 * math.log(fan_in))


def measure(
    z0: torch.Tensor,
    w0: torch.Tensor,
    z: torch.Tensor,
    w: torch.Tensor,
    fan_in: int,
    norm: Norm = "rms",
    multiply: Multiply | None = None,
) -> Measured:
    """Measure the alignment exponents of one layer between two moments of training.

    Args:
        z0: input of the layer at the first moment, (..., fan_in).
        w0: weight of the layer at the first moment, (fan_out, fan_in).
        z: input for the same samples now.
        w: weight now.
        fan_in: number of terms that one output entry sums; the base of the logarithm.
        norm: "rms", or "spectral" for the ratio |dW x| / (|dW| |x|) turned into an exponent. Both give the same
            number, because the exponent puts the norms back that the ratio divides by.
        multiply: product of input and weight where it is not a matrix product, such as `torch.nn.functional.conv2d`.
            Stacks of matrices need no `multiply`: experts (e, tokens, fan_in) and (e, fan_out, fan_in), or, for
            attention logits, queries as z and keys as w, (..., tokens, head_dim). A lookup has fan_in 1, and no
            alignment.

    Returns:
        Exponents, usually in [1/2, 1], not clipped. A term with a factor that is zero is absent (None), not 0.

    Raises:
        InvalidInputError: the shapes do not fit together, or there is no such norm.

    Example:
        >>> z0, w0 = torch.ones(4, 64), torch.zeros(8, 64)
        >>> round(measure(z0, w0, z0, w0 + 0.1, fan_in=64).alpha, 6)  # every row of the update is along the input
        1.0
    """
    choose("norm", norm, get_args(Norm))  # it is checked and nothing else: both give the same exponents
    if z0.shape != z.shape or w0.shape != w.shape or (multiply is None and fan_in > 1 and z.shape[-1] != w.shape[-1]):
        raise InvalidInputError(
            f"measure: expected z0 and z of one shape (..., fan_in), w0 and w of one shape (fan_out, fan_in); "
            f"got {tuple(z0.shape)}, {tuple(z.shape)}, {tuple(w0.shape)}, {tuple(w.shape)}."
        )
    if fan_in <= 1:
        return Measured(None, None, None)
    with torch.no_grad():
        z0, w0, z, w = map(workable, (z0, w0, z, w))
        terms = moments(rms(z0), rms(w0), products(z0, w0, z, w, multiply))
    return Measured(*(term.alignment(fan_in) for term in terms))


def moments(rms_z0: float, rms_w0: float, found: Products) -> tuple[Moments, Moments, Moments]:
    """Return the moments of z0 dw^T, of dz w0^T and of dz dw^T from the RMS of all tensors."""
    z0, w0, dz, dw, alpha, omega, u = [each * each for each in (rms_z0, rms_w0, *found)]
    return Moments(alpha, z0, dw), Moments(omega, dz, w0), Moments(u, dz, dw)


def products(
    z0: torch.Tensor, w0: torch.Tensor, z: torch.Tensor, w: torch.Tensor, multiply: Multiply | None = None
) -> Products:
    """Return the RMS of dz = z - z0, of dw = w - w0 and of the products z0 dw^T, dz w0^T, dz dw^T.

    dz and dw are divided by their RMS before they are multiplied, so that nothing over- or underflows for entries of
    z0 and w0 between 1e-36 and 1e34.
    """
    multiply = multiply or _matrix_product
    dz, dw = z - z0, w - w0
    size_z, size_w = rms(dz), rms(dw)
    unit_z, unit_w = dz / (size_z or 1.0), dw / (size_w or 1.0)
    alpha, omega, u = multiply(z0, unit_w), multiply(unit_z, w0), multiply(unit_z, unit_w)
    return size_z, size_w, rms(alpha) * size_w, rms(omega) * size_z, rms(u) * size_z * size_w


def products_of_many(layers: Sequence[LayerState]) -> list[Products]:
    """Return the `products` of every layer, moving all numbers off the device in one transfer.

    The plain float32 norms are used where they are safe; a layer whose changes are very small or very large is
    computed again by `products`.
    """
    norms = [norm for layer in layers for norm in _plain_norms(*layer)]
    flat = torch.stack(norms).tolist() if norms else []
    found: list[Products] = []
    for k, (z0, w0, z, w) in enumerate(layers):
        dz, dw, alpha, omega, u = flat[5 * k : 5 * k + 5]
        changes = (dw, alpha) if z is None else (dz, dw, alpha, omega, u)
        if min(changes) > _LEAST and max(changes) < _MOST:
            outputs = math.sqrt(w.numel() // w.shape[-1] * (z0.numel() // z0.shape[-1]) // math.prod(w.shape[:-2]))
            entries_z, entries_w = math.sqrt(z0.numel()), math.sqrt(w.numel())
            found.append((dz / entries_z, dw / entries_w, alpha / outputs, omega / outputs, u / outputs))
        else:
            found.append(products(z0, w0, z0 if z is None else z, w))
    return found


def _plain_norms(z0: torch.Tensor, w0: torch.Tensor, z: torch.Tensor | None, w: torch.Tensor) -> list[torch.Tensor]:
    """Return the norms of dz, dw and the three products in the tensors' own dtype; zeros where the input is fixed."""
    norm = torch.linalg.vector_norm
    dw = w - w0
    turned = dw.mT
    alpha = norm(z0 @ turned)
    if z is None:
        nothing = torch.zeros_like(alpha)
        return [nothing, norm(dw), alpha, nothing, nothing]
    dz = z - z0
    return [norm(dz), norm(dw), alpha, norm(dz @ w0.mT), norm(dz @ turned)]


def _matrix_product(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return z w^T of (..., fan_in) and (rows, fan_in), or of stacks with one z for each w."""
    return z @ w.mT


def workable(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor detached, in float32 or float64, in which products are summed safely."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def rms(tensor: torch.Tensor) -> float:
    """Return the RMS over all entries, in float64, where squares of float32 numbers cannot over- or underflow."""
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return float(norm) / math.sqrt(max(1, tensor.numel()))

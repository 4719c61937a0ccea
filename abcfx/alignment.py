"""Alignment exponents of one layer, measured: how far updates and activations really line up.

For y = z w^T the change since init is z0 dw^T + dz w0^T + dz dw^T. The alignment of a product is
log_n [ rms(product) / (rms(left) rms(right)) ] with n = fan_in: 1/2 for independent factors (central limit theorem), 1
for aligned ones (Everett et al. 2024, arXiv 2407.05872). RMS is over all entries of a tensor, all tokens together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from abcfx.errors import InvalidInputError

SMALLEST = 1e-300  # of a sum of squares in float64: below it is nothing but zeros and underflow


class Measured(NamedTuple):
    """Alignments of dW x0 (`alpha`), of W0 dx (`omega`), of dW dx (`u`); None for a term that is absent."""

    alpha: float | None
    omega: float | None
    u: float | None


class Moments(NamedTuple):
    """Mean squares of what an alignment is made of; their means over ranks are those of the joined batch."""

    product: float
    left: float
    right: float

    def alignment(self, fan_in: int) -> float | None:
        """log_n of the ratio of RMS; None where a factor is zero, or n is 1. An exact zero product counts as 0."""
        if fan_in <= 1 or min(self.left, self.right) < SMALLEST:
            return None
        if self.product < SMALLEST:
            return 0.0
        return (math.log(self.product) - math.log(self.left) - math.log(self.right)) / (2 * math.log(fan_in))


def measure(
    z0: torch.Tensor,
    w0: torch.Tensor,
    z: torch.Tensor,
    w: torch.Tensor,
    fan_in: int,
    norm: str = "rms",
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Measured:
    """Alignments of one layer between two moments of training.

    Args:
        z0: input of the layer at the first moment, (..., fan_in).
        w0: its weight then, (fan_out, fan_in).
        z: input of the same samples now.
        w: weight now.
        fan_in: number of terms that one output entry sums; the base of the logarithm.
        norm: "rms", or "spectral", the ratio |dW x| / (|dW| |x|) turned into an exponent: the same number, since the
            norms that it divides by are put back.
        multiply: the product of input and weight where it is none of matrices, such as a convolution.

    Returns:
        Exponents, usually in [1/2, 1], not clipped. A term whose factor is zero is absent (None), not 0.

    Raises:
        InvalidInputError: shapes that do not fit.
    """
    if norm not in ("rms", "spectral"):
        raise InvalidInputError(f"norm={norm!r}; expected 'rms' or 'spectral'.")
    if z0.shape != z.shape or w0.shape != w.shape or (multiply is None and z.shape[-1] != w.shape[-1]):
        raise InvalidInputError(
            f"measure: expected z0 and z of one shape (..., fan_in), w0 and w of one shape (fan_out, fan_in); "
            f"got {tuple(z0.shape)}, {tuple(z.shape)}, {tuple(w0.shape)}, {tuple(w.shape)}."
        )
    found = moments(z0, w0, z, w, multiply)
    return Measured(*(each.alignment(fan_in) for each in found))


def moments(
    z0: torch.Tensor,
    w0: torch.Tensor,
    z: torch.Tensor,
    w: torch.Tensor,
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> tuple[Moments, Moments, Moments]:
    """Mean squares of the three terms: z0 dw^T, dz w0^T, dz dw^T."""
    with torch.no_grad():
        z0, w0, z, w = (_workable(tensor) for tensor in (z0, w0, z, w))
        dz, dw = _Unit.of(z - z0), _Unit.of(w - w0)
        left, right = _Unit.of(z0), _Unit.of(w0)
        return _moments(left, dw, multiply), _moments(dz, right, multiply), _moments(dz, dw, multiply)


def _workable(tensor: torch.Tensor) -> torch.Tensor:
    """In a dtype in which products are summed safely."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


class _Unit(NamedTuple):
    """A tensor divided by its largest entry, so that no product over- or underflows, and that entry (0 for zeros)."""

    tensor: torch.Tensor
    size: float

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Unit:
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        return cls(tensor / largest, largest) if 0 < largest < math.inf else cls(tensor, 0.0)

    @property
    def mean_square(self) -> float:
        return _mean_square(self.tensor) * self.size**2


def _moments(x: _Unit, y: _Unit, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None) -> Moments:
    if not x.size or not y.size:
        return Moments(0.0, x.mean_square, y.mean_square)
    multiply = multiply or (lambda left, right: left.flatten(0, -2) @ right.flatten(0, -2).T)
    product = _mean_square(multiply(x.tensor, y.tensor)) * (x.size * y.size) ** 2
    return Moments(product, x.mean_square, y.mean_square)


def _mean_square(tensor: torch.Tensor) -> float:
    """In float64, whose squares of float32 numbers neither over- nor underflow."""
    return float(tensor.double().square().mean()) if tensor.numel() else 0.0

"""Alignment exponents of one layer, measured: how far updates and activations really line up.

For y = z w^T the change since init is z0 dw^T + dz w0^T + dz dw^T. The alignment of a product is
log_n [ rms(product) / (rms(left) rms(right)) ] with n = fan_in: 1/2 for independent factors (central limit theorem), 1
for aligned ones (Everett et al. 2024, arXiv 2407.05872). RMS is over all entries of a tensor, all tokens together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch

from abcfx.errors import InvalidInputError

Multiply: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Layer: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]  # z0, w0, z (None: z0), w
_LEAST, _MOST = 1e-12, 1e12  # norms whose squares float32 holds with ease
SMALLEST = 1e-300  # of a sum of squares in float64: below it is nothing but zeros and underflow


class Measured(NamedTuple):
    """Alignments of dW x0 (`alpha`), of W0 dx (`omega`), of dW dx (`u`); None for a term that is absent."""

    alpha: float | None
    omega: float | None
    u: float | None


ABSENT = Measured(None, None, None)


class Moments(NamedTuple):
    """Mean squares of what an alignment is made of; their means over ranks are those of the joined batch."""

    product: float
    left: float
    right: float

    def alignment(self, fan_in: int) -> float | None:
        """log_n of the ratio of RMS; None where a factor is zero or not finite, or n is 1. A zero product is 0."""
        if fan_in <= 1 or min(self.left, self.right) < SMALLEST or not math.isfinite(sum(self)):
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
    multiply: Multiply | None = None,
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
        multiply: the product of input and weight where it is none of matrices: `torch.nn.functional.conv2d`, say.
            Stacks of matrices need none: experts (e, tokens, fan_in) and (e, fan_out, fan_in); for attention logits,
            queries as z and keys as w, (..., tokens, head_dim). A lookup has fan_in 1, and no alignment.

    Returns:
        Exponents, usually in [1/2, 1], not clipped. A term whose factor is zero is absent (None), not 0.

    Raises:
        InvalidInputError: shapes that do not fit.
    """
    if norm not in ("rms", "spectral"):
        raise InvalidInputError(f"norm={norm!r}; expected 'rms' or 'spectral'.")
    if z0.shape != z.shape or w0.shape != w.shape or (multiply is None and fan_in > 1 and z.shape[-1] != w.shape[-1]):
        raise InvalidInputError(
            f"measure: expected z0 and z of one shape (..., fan_in), w0 and w of one shape (fan_out, fan_in); "
            f"got {tuple(z0.shape)}, {tuple(z.shape)}, {tuple(w0.shape)}, {tuple(w.shape)}."
        )
    if fan_in <= 1:
        return ABSENT
    with torch.no_grad():
        z0, w0, z, w = map(workable, (z0, w0, z, w))
        found = [rms(z0), rms(w0), *products(z0, w0, z, w, multiply)]
    return Measured(*(each.alignment(fan_in) for each in moments(found)))


def moments(found: Sequence[float]) -> tuple[Moments, Moments, Moments]:
    """Those of the three terms, out of RMS of z0, RMS of w0 and `products`."""
    z0, w0, dz, dw, alpha, omega, u = [each * each for each in found]
    return Moments(alpha, z0, dw), Moments(omega, dz, w0), Moments(u, dz, dw)


def products(
    z0: torch.Tensor, w0: torch.Tensor, z: torch.Tensor, w: torch.Tensor, multiply: Multiply | None = None
) -> tuple[float, float, float, float, float]:
    """RMS of dz = z - z0, of dw = w - w0, of the products z0 dw^T, dz w0^T, dz dw^T.

    dz and dw are divided by their RMS first, so that nothing over- or underflows for z0 and w0 of 1e-36 to 1e34.
    """
    multiply = multiply or linear
    dz, dw = z - z0, w - w0
    size_z, size_w = rms(dz), rms(dw)
    unit_z, unit_w = dz / (size_z or 1.0), dw / (size_w or 1.0)
    alpha, omega, u = multiply(z0, unit_w), multiply(unit_z, w0), multiply(unit_z, unit_w)
    return size_z, size_w, rms(alpha) * size_w, rms(omega) * size_z, rms(u) * size_z * size_w


def products_of_many(layers: Sequence[Layer]) -> list[tuple[float, ...]]:
    """`products` of every layer, with one transfer of all figures; with care only where float32 needs it."""
    norms = [norm for layer in layers for norm in _plain_norms(*layer)]
    flat = torch.stack(norms).tolist() if norms else []
    found = []
    for k, (z0, w0, z, w) in enumerate(layers):
        norms_of_layer = flat[5 * k : 5 * k + 5]
        changing = norms_of_layer if z is not None else [norms_of_layer[1], norms_of_layer[2]]
        if min(changing) > _LEAST and max(changing) < _MOST:
            rows = math.sqrt(w.numel() // w.shape[-1] * (z0.numel() // z0.shape[-1]) // _stacked(w))
            roots = (math.sqrt(z0.numel()), math.sqrt(w.numel()), rows, rows, rows)
            found.append(tuple([norm / root for norm, root in zip(norms_of_layer, roots, strict=True)]))
        else:
            found.append(products(z0, w0, z0 if z is None else z, w))
    return found


def _plain_norms(z0: torch.Tensor, w0: torch.Tensor, z: torch.Tensor | None, w: torch.Tensor) -> list[torch.Tensor]:
    """Norms of dz, dw and the three products, in the dtype that they have; zeros where dz is known to be zero."""
    norm = torch.linalg.vector_norm
    dw = w - w0
    turned = dw.mT
    alpha = norm(z0 @ turned)
    if z is None:
        nothing = torch.zeros_like(alpha)
        return [nothing, norm(dw), alpha, nothing, nothing]
    dz = z - z0
    return [norm(dz), norm(dw), alpha, norm(dz @ w0.mT), norm(dz @ turned)]


def _stacked(w: torch.Tensor) -> int:
    """How many matrices there are."""
    return math.prod(w.shape[:-2])


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x w^T of (..., fan_in) and (rows, fan_in), or of stacks of such matrices, one of x for each of w."""
    return x @ w.mT


def workable(tensor: torch.Tensor) -> torch.Tensor:
    """In a dtype in which products are summed safely."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def rms(tensor: torch.Tensor) -> float:
    """Over all entries; in float64, whose squares of float32 numbers neither over- nor underflow."""
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return float(norm) / math.sqrt(max(1, tensor.numel()))

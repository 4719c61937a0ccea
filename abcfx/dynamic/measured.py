"""Alignment exponents of one layer, measured: how far its weights and inputs, or their changes, line up.

A layer computes y = z w^T from an input z and a weight w. Since an earlier moment (z0, w0) its output has changed by z0
dw^T + dz w0^T + dz dw^T. The alignment of each of these products is log_n [ rms(product) / (rms(left) rms(right)) ]
with n = fan_in: 1/2 for independent factors (central limit theorem), 1 for aligned ones (Everett et al. 2024, arXiv
2407.05872). An RMS is taken over all entries of a tensor, all tokens together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from abcfx.errors import InvalidInputError
from abcfx.support import arguments
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
    """Alignment exponents of one layer y = W x: 1/2 for independent factors of a product, 1 for aligned ones.

    Each is None if a factor of its product is zero.

    Attributes:
        alpha: that of dW x0, the change of the weight since an earlier moment times the earlier input.
        omega: that of W0 dx, the earlier weight times the change of the input.
        u: that of dW dx, both changes.
    """

    alpha: float | None
    omega: float | None
    u: float | None


class Moments(NamedTuple):
    """Mean squares of a matrix product and of its two factors, from which an alignment exponent follows.

    In distributed training, their averages over ranks are those of the joined batch.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Attributes:
        product: mean square of the entries of the product.
        left, right: mean squares of the entries of its factors.
    """

    product: float
    left: float
    right: float

    def alignment(self, fan_in: int) -> float | None:
        """Return the exponent log_n [rms(product) / (rms(left) rms(right))] with n = `fan_in`, the terms of each sum.

        It is 1/2 for independent factors and 1 for aligned ones. For a product that vanishes 0 is returned; None if a
        factor is zero, a number is not finite, or n is 1.
        """
        if fan_in <= 1 or min(self.left, self.right) < _SMALLEST or not math.isfinite(sum(self)):
            return None
        if self.product < _SMALLEST:
            return 0.0
        return (math.log(self.product) - math.log(self.left) - math.log(self.right)) / (2 * math.log(fan_in))


@arguments.checked(
    z0=arguments.tensor(floating=False),
    w0=arguments.tensor(),
    z=arguments.tensor(floating=False),
    w=arguments.tensor(),
    fan_in=arguments.whole(),
    multiply=arguments.optional(arguments.function),
)
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

    An exponent is 1/2 if the factors of a product (change of weight times input, weight times change of input, or both
    changes) are independent, and 1 if they line up fully.

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
        Exponents `alpha` of the product dw z0, `omega` of w0 dz, `u` of dw dz (d: change between the moments), usually
        in [1/2, 1], not clipped. The exponent of a product with a factor that is zero is None, not 0.

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
    """Square the RMS values measured for one layer and sort them into three products: z0 dw^T, dz w0^T and dz dw^T.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        rms_z0: RMS of the layer's input z0 at the first moment.
        rms_w0: RMS of its weight w0 at the first moment.
        found: RMS of dz, of dw (the changes since) and of the three products, as `products` returns them.

    Returns:
        The mean squares of each product and of its two factors, for alpha, omega and u.
    """
    z0, w0, dz, dw, alpha, omega, u = [each * each for each in (rms_z0, rms_w0, *found)]
    return Moments(alpha, z0, dw), Moments(omega, dz, w0), Moments(u, dz, dw)


def products(
    z0: torch.Tensor, w0: torch.Tensor, z: torch.Tensor, w: torch.Tensor, multiply: Multiply | None = None
) -> Products:
    """Return five numbers for one layer: the RMS of dz = z - z0, of dw = w - w0, and of z0 dw^T, dz w0^T and dz dw^T.

    dz and dw are divided by their RMS before they are multiplied, so that nothing over- or underflows for entries of z0
    and w0 between 1e-36 and 1e34.

    Args:
        z0, z: input of the layer at the first moment and now, (..., fan_in).
        w0, w: weight at the first moment and now, (fan_out, fan_in).
        multiply: function of (input, weight) in place of the matrix product.
    """
    multiply = multiply or _matrix_product
    dz, dw = z - z0, w - w0
    size_z, size_w = rms(dz), rms(dw)
    unit_z, unit_w = dz / (size_z or 1.0), dw / (size_w or 1.0)
    alpha, omega, u = multiply(z0, unit_w), multiply(unit_z, w0), multiply(unit_z, unit_w)
    return size_z, size_w, rms(alpha) * size_w, rms(omega) * size_z, rms(u) * size_z * size_w


def products_of_many(layers: Sequence[LayerState]) -> list[Products]:
    """Compute what `products` returns for many layers, moving all numbers off the device in one transfer.

    Norms are taken in float32 where that is safe; a layer whose changes are very small or very large is computed again
    by `products`.

    Args:
        layers: (z0, w0, z, w) of each layer: input and weight at the first moment and now; z is None where the input
            cannot have changed.

    Returns:
        For each layer the RMS of dz, dw (changes of input and weight), z0 dw^T, dz w0^T and dz dw^T.
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
    """Return the norms of dz, dw, z0 dw^T, dz w0^T and dz dw^T of one layer, each as a tensor with one entry.

    They are computed in the dtype of the tensors. z0, w0 are input and weight at the first moment, z, w those now;
    where z is None, the input has not changed, and norms with dz are 0.
    """
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
    """Return z w^T for z (..., fan_in) and w (rows, fan_in), or matrix by matrix for stacks of both."""
    return z @ w.mT


def workable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor detached, and in float32 unless it is float32 or float64, so that sums are precise enough."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def rms(tensor: torch.Tensor) -> float:
    """Return the RMS over all entries, in float64, where squares of float32 numbers cannot over- or underflow."""
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return float(norm) / math.sqrt(max(1, tensor.numel()))

"""Finds the number by which each tensor of a filled large model should differ from the repeated
tensor of the small one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from abcfx.capture.aten import Call, Ref
from abcfx.pairing.factors import Factors, sizes
from abcfx.pairing.factors.view_ops import moves_entries
from abcfx.rules.op_properties import WRITES, keeps_factor


def expected_scales(factors: Factors, of_weights: Mapping[str, float]) -> list[float | None]:
    """Find for every tensor of a run the number s for which large tensor = s x repeated small tensor.

    The large model is filled from the small one by repeating entries of its weights and multiplying them.

    Args:
        factors: the dims of all tensors in runs of both models, as products of factors that both share.
        of_weights: that number for parameters by name, or the ratio of a number kept in a buffer; 1 for names left out.

    Returns:
        One number for each tensor of the runs, in order; None where nothing is known.
    """
    walk = _Walk(factors)
    for name, ref in (factors.large.parameters | factors.large.buffers).items():
        walk.scales[ref.index] = of_weights.get(name, 1.0)
    for one, other in zip(factors.small.calls, factors.large.calls, strict=True):
        scale = walk.scale(one, other)
        whole = other.name not in _SPECIAL  # of several results, only the first follows the inputs
        for place, ref in enumerate(other.outs):
            walk.scales.setdefault(ref.index, scale if whole or place == 0 else None)
    return [walk.scales.get(i, 1.0) for i in range(len(factors.large.shapes))]


class _Walk:
    """A walk through the calls of a run that finds by which factor each large tensor is the small one, repeated.

    Args:
        factors: the dims of all tensors in runs of both models, as products of factors that both share.

    Attributes:
        scales: the scales found so far, by the number of the tensor.
    """

    def __init__(self, factors: Factors) -> None:
        """Start a walk over a run of the small and the large model, with no scale (factor of a tensor) known."""
        self.factors = factors
        self.scales: dict[int, float | None] = {}

    def of(self, ref: Ref) -> float | None:
        """Return the scale (large tensor over repeated small tensor) of a tensor; 1 for inputs of the model."""
        return self.scales.get(ref.index, 1.0)

    def scale(self, small: Call, large: Call) -> float | None:
        """Return the scale (large tensor over repeated small tensor) of the results of a call; None if unknown.

        Args:
            small: the call in the small model.
            large: the same call in the large model.
        """
        name = large.name.removesuffix("_") or large.name
        inputs = [ref for ref in large.inputs if self._is_scaled(ref)]
        scales = [self.of(ref) for ref in inputs]
        if not inputs:
            return 1.0
        known = [scale for scale in scales if scale is not None]
        if len(known) < len(scales):
            return None
        special = _SPECIAL.get(name)
        if special is not None:
            scale = special(small, large, known)
            return None if scale is None else scale * self._sum(large, name)
        if name in ("_softmax", "_safe_softmax"):
            return 1 / self._ratio(inputs[0], large.argument("dim"))
        if name in WRITES:
            return known[-1]  # of the values written: models write into zeros
        if moves_entries(large.name) or keeps_factor(name):
            return known[0] if len(set(known)) == 1 or name != "cat" else None
        return 1.0

    def _is_scaled(self, ref: Ref) -> bool:
        """Whether a tensor is floating-point, so that it can have a scale (large tensor over repeated small one)."""
        large = self.factors.large
        return large.dtypes[ref.index].is_floating_point and 0 not in large.shapes[ref.index]

    def _sum(self, large: Call, name: str) -> float:
        """Return how many times as many terms a call in the large model sums over as the same call in the small one.

        `name` is that of the op.
        """
        if name in ("mm", "bmm", "mv", "dot", "addmm", "baddbmm"):
            factor = large.inputs[-2:]
            return self._ratio(factor[0], -1)
        if name == "convolution":
            weight = large.argument("weight")
            return self._ratio(weight, 0 if large.argument("transposed", False) else 1)
        if name in ("sum", "linalg_vector_norm"):
            takes_dims = any(each.name == "dim" for each in large.op._schema.arguments)  # x.sum() has none
            over = (large.argument("dim") if takes_dims else None) or range(len(self.factors.of(large.inputs[0])))
            over = [over] if isinstance(over, int) else over
            times = math.prod(self._ratio(large.inputs[0], dim) for dim in over)
            return times if name == "sum" else math.sqrt(times)
        return 1.0

    def _ratio(self, ref: Ref, dim: int) -> float:
        """Return the size of a dim of a tensor in the large model over that in the small one."""
        small, large = sizes(self.factors.of(ref)[dim])
        return large / small


def _numbers(call: Call) -> list[float]:
    """Return the second argument of an aten call as a list of one number; an empty list if it is no number."""
    found = [a for a in call.args[1:2] if isinstance(a, int | float) and not isinstance(a, bool)]
    return [float(number) for number in found]


def _product(small: Call, large: Call, scales: list[float]) -> float:
    """Return the scale (large tensor over repeated small one) of x * y or of a matrix product from those of x and y.

    `scales` are those of the tensors among x and y, in order. Where x or y is a number, its ratio in the two models
    counts. A longer sum in a matrix product is not counted here.
    """
    ours, theirs = _numbers(large), _numbers(small)
    by = ours[0] / theirs[0] if ours and theirs and theirs[0] else 1.0
    return math.prod(scales) * by


def _quotient(small: Call, large: Call, scales: list[float]) -> float:
    """Return the scale (large tensor over repeated small one) of x / y from those of x and y.

    `scales` are those of the tensors among x and y, in order. Where x or y is a number, its ratio in the two models
    counts.
    """
    ours, theirs = _numbers(large), _numbers(small)
    by = theirs[0] / ours[0] if ours and theirs and ours[0] else 1.0
    return (scales[0] / scales[1] if len(scales) > 1 else scales[0]) * by


def _power(small: Call, large: Call, scales: list[float]) -> float | None:
    """Return the scale (large over repeated small tensor) of x ** exponent from that of x; None if it is not known."""
    exponent = large.args[1] if len(large.args) > 1 else 2.0
    return scales[0] ** float(exponent) if isinstance(exponent, int | float) else None


Special = Callable[[Call, Call, list[float]], float | None]
"""From the call in the small model, the same in the large one, and the inputs' scales to the result's."""

_SPECIAL: dict[str, Special] = {
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    "square": lambda small, large, scales: scales[0] ** 2,
    "sqrt": lambda small, large, scales: math.sqrt(scales[0]),
    "rsqrt": lambda small, large, scales: 1 / math.sqrt(scales[0]),
    "reciprocal": lambda small, large, scales: 1 / scales[0],
    "var": lambda small, large, scales: scales[0] ** 2,
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": _product,
    "addmm": lambda small, large, scales: scales[-1] * scales[-2],
    "baddbmm": lambda small, large, scales: scales[-1] * scales[-2],
    "convolution": lambda small, large, scales: scales[0] * scales[1],
    "sum": lambda small, large, scales: scales[0],
    "linalg_vector_norm": lambda small, large, scales: scales[0],
    "clamp_min": lambda small, large, scales: scales[0],  # in F.normalize it only guards against zero
    "embedding": lambda small, large, scales: scales[0],
    "native_layer_norm": lambda small, large, scales: scales[1] if len(scales) > 1 else 1.0,
    "native_batch_norm": lambda small, large, scales: scales[1] if len(scales) > 1 else 1.0,
    "native_group_norm": lambda small, large, scales: scales[1] if len(scales) > 1 else 1.0,
    "_scaled_dot_product_flash_attention_for_cpu": lambda small, large, scales: scales[2],
    "_scaled_dot_product_attention_math": lambda small, large, scales: scales[2],
}


def fitted(small: torch.Tensor, large: torch.Tensor) -> float:
    """Return the number by which the small tensor must be multiplied to come closest to the large one."""
    ours, theirs = large.double().flatten(), small.double().flatten()
    fine = ours.isfinite() & theirs.isfinite()
    ours, theirs = ours[fine], theirs[fine]
    below = float(theirs @ theirs)
    return float(theirs @ ours) / below if below else 1.0

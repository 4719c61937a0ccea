"""By which factor every tensor of a filled large model should differ from the tiled one of the small model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from abcfx.capture.aten import Call, Ref
from abcfx.pairing.factors import Factors, sizes, view_ops
from abcfx.pairing.factors.registry import RULES

HOMOGENEOUS = frozenset({"relu", "leaky_relu", "abs", "neg", "dropout", "native_dropout", "clamp_min", "relu_", "where",
                         "amax", "amin", "max_pool2d_with_indices", "mean", "add", "sub", "rsub", "maximum", "minimum",
                         "masked_fill", "max", "min", "sort", "topk", "_to_copy", "cumsum", "lerp"})  # fmt: skip


def expected_scales(factors: Factors, of_weights: Mapping[str, float]) -> list[float | None]:
    """For every tensor of a run: large = scale x tiled small. None where nothing is known.

    Args:
        factors: dims of a paired run.
        of_weights: what every parameter was multiplied with, and by how much numbers kept in buffers differ; 1 for
            those not named.
    """
    walk = _Walk(factors)
    for name, ref in (factors.large.parameters | factors.large.buffers).items():
        walk.scales[ref.index] = of_weights.get(name, 1.0)
    for one, other in zip(factors.small.calls, factors.large.calls, strict=True):
        scale = walk.scale(one, other)
        whole = other.name not in _SPECIAL  # of a norm and of attention only the first result is one
        for place, ref in enumerate(other.outs):
            walk.scales.setdefault(ref.index, scale if whole or place == 0 else None)
    return [walk.scales.get(i, 1.0) for i in range(len(factors.large.shapes))]


class _Walk:
    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self.scales: dict[int, float | None] = {}

    def of(self, ref: Ref) -> float | None:
        return self.scales.get(ref.index, 1.0)

    def scale(self, small: Call, large: Call) -> float | None:
        """Of the results of a call."""
        name, inputs = large.name.removesuffix("_") or large.name, [ref for ref in large.inputs if self._counts(ref)]
        scales = [self.of(ref) for ref in inputs]
        if not inputs:
            return 1.0
        known = [scale for scale in scales if scale is not None]
        if len(known) < len(scales):
            return None
        special: Callable[[Call, Call, list[float]], float | None] | None = _SPECIAL.get(name)
        if special is not None:
            scale = special(small, large, known)
            return None if scale is None else scale * self._sum(large, name)
        if name in ("_softmax", "_safe_softmax"):
            return 1 / self._ratio(inputs[0], large.argument("dim"))
        if name.startswith(("scatter", "index_", "slice_scatter", "select_scatter", "masked_scatter", "copy")):
            return known[-1]  # what is written, into zeros
        moved = RULES.get(large.name)
        moves_entries = moved is not None and moved.__module__ == view_ops.__name__
        if moves_entries or name in HOMOGENEOUS:
            return known[0] if len(set(known)) == 1 or name != "cat" else None
        return 1.0

    def _counts(self, ref: Ref) -> bool:
        large = self.factors.large
        return large.dtypes[ref.index].is_floating_point and 0 not in large.shapes[ref.index]

    def _sum(self, large: Call, name: str) -> float:
        """How many times as many terms a sum has."""
        if name in ("mm", "bmm", "mv", "dot", "addmm", "baddbmm"):
            factor = large.inputs[-2:]
            return self._ratio(factor[0], -1)
        if name == "convolution":
            weight = large.argument("weight")
            return self._ratio(weight, 0 if large.argument("transposed", False) else 1)
        if name in ("sum", "linalg_vector_norm"):
            over = large.argument("dim") or range(len(self.factors.of(large.inputs[0])))
            over = [over] if isinstance(over, int) else over
            times = math.prod(self._ratio(large.inputs[0], dim) for dim in over)
            return times if name == "sum" else math.sqrt(times)
        return 1.0

    def _ratio(self, ref: Ref, dim: int) -> float:
        small, large = sizes(self.factors.of(ref)[dim])
        return large / small


def _numbers(call: Call) -> list[float]:
    found = [a for a in call.args[1:2] if isinstance(a, int | float) and not isinstance(a, bool)]
    return [float(number) for number in found]


def _product(small: Call, large: Call, scales: list[float]) -> float:
    ours, theirs = _numbers(large), _numbers(small)
    by = ours[0] / theirs[0] if ours and theirs and theirs[0] else 1.0
    return math.prod(scales) * by


def _quotient(small: Call, large: Call, scales: list[float]) -> float:
    ours, theirs = _numbers(large), _numbers(small)
    by = theirs[0] / ours[0] if ours and theirs and ours[0] else 1.0
    return (scales[0] / scales[1] if len(scales) > 1 else scales[0]) * by


def _power(small: Call, large: Call, scales: list[float]) -> float | None:
    exponent = large.args[1] if len(large.args) > 1 else 2.0
    return scales[0] ** float(exponent) if isinstance(exponent, int | float) else None


_SPECIAL: dict[str, Callable[[Call, Call, list[float]], float | None]] = {
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
    "embedding": lambda small, large, scales: scales[0],
    "native_layer_norm": lambda small, large, scales: scales[1] if len(scales) > 1 else 1.0,
    "native_batch_norm": lambda small, large, scales: scales[1] if len(scales) > 1 else 1.0,
    "native_group_norm": lambda small, large, scales: scales[1] if len(scales) > 1 else 1.0,
    "_scaled_dot_product_flash_attention_for_cpu": lambda small, large, scales: scales[2],
    "_scaled_dot_product_attention_math": lambda small, large, scales: scales[2],
}


def fitted(small: torch.Tensor, large: torch.Tensor) -> float:
    """The number by which the small tensor comes closest to the large one."""
    ours, theirs = large.double().flatten(), small.double().flatten()
    fine = ours.isfinite() & theirs.isfinite()
    ours, theirs = ours[fine], theirs[fine]
    below = float(theirs @ theirs)
    return float(theirs @ ours) / below if below else 1.0

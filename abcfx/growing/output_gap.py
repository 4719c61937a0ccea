"""Measures how far the outputs of a grown model are from those of the model that it was grown from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from abcfx.pairing.factors import Factors, sizes
from abcfx.pairing.factors.index_maps import IndexMap, tiled
from abcfx.support.running import evaluating
from abcfx.support.trees import leaves_by_path

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.1}
"""Relative to the RMS. Measured errors of right growth: 8e-15 in float64, 1e-5 in float32, 4e-2 in bfloat16."""


def tolerance(factors: Factors) -> float:
    """Return the largest difference of tensors that counts as rounding, relative to their RMS.

    It is that of the coarsest dtype in the large model's run, times sqrt(longest sum / 256) for longer sums.

    Args:
        factors: the dims of all tensors in runs of the small and the large model, as products of factors that both
            share.
    """
    dtypes = {factors.large.dtypes[ref.index] for call in factors.large.calls for ref in call.outs}
    limit = max((TOLERANCES.get(dtype, 0.1) for dtype in dtypes if dtype.is_floating_point), default=1e-4)
    sums = [sizes(factors.parameter(name)[place])[1] for name, place in factors.contracted]
    return limit * max(1.0, math.sqrt(max(sums, default=1) / 256))


def outputs_of(model: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Call a model and return every tensor of its output, by the path of the tensor in it."""
    leaves = leaves_by_path(model(*args, **kwargs))
    return {path: leaf for path, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}


def output_gap(
    small: nn.Module,
    large: nn.Module,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    dims: Sequence[Sequence[IndexMap] | None],
) -> float:
    """Call small and large model in eval mode; return the largest difference of their outputs, relative to the RMS.

    Args:
        small: the small model.
        large: the large model.
        args: positional inputs of both.
        kwargs: keyword inputs of both.
        dims: for each dim of each output, which small entry each large entry is a copy of; None for an output that is
            not compared.
    """
    with evaluating(small, large):
        return outputs_difference(outputs_of(small, args, kwargs), outputs_of(large, args, kwargs), dims)


def outputs_difference(
    small: Mapping[str, torch.Tensor],
    large: Mapping[str, torch.Tensor],
    dims: Sequence[Sequence[IndexMap] | None],
) -> float:
    """Return the largest difference of the outputs of two models, relative to the RMS of the output.

    Args:
        small: outputs of the small model, by path.
        large: outputs of the large model, by path.
        dims: for each dim of each output, which small entry each large entry is a copy of; None for an output that is
            not compared.
    """
    return max(
        (
            difference(tensor, large[path], of_output) if path in large else math.inf
            for (path, tensor), of_output in zip(small.items(), dims, strict=False)
            if of_output is not None and tensor.is_floating_point()
        ),
        default=0.0,
    )


def difference(small: torch.Tensor, large: torch.Tensor, dims: Sequence[IndexMap]) -> float:
    """Return the largest difference between a large tensor and the repeated small one, over the RMS of the latter.

    New entries of padded dims are left out. A difference that is no number counts as infinite.

    Args:
        small: the small tensor.
        large: the large tensor.
        dims: for each dim, which small entry each large entry is a copy of.
    """
    for place, dim in enumerate(dims):
        if (old := dim.old_entries) is not None:
            large = large.narrow(place, 0, old)
            dims = [*dims[:place], IndexMap.unchanged(old), *dims[place + 1 :]]
    if large.dtype in (torch.float16, torch.bfloat16):
        small, large = small.float(), large.float()
    expected = tiled(small, dims)
    if not expected.numel():
        return 0.0
    gap = (large - expected).abs()
    same = expected == large  # infinities of a mask too, whose difference is no number
    if bool(same.all()):
        return 0.0
    finite = expected[expected.isfinite()]
    if not finite.numel():
        return math.inf
    tiny = torch.finfo(finite.dtype).tiny
    largest = finite.abs().max().clamp_min(tiny)
    rms = largest * (finite / largest).pow(2).mean().sqrt()  # squares of a mask's lowest number would overflow
    worst = gap.masked_fill(same, 0.0).nan_to_num(nan=math.inf, posinf=math.inf).max()
    return float(worst / rms.clamp_min(tiny))

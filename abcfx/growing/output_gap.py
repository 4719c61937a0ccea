"""How far the outputs of a grown model are from those of the model that it was grown from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from abcfx.pairing.factors import Factors as Factored
from abcfx.pairing.factors import sizes as sized
from abcfx.pairing.factors.index_maps import Factors, padded, tiled
from abcfx.support import trees
from abcfx.support.running import evaluating as evaluating

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.1}
"""Relative to the RMS; measured errors of right growth are 8e-15, 1e-5 and 4e-2 in float64, float32 and bfloat16."""


def tolerance(factors: Factored) -> float:
    """Of a run: that of the coarsest dtype that it computes in, times the square root of the longest sum over 256."""
    dtypes = {factors.large.dtypes[ref.index] for call in factors.large.calls for ref in call.outs}
    limit = max((TOLERANCES.get(dtype, 0.1) for dtype in dtypes if dtype.is_floating_point), default=1e-4)
    sums = [sized(factors.parameter(name)[place])[1] for name, place in factors.contracted]
    return limit * max(1.0, math.sqrt(max(sums, default=1) / 256))


def outputs_of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor that the model returns, by its place in the output."""
    leaves = trees.leaves_by_path(model(*args, **kwargs))
    return {path: leaf for path, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}


def output_gap(
    small: nn.Module,
    large: nn.Module,
    small_call: tuple[Sequence[Any], Mapping[str, Any]],
    large_call: tuple[Sequence[Any], Mapping[str, Any]],
    dims: Sequence[Sequence[Factors] | None],
) -> float:
    """Largest difference of the outputs of both models in eval mode, relative to their RMS.

    Args:
        small_call, large_call: (args, kwargs) of each; a model may write into its inputs.
        dims: factors of the dims of each output; None for those that are not compared.
    """
    with evaluating(small, large):
        theirs, ours = outputs_of(small, *small_call), outputs_of(large, *large_call)
    return max(
        (
            difference(tensor, ours[path], of_output)
            for (path, tensor), of_output in zip(theirs.items(), dims, strict=False)
            if of_output is not None and tensor.is_floating_point()
        ),
        default=0.0,
    )


def difference(small: torch.Tensor, large: torch.Tensor, dims: Sequence[Factors]) -> float:
    """Largest difference between the large tensor and the tiled small one, over the RMS of the latter.

    New entries of padded dims do not count.
    """
    for place, factors in enumerate(dims):
        if (old := padded(factors)) is not None:
            large = large.narrow(place, 0, old)
            dims = [*dims[:place], [[old, old]], *dims[place + 1 :]]
    if large.dtype in (torch.float16, torch.bfloat16):
        small, large = small.float(), large.float()
    expected = tiled(small, dims)
    if not expected.numel():
        return 0.0
    gap = (large - expected).abs()
    same = expected == large  # infinite masks too
    if bool(same.all()):
        return 0.0
    rms = expected[expected.isfinite()].pow(2).mean().sqrt()
    worst = gap.masked_fill(same, 0.0).nan_to_num(nan=math.inf, posinf=math.inf).max()
    return float(worst / rms.clamp_min(torch.finfo(rms.dtype).tiny)) if rms.isfinite() else math.inf

"""The small and the large model run side by side on real inputs, tensor compared with tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from abcfx.capture.aten import Ref
from abcfx.growing.expected_scales import expected_scales, fitted
from abcfx.growing.fill.width import multiplier
from abcfx.growing.output_gap import difference, evaluating
from abcfx.growing.plan import GrowthPlan, padded_atoms, with_pads
from abcfx.pairing.factors import Factors, factor, trace
from abcfx.pairing.factors.atoms import plain_atoms
from abcfx.pairing.factors.index_maps import tiled


@dataclass(frozen=True)
class Compared:
    """One tensor of the large run against the tiled one of the small run.

    `ratio`: by which number they fit best. `expected`: by which they should. `error`: largest difference from the
    expected, over its RMS.
    """

    call: int
    name: str
    path: str
    ratio: float
    expected: float
    error: float


class Runs:
    """A run of both in eval mode; the large model has as many blocks as the small one."""

    def __init__(
        self, plan: GrowthPlan, small: nn.Module, large: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        with evaluating(small, large):
            traces = [trace(model, args, kwargs, values=True) for model in (small, large)]
        self.factors: Factors = factor(*traces)
        by = {name: multiplier(widening) for name, widening in plan.widenings.items()}
        means = {name: float(each.mean()) if isinstance(each, torch.Tensor) else each for name, each in by.items()}
        self.scales = expected_scales(self.factors, means | _numbers(small, large))
        self._unfollowed = {id(atom) for dim in self.factors.unfollowed for atom in plain_atoms(dim)}
        self._padded = {id(atom) for atom in padded_atoms(self.factors)}

    def values(self, call: int) -> Iterator[tuple[Ref, torch.Tensor, torch.Tensor]]:
        """(tensor, small, large) of the floating results of a call that are not computed from weights alone."""
        ours, theirs = self.factors.large.values, self.factors.small.values
        assert ours is not None and theirs is not None
        refs = self.factors.large.calls[call].outs
        for ref, large, small in zip(refs, ours[call], theirs[call], strict=True):
            if large is not None and small is not None and large.is_floating_point() and large.numel():
                yield ref, small, large

    def dims(self, ref: Ref) -> list[Any]:
        """Factors of the dims of a tensor."""
        return [with_pads(dim, self._padded) for dim in self.factors.of(ref)]

    def _is_skipped(self, ref: Ref) -> bool:
        """Weights that data chose, and what grows otherwise than by tiling."""
        dims = self.factors.of(ref)
        lost = any(id(atom) in self._unfollowed for dim in dims for atom in plain_atoms(dim))
        return lost or any(leg.origin for dim in dims for leg in dim)

    def compared(self) -> Iterator[Compared]:
        """Every tensor in the order of the run."""
        for index, call in enumerate(self.factors.large.calls):
            for ref, small, large in self.values(index):
                expected = self.scales[ref.index]
                if expected is None or self._is_skipped(ref) or call.name.startswith(("empty", "new_empty")):
                    continue
                dims = self.dims(ref)
                error = difference(small * expected, large, dims)
                ratio = fitted(tiled(small, dims), large) if large.shape == tiled(small, dims).shape else 1.0
                yield Compared(index, call.name, call.path, ratio, expected, error)


def _numbers(small: nn.Module, large: nn.Module) -> dict[str, float]:
    """Ratio of the numbers that both models keep in buffers of one entry, such as sqrt(width)."""
    theirs = {name: float(b) for name, b in small.named_buffers() if b.numel() == 1 and b.is_floating_point()}
    ours = {name: float(b) for name, b in large.named_buffers() if name in theirs and b.numel() == 1}
    return {name: number / theirs[name] for name, number in ours.items() if number * theirs[name] > 0}

"""Runs the small and the large model side by side on real inputs, and compares them tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.capture.aten import Ref, trace
from abcfx.growing.expected_scales import expected_scales, fitted
from abcfx.growing.fill.width import mean_multiplier
from abcfx.growing.output_gap import difference
from abcfx.growing.plan import GrowthPlan, padded_atoms, padded_index_map
from abcfx.pairing.factors import Factors, factor
from abcfx.pairing.factors.atoms import plain_atoms
from abcfx.pairing.factors.index_maps import IndexMap, tiled
from abcfx.support.running import evaluating

_UNSET = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})


@dataclass(frozen=True)
class Compared:
    """A tensor of the large model's run, compared with the small model's tensor of which it should be the repetition.

    Attributes:
        call: index of the call that returns the tensor.
        name: name of the op.
        path: module path of the call.
        ratio: number by which the repeated small tensor comes closest to the large one.
        expected: number by which it should be multiplied.
        error: largest difference from the expected tensor, over its RMS.
    """

    call: int
    name: str
    path: str
    ratio: float
    expected: float
    error: float


def run_and_factor(small: nn.Module, large: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> Factors:
    """Run a small and a large model, keep all tensors, and write every dim as a product of factors.

    An example is heads x head_dim, of which heads may grow.

    Args:
        small: the small model.
        large: the large model, with as many blocks.
        args: positional inputs of both.
        kwargs: keyword inputs of both.

    Raises:
        PairingError: the models do not make the same calls.
    """
    with evaluating(small, large):
        traces = [trace(model, args, kwargs, values=True) for model in (small, large)]
    return factor(*traces)


class Runs:
    """The runs of a small and a large model on real inputs, with the number that relates each pair of tensors.

    Args:
        plan: the plan of the growth; its runs have kept all tensors.
        small: the small model.
        large: the large model, with as many blocks.
    """

    def __init__(self, plan: GrowthPlan, small: nn.Module, large: nn.Module) -> None:
        """Find for each tensor of two runs the number by which the large model's is the small one's, repeated."""
        self.factors = plan.factors
        of_weights = {name: mean_multiplier(widening) for name, widening in plan.widenings.items()}
        self.scales = expected_scales(self.factors, of_weights | _ratios_of_numbers(small, large))
        self._unfollowed = {id(atom) for dim in self.factors.unfollowed for atom in plain_atoms(dim)}
        self._padded = {id(atom) for atom in padded_atoms(self.factors)}

    def values(self, call: int) -> Iterator[tuple[Ref, torch.Tensor, torch.Tensor]]:
        """Yield (number of the tensor, its value in the small model, in the large one) for each result of a call.

        Tensors that are not floating-point, or are computed from weights alone, are left out.
        """
        ours, theirs = self.factors.large.values, self.factors.small.values
        assert ours is not None and theirs is not None
        refs = self.factors.large.calls[call].outs
        for ref, large, small in zip(refs, ours[call], theirs[call], strict=True):
            if large is not None and small is not None and large.is_floating_point() and large.numel():
                yield ref, small, large

    def dims(self, ref: Ref) -> list[IndexMap]:
        """Return for each dim of a tensor which small model's entry each entry of the large model's is a copy of."""
        return [padded_index_map(dim, self._padded) for dim in self.factors.of(ref)]

    def compared(self) -> Iterator[Compared]:
        """Yield, in order, the comparison of each tensor of the large model's run with that of the small model."""
        for index, call in enumerate(self.factors.large.calls):
            for ref, small, large in self.values(index):
                expected = self.scales[ref.index]
                if expected is None or self._is_skipped(ref) or call.name in _UNSET:
                    continue
                dims = self.dims(ref)
                error = difference(small * expected, large, dims)
                copied = tiled(small, dims)
                ratio = fitted(copied, large) if large.shape == copied.shape else 1.0
                yield Compared(index, call.name, call.path, ratio, expected, error)

    def _is_skipped(self, ref: Ref) -> bool:
        """Whether a tensor cannot be compared between the models: it holds rows of weights, or may have no copies."""
        dims = self.factors.of(ref)
        lost = any(id(atom) in self._unfollowed for dim in dims for atom in plain_atoms(dim))
        return lost or any(use.origin for dim in dims for use in dim)


def _ratios_of_numbers(small: nn.Module, large: nn.Module) -> dict[str, float]:
    """Return the ratio of each number that small and large model keep in a buffer of one entry, such as sqrt(width)."""
    theirs = {name: float(b) for name, b in small.named_buffers() if b.numel() == 1 and b.is_floating_point()}
    ours = {name: float(b) for name, b in large.named_buffers() if name in theirs and b.numel() == 1}
    return {name: number / theirs[name] for name, number in ours.items() if number * theirs[name] > 0}

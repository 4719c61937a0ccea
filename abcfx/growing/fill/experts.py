"""Fills the experts of a mixture with copies of a dense MLP's matrices, from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


def _interleaved(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return matrices interleaved row by row: the first rows of all, then the second rows, ..."""
    return torch.stack(list(parts), 1).flatten(0, 1)


LAYOUTS: dict[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]] = {
    "as it is": lambda parts: parts[0],
    "transposed": lambda parts: parts[0].T,
    "one behind another": lambda parts: torch.cat(list(parts)),
    "one behind another, transposed": lambda parts: torch.cat(list(parts)).T,
    "row by row": _interleaved,
    "row by row, transposed": lambda parts: _interleaved(parts).T,
}
"""Ways to make an expert's tensor of dense matrices, whose rows are outputs, as in nn.Linear."""
TRANSPOSED = frozenset({"transposed", "one behind another, transposed", "row by row, transposed"})
OF_ONE = frozenset({"as it is", "transposed"})
"""Layouts of a single matrix; the others take two."""


@dataclass(frozen=True)
class Filling:
    """A recipe for the tensor of one kind of expert weight, made of matrices of a dense MLP.

    Attributes:
        sources: names of the dense tensors that it is made of.
        layout: how they are put together, such as "transposed" or "row by row"; a key of LAYOUTS.
        stacked: whether all experts are in one tensor, along its first dim.
    """

    sources: tuple[str, ...]
    layout: str
    stacked: bool

    def expert(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Make one expert's tensor from the dense model's tensors, as the recipe says."""
        return LAYOUTS[self.layout]([tensors[name] for name in self.sources])


def fill_experts(
    mixture: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    plan: Mapping[str, Filling],
    noise: float = 0.0,
    seed: int = 0,
) -> None:
    """Write a copy of the dense MLP into every expert of a mixture of experts.

    Args:
        mixture: the model that is filled, in place.
        tensors: the dense model's parameters.
        plan: for each tensor of experts by name, of which dense matrices it is made.
        noise: standard deviation of normal noise on each expert, relative to the RMS of the tensor. It changes the
            function, unlike the zero-sum noise of `widen`.
        seed: seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(mixture.named_parameters())
    with torch.no_grad():
        for name, filling in plan.items():
            target = parameters[name]
            one = filling.expert(tensors)
            whole = one.expand(target.shape) if filling.stacked else one
            target.copy_(whole)
            if noise and target.ndim > 1:
                drawn = torch.randn(target.shape, generator=generator, dtype=torch.float64)
                target.add_((noise * one.double().pow(2).mean().sqrt() * drawn.to(one.device)).to(target.dtype))

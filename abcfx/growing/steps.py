"""The passes of a growth as plain data: what each did to every tensor, and how far the outputs were off afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from abcfx.growing.fill.experts import Filling
from abcfx.growing.fill.width import Widening
from abcfx.pairing.factors.index_maps import Json


@dataclass(frozen=True, kw_only=True)
class GrowthStep(ABC):
    """A pass of a growth, which fills a large model from a small one: what it did, and how far outputs are off.

    Passes are widening, deepening and filling experts.

    Attributes:
        name: name of the pass.
        difference: largest difference of the outputs after the pass, relative to their RMS.
        kept: whether the function was kept.
        notes: remarks for the report.
    """

    name: ClassVar[str]
    difference: float
    kept: bool = True
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def data(self) -> dict[str, Json]:
        """Plain data from which this pass of a growth (filling a large model from a small one) could be repeated."""


@dataclass(frozen=True, kw_only=True)
class Widened(GrowthStep):
    """The pass that fills the tensors of a wider model with copies of the small model's entries.

    Attributes:
        tensors: for each tensor, which entries were copied where, and what they were multiplied by.
        noise: standard deviation of the zero-sum noise, relative to the RMS of each weight.
        noised: names of the parameters that got noise.
        seed: seed of the noise.
    """

    name: ClassVar[str] = "widen"
    tensors: Mapping[str, Widening]
    noise: float
    noised: tuple[str, ...]
    seed: int

    @property
    def data(self) -> dict[str, Json]:
        """Plain data from which the widening could be repeated."""
        tensors = {name: each.to_json() for name, each in self.tensors.items()}
        return {"tensors": tensors, "noise": self.noise, "noised": list(self.noised), "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Deepened(GrowthStep):
    """The pass that fills new blocks of a deeper model with copies of trained ones.

    Attributes:
        copies: path of a new block -> path of the block that it is a copy of.
        zeroed: names of the parameters that were set to zero.
    """

    name: ClassVar[str] = "deepen"
    copies: Mapping[str, str]
    zeroed: tuple[str, ...]

    @property
    def data(self) -> dict[str, Json]:
        """Plain data from which the deepening could be repeated."""
        return {"copies": dict(self.copies), "zeroed": list(self.zeroed)}


@dataclass(frozen=True, kw_only=True)
class Upcycled(GrowthStep):
    """The pass that fills the experts of a mixture with copies of a dense model's matrices.

    Attributes:
        fillings: for each tensor of experts by name, of which dense matrices it is made, and how.
        noise: standard deviation of the noise on each expert, relative to the RMS of the tensor.
    """

    name: ClassVar[str] = "upcycle"
    fillings: Mapping[str, Filling]
    noise: float

    @property
    def data(self) -> dict[str, Json]:
        """Plain data from which the filling of the experts could be repeated."""
        tensors = {name: {"sources": list(each.sources), "layout": each.layout} for name, each in self.fillings.items()}
        return {"tensors": tensors, "noise": self.noise}

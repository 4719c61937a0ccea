"""The growth exponent of every dim, from the sizes in base and target.

The width ratio m is the largest ratio of a size in the target to the same size in the base. The growth exponent of a
dim is log(ratio) / log(m), so a model that grows uniformly has exponents 0 and 1. Numbers that stand in the graph, such
as 1 / sqrt(head_dim), get an exponent in the same way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property

import torch

from abcfx.capture import CapturedGraph
from abcfx.errors import InvalidInputError, PairingError
from abcfx.pairing.blocks import NO_BLOCKS, Blocks, pair_parameters
from abcfx.pairing.factors import Dim as FactoredDim
from abcfx.pairing.factors import Factors, has_segments, largest_ratio
from abcfx.pairing.graph_numbers import value_of
from abcfx.pairing.graphs import pair_graphs
from abcfx.pairing.row_parts import as_in_target, narrowing_ratio, row_parts
from abcfx.rules import Number
from abcfx.rules.extents import (
    ConstantTensor,
    Dim,
    DimPart,
    Extent,
    InGraph,
    ModuleAttribute,
    ParameterDim,
    ScalarArgument,
    TensorDim,
    WidthScale,
)
from abcfx.rules.values import UNKNOWN_SIZE, shape_of
from abcfx.support.location import location


class WidthGrowth(ABC):
    """The growth of a model's dims and numbers with width: each grows like m^e, with its own growth exponent e.

    Attributes:
        width_ratio: the number m: the largest ratio of a size in the model (the target) to that in its base; 1 without
            a base.
        has_base: whether the exponents come from a comparison with a base, the same model at another width.
        blocks: which numbered block of the base stands for each block of the target.
        base_parameters: the base's tensor for each parameter, where there is a base.
        notes: sentences for the report.
    """

    width_ratio: float
    has_base: bool
    blocks: Blocks = NO_BLOCKS
    base_parameters: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()

    @abstractmethod
    def dim(self, dim: Dim) -> float:
        """Return the growth exponent e of one dim: its size grows as m^e, where m is the width ratio."""

    @abstractmethod
    def scalar(self, scalar: InGraph) -> float:
        """Return the growth exponent e of a Python number in the graph: it grows as m^e, where m is the width ratio."""

    def dims(self, *dims: Extent) -> float:
        """Return the growth exponent of the product of several dims' sizes: the sum of their exponents."""
        return sum(self.number(d) if isinstance(d, Number) else self.dim(d) for d in dims)

    def number(self, number: Number) -> float:
        """Return the growth exponent e of a product of powers of sizes: it grows as m^e, where m is the width ratio."""
        return sum(
            power * (self.dim(what) if isinstance(what, ParameterDim | TensorDim | DimPart) else self.scalar(what))
            for what, power in number.powers
        )

    def narrowing(self, fan_in: tuple[Dim, ...], fan_out: tuple[Dim, ...]) -> float:
        """Return e such that fan_out / fan_in of a weight, at most 1, shrinks like m^-e (m, the width ratio)."""
        return max(0.0, self.dims(*fan_in) - self.dims(*fan_out))

    def row_parts(self, dim: Dim) -> tuple[DimPart, ...]:
        """Return the parts of a weight's dim, if they grow differently, as rows of a fused layer do; else ()."""
        return ()

    def is_known(self, number: Number) -> bool:
        """Whether the value of a number in the graph could be read; if not, it counts as constant."""
        return True

    def parameter(self, name: str, shape: tuple[int, ...]) -> tuple[float, ...]:
        """Return the growth exponent e of each dim of a parameter: the dim grows as m^e, m the width ratio."""
        return tuple(self.dim(ParameterDim(name, i)) for i in range(len(shape)))


class SizeGrowth(WidthGrowth):
    """Growth exponents of dims, read off the sizes of parameters alone, in a model (target) and its smaller base.

    Args:
        target: parameters of the target by name.
        base: the base's parameter for each of them.
    """

    has_base = True

    def __init__(self, target: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> None:
        """Compare the sizes of all parameters in a model and its smaller base, and find the ratio of their widths."""
        self.base_parameters = base
        self.sizes = {name: tuple(zip(base[name].shape, tensor.shape, strict=True)) for name, tensor in target.items()}
        self._fixed: frozenset[tuple[int, int]] = frozenset()
        self._segments: Mapping[str, tuple[DimPart, ...]] = {}
        self.width_ratio = self._largest_ratio()

    def with_fixed(self, fixed: frozenset[tuple[int, int]], notes: tuple[str, ...]) -> SizeGrowth:
        """Return a copy in which some pairs of sizes, (in the smaller base, in the model), count as no growth.

        Args:
            fixed: the pairs of sizes.
            notes: sentences for the report on why.
        """
        if not fixed and not notes:
            return self
        other = copy(self)
        other._fixed, other.notes = fixed, self.notes + notes
        other.width_ratio = other._largest_ratio()
        return other

    def with_segments(self, segments: Mapping[str, tuple[DimPart, ...]]) -> SizeGrowth:
        """Return a copy in which the dims of the weights in `segments` grow as their fastest-growing columns do."""
        if not segments:
            return self
        other = copy(self)
        other._segments = segments
        return other

    def _largest_ratio(self) -> float:
        """Return the width ratio m: the size in the model over that in its smaller base that is furthest from 1."""
        ratios = [self._ratio(*sizes) for of_dims in self.sizes.values() for sizes in of_dims]
        return max(ratios, key=lambda ratio: abs(math.log(ratio)), default=1.0)

    def _ratio(self, base_size: int, size: int) -> float:
        """Return the ratio of a size in the model to that in its smaller base; 1 for sizes that count as no growth."""
        return 1.0 if not base_size or (base_size, size) in self._fixed else size / base_size

    def _exponent(self, ratio: float) -> float:
        """Return the growth exponent e of a ratio of sizes, m^e, where m is the width ratio."""
        return 0.0 if ratio == 1.0 else math.log(ratio) / math.log(self.width_ratio)

    def dim(self, dim: Dim) -> float:
        """Return the growth exponent e of a parameter's dim, which grows as m^e (m, the width ratio); 0 for others."""
        if isinstance(dim, DimPart):
            return self._exponent(self._ratio(dim.base_size, dim.size))
        if not isinstance(dim, ParameterDim):
            return 0.0
        if parts := [part for part in self._segments.get(dim.parameter, ()) if part.whole == dim]:
            return max(map(self.dim, parts))
        return self._exponent(self._ratio(*self.sizes[dim.parameter][dim.index]))

    def narrowing(self, fan_in: tuple[Dim, ...], fan_out: tuple[Dim, ...]) -> float:
        """Return e for a layer: 0 where it has more outputs than inputs in both models, and where sizes are unknown."""
        ratio = narrowing_ratio(fan_in, fan_out, as_in_target(self.sizes, self._fixed))
        return 0.0 if ratio is None else min(super().narrowing(fan_in, fan_out), self._exponent(ratio))

    def scalar(self, scalar: InGraph) -> float:
        """Return 0, the growth exponent of a constant: sizes of parameters say nothing about numbers in the graph."""
        return 0.0


class PairedGrowth(SizeGrowth):
    """Growth exponents from graphs of a model and its smaller base: by the ratios of their sizes and numbers.

    Args:
        target: the model that is analysed, with its graphs.
        base: the model that it is compared with, with its graphs.
        blocks: which block of the base stands for each block of the target.
        factors: finds, where it is needed, the factors of all dims (heads x head_dim) in a run of both models.
    """

    def __init__(
        self, target: CapturedGraph, base: CapturedGraph, blocks: Blocks, factors: Callable[[], Factors]
    ) -> None:
        """Walk the graphs of a model (target) and its smaller base side by side, to pair their nodes.

        `blocks` says which block of the base stands for each of the target. `factors` finds the factors of all dims
        (heads x head_dim) when they are needed.
        """
        ours, theirs = (dict(each.model.named_parameters()) for each in (target, base))
        self.blocks = blocks
        super().__init__(ours, pair_parameters(ours, theirs, blocks))
        self.nodes = pair_graphs(target, base, blocks)
        self._captured = target, base
        self._find_factors = factors

    def _both(self, scalar: ScalarArgument | ModuleAttribute | ConstantTensor) -> tuple[object, object]:
        """Return the two values of a number in the graph: in the model, and in its smaller base."""
        ours, theirs = (each.module for each in self._captured)
        value = value_of(ours, scalar.node, scalar)
        twin = self.nodes.twins.get(scalar.node)  # the base may have a constant in place of a computed number
        return value, value if twin is None else value_of(theirs, twin, scalar)

    @cached_property
    def _factors(self) -> Factors | None:
        """All dims split into factors that grow with the width or stay; None if no dim has to be split.

        That is so if each dim as a whole grows like the width ratio or stays. It is None, too, if runs of the two
        models do not tell the factors.
        """
        exponents = {self._exponent(self._ratio(*sizes)) for of_dims in self.sizes.values() for sizes in of_dims}
        if not exponents - {0.0, 1.0} or self._captured[0].args is None:
            return None
        try:
            return self._find_factors()
        except PairingError as error:
            self.notes += (f"fused rows that grow in part count with the ratio of their sizes: {error}",)
            return None

    def _factors_of(self, dim: ParameterDim) -> FactoredDim | None:
        """Return a parameter's dim as factors, if they are known and no product sums over the dim; else None."""
        name, factors = self.blocks.twin(dim.parameter), self._factors
        if factors is None or (name, dim.index) in factors.contracted or name not in factors.large.parameters:
            return None
        return factors.parameter(name)[dim.index]

    def _rows(self, dim: ParameterDim) -> float | None:
        """Return the growth exponent of the fastest-growing part of the rows of a fused weight; None for one part."""
        of_dim = self._factors_of(dim)
        return None if of_dim is None or not has_segments(of_dim) else self._exponent(float(largest_ratio(of_dim)))

    def row_parts(self, dim: Dim) -> tuple[DimPart, ...]:
        """Return the parts of a fused weight's rows, if some grow with the width and others do not; () for others."""
        if not isinstance(dim, ParameterDim) or super().dim(dim) in (0.0, 1.0):
            return ()
        of_dim = self._factors_of(dim)
        return () if of_dim is None else row_parts(dim, of_dim)

    def dim(self, dim: Dim) -> float:
        """Return the growth exponent e of a dim, which grows as m^e (m, the width ratio), by its size in the base.

        The base is the smaller model that is compared with.

        Raises:
            InvalidInputError: the dim is one of an activation whose shape is not known.
        """
        if isinstance(dim, ParameterDim | DimPart):
            whole = super().dim(dim)
            rows = self._rows(dim) if isinstance(dim, ParameterDim) and whole not in (0.0, 1.0) else None
            return whole if rows is None else rows
        if self.width_ratio == 1.0:
            return 0.0
        sizes, base_sizes = shape_of(dim.node), self.nodes.base_shape(dim.node)
        if sizes is None or base_sizes is None:
            raise InvalidInputError(
                f"How a dim grows cannot be read off without shapes: dim {dim.index} of {location(dim.node)}.\n"
                f"  expected: example inputs, so that base and target can be compared; got none.\n"
                f"  To fix: abcfx.transform(model, (inputs,), base=...)"
            )
        size, base_size = sizes[dim.index], base_sizes[dim.index]
        return 0.0 if UNKNOWN_SIZE in (size, base_size) else self._exponent(self._ratio(base_size, size))

    def scalar(self, scalar: InGraph) -> float:
        """Return the growth exponent e of a number in the graph, which grows as m^e, by its value in the base.

        m is the width ratio, the base the smaller model that is compared with.

        Raises:
            PairingError: the number changes sign or vanishes between base and target.
        """
        if isinstance(scalar, WidthScale):
            return 1.0
        value, base_value = self._both(scalar)
        if value == base_value or not isinstance(value, int | float) or not isinstance(base_value, int | float):
            return 0.0
        if value * base_value <= 0:
            if isinstance(scalar, ConstantTensor):  # a mask, an offset
                return 0.0
            raise PairingError(
                f"A number changes sign or vanishes between base and target: {base_value} -> {value} in "
                f"{location(scalar.node)}; such a change is no power of width."
            )
        found = self._exponent(value / base_value)
        if isinstance(scalar, ConstantTensor):  # sqrt(d) in bfloat16 has three digits
            quarter = round(4 * found) / 4
            rounding = 2 * torch.finfo(torch.bfloat16).eps / abs(math.log(self.width_ratio))
            return quarter if abs(found - quarter) < rounding else found
        return found

    def is_known(self, number: Number) -> bool:
        """Whether the constants in a number, such as a tensor sqrt(width), could be read in both graphs."""
        constants = [what for what, _ in number.powers if isinstance(what, ConstantTensor)]
        return all(value is not None for what in constants for value in self._both(what))

"""Dims of parameters and tensors, and numbers in a graph: what may change with width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.fx as fx


@dataclass(frozen=True)
class ParameterDim:
    """A dim of a parameter, given by the parameter's name and the index of the dim: 0 for the rows of a matrix."""

    parameter: str
    index: int


@dataclass(frozen=True)
class TensorDim:
    """A dim of the tensor that an fx node returns, by its index."""

    node: fx.Node
    index: int


@dataclass(frozen=True)
class DimPart:
    """A part of a dim of a weight: the columns that meet one of several concatenated tensors.

    Attributes:
        parameter: name of the weight.
        index: index of its dim.
        start: the first of the columns in the model.
        size: how many they are in the model.
        base_start: the first of them in the base.
        base_size: how many they are in the base.
    """

    parameter: str
    index: int
    start: int
    size: int
    base_start: int
    base_size: int

    @property
    def grows(self) -> bool:
        """Whether the base has fewer, or more, of these columns than the model."""
        return self.size != self.base_size

    @property
    def whole(self) -> ParameterDim:
        """The whole dim of the weight that these columns are a part of."""
        return ParameterDim(self.parameter, self.index)

    def __str__(self) -> str:
        """Return the columns as Python slices them, such as `0:60`."""
        return f"{self.start}:{self.start + self.size}"


Dim = ParameterDim | TensorDim | DimPart


def whole_dims(dims: tuple[Dim, ...]) -> tuple[ParameterDim | TensorDim, ...]:
    """Return dims with each part of a dim replaced by the dim that it is a part of."""
    return tuple(dim.whole if isinstance(dim, DimPart) else dim for dim in dims)


class ScalarArgument(NamedTuple):
    """A Python number among the arguments of an fx node; `key` is a position or a keyword."""

    node: fx.Node
    key: int | str


class ModuleAttribute(NamedTuple):
    """A Python number that a module, called at an fx node, holds as its attribute `key`, a dotted name."""

    node: fx.Node
    key: str


class ConstantTensor(NamedTuple):
    """A tensor of one number that depends on no input and no parameter, as torch.sqrt(torch.tensor(head_dim)) does."""

    node: fx.Node


class WidthScale(NamedTuple):
    """The width ratio m itself: width over base width."""


InGraph = ScalarArgument | ModuleAttribute | ConstantTensor | WidthScale


@dataclass(frozen=True)
class Number:
    """A number that may change with width: a product of powers of dim sizes and of numbers in the graph.

    Attributes:
        powers: pairs of a factor and the power that it is taken to; empty for a number that width does not change.
    """

    powers: tuple[tuple[Dim | InGraph, float], ...] = ()

    def power(self, exponent: float) -> Number:
        """Return this number raised to the power `exponent`."""
        return Number(tuple((factor, power * exponent) for factor, power in self.powers))

    def times(self, other: Number) -> Number:
        """Return the product of this number and another one, both products of powers of dim sizes."""
        return Number(self.powers + other.powers)


Extent = Dim | Number
"""The range of a sum: a dim, or a count that only a module or an argument knows."""

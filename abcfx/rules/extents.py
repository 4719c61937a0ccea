"""What may change with width: dims of parameters and tensors, and numbers in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.fx as fx


@dataclass(frozen=True)
class ParameterDim:
    """Dim `index` of the parameter called `parameter`."""

    parameter: str
    index: int


@dataclass(frozen=True)
class TensorDim:
    """Dim `index` of the tensor that an fx node returns."""

    node: fx.Node
    index: int


Dim = ParameterDim | TensorDim


class ScalarArgument(NamedTuple):
    """A Python number among the arguments of an fx node; `key` is a position or a keyword."""

    node: fx.Node
    key: int | str


class ModuleAttribute(NamedTuple):
    """A Python number that the module called at an fx node has under the dotted name `key`."""

    node: fx.Node
    key: str


class ConstantTensor(NamedTuple):
    """A tensor of one number that does not depend on inputs and parameters, as torch.sqrt(torch.tensor(head_dim))."""

    node: fx.Node


class WidthScale(NamedTuple):
    """The scale m itself: width over base width."""


InGraph = ScalarArgument | ModuleAttribute | ConstantTensor | WidthScale


@dataclass(frozen=True)
class Number:
    """A number that may change with width: a product of powers of dim sizes and of numbers in the graph."""

    powers: tuple[tuple[Dim | InGraph, float], ...] = ()

    def power(self, exponent: float) -> Number:
        return Number(tuple((what, power * exponent) for what, power in self.powers))

    def times(self, other: Number) -> Number:
        return Number(self.powers + other.powers)


Extent = Dim | Number  # what a sum runs over: a dim, or a count that only a module knows

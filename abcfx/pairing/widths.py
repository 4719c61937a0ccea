"""The growth exponent of every dim: from the sizes in base and target, or, without a base, from the structure.

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
from operator import attrgetter
from typing import Any

import torch
import torch.fx as fx

from abcfx.capture import CapturedGraph
from abcfx.dag.generators import generators
from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import InvalidInputError, PairingError
from abcfx.pairing.blocks import NO_BLOCKS, Blocks, pair_parameters
from abcfx.pairing.factors import Factors, has_segments, largest_ratio
from abcfx.pairing.graphs import pair_graphs
from abcfx.rules import Layer, Number, Vector
from abcfx.rules.extents import (
    ConstantTensor,
    Dim,
    Extent,
    InGraph,
    ModuleAttribute,
    ParameterDim,
    ScalarArgument,
    TensorDim,
    WidthScale,
)
from abcfx.rules.registry import plain_name
from abcfx.rules.values import UNKNOWN_SIZE, shape_of
from abcfx.support.location import location

CASTS = frozenset({"to", "type", "type_as", "float", "double", "half", "bfloat16", "to_copy"})


class WidthGrowth(ABC):
    """The power of the width ratio m with which each dim and each number of a model grows.

    Attributes:
        width_ratio: the number m that the exponents are powers of.
        has_base: whether they come from a comparison with a base.
        blocks: which block of the base stands for each block of the target.
        base_parameters: the base's tensor for each parameter, where there is a base.
        notes: what the report should say.
    """

    width_ratio: float
    has_base: bool
    blocks: Blocks = NO_BLOCKS
    base_parameters: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()

    @abstractmethod
    def dim(self, dim: Dim) -> float:
        """Return e for one dim that grows as m^e, where m is the width ratio."""

    @abstractmethod
    def scalar(self, scalar: InGraph) -> float:
        """Return e for a Python number in the graph that grows as m^e, where m is the width ratio."""

    def dims(self, *dims: Extent) -> float:
        """Return the growth exponent of the product of several dims."""
        return sum(self.number(d) if isinstance(d, Number) else self.dim(d) for d in dims)

    def number(self, number: Number) -> float:
        """Return e for a product of powers of sizes that grows as m^e, where m is the width ratio."""
        return sum(
            power * (self.dim(what) if isinstance(what, ParameterDim | TensorDim) else self.scalar(what))
            for what, power in number.powers
        )

    def is_known(self, number: Number) -> bool:
        """Return False where the value of a number in the graph could not be read, so that it counts as constant."""
        return True

    def parameter(self, name: str, shape: tuple[int, ...]) -> tuple[float, ...]:
        """Return the growth exponent of each dim of a parameter."""
        return tuple(self.dim(ParameterDim(name, i)) for i in range(len(shape)))


class StructuralGrowth(WidthGrowth):
    """Growth read off the structure: a layer's dims grow (exponent 1) on each side where another layer follows.

    The few outputs of a generator of stream weights do not grow, although layers follow. With a base of the same sizes
    (`base`) the exponents are for the report only, since the width ratio is 1.
    """

    def __init__(
        self,
        dag: LayerDag,
        shapes: Mapping[str, tuple[int, ...]],
        base: WidthGrowth | None = None,
    ) -> None:
        self.width_ratio, self.has_base = 1.0, base is not None
        if base is not None:
            self.blocks, self.base_parameters = base.blocks, base.base_parameters
        self._shapes = shapes
        self._grows: dict[Dim, float] = {}
        above, below = beside_layers(dag, upstream=True), beside_layers(dag, upstream=False)
        weighing = generators(dag)
        of_streams = frozenset().union(*weighing.values())
        for node, layer in dag.layers():
            self._mark(layer.fan_in, above[node])
            self._mark(layer.fan_out, below[node] and node not in weighing)
        for node, vector in dag.vectors():
            consumers = [n for n in dag.successors(node) if n not in of_streams]
            self._mark_vector(vector, dag, any(self._is_inner(dag, n, above, below) for n in consumers))

    @staticmethod
    def _is_inner(dag: LayerDag, node: str, above: dict[str, bool], below: dict[str, bool]) -> bool:
        return below[node] and (above[node] or isinstance(dag.kind(node), Layer))

    def _mark(self, dims: tuple[Dim, ...], grows: bool) -> None:
        """Set exponent 1 for the first of several dims: of a convolution's (channels, kernel) the channels alone."""
        first = next(iter(dims), None)
        if first is None or not grows:
            return
        if not isinstance(first, ParameterDim) or self._shapes[first.parameter][first.index] > 1:
            self._grows[first] = 1.0

    def _mark_vector(self, vector: Vector, dag: LayerDag, grows: bool) -> None:
        self._mark(vector.dims[-1:], grows)

    def dim(self, dim: Dim) -> float:
        return self._grows.get(dim, 0.0)

    def scalar(self, scalar: InGraph) -> float:
        return 0.0


def beside_layers(dag: LayerDag, upstream: bool) -> dict[str, bool]:
    """Whether a weight layer (or, upstream, a tensor made of parameters alone) is among the ancestors (`upstream`) or
    descendants of each node.
    """
    found: dict[str, bool] = {}
    for node in dag.order if upstream else reversed(dag.order):
        others = dag.predecessors(node) if upstream else dag.successors(node)
        found[node] = any(found[n] or _is_wide(dag, n, node, upstream) for n in others)
    return found


def _is_wide(dag: LayerDag, node: str, beside: str, upstream: bool) -> bool:
    """Whether a neighbouring node has a width: a weight layer or, above, a tensor of parameters
    alone (learned latents).
    """
    if isinstance(dag.kind(node), Layer):
        return True
    return upstream and dag.node(node).is_parametric and node in dag.kind(beside).inputs


class SizeGrowth(WidthGrowth):
    """Growth read off the sizes of parameters alone, in a target and a base."""

    has_base = True

    def __init__(self, target: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> None:
        self.base_parameters = base
        self.sizes = {name: tuple(zip(base[name].shape, tensor.shape, strict=True)) for name, tensor in target.items()}
        self._fixed: frozenset[tuple[int, int]] = frozenset()
        self.width_ratio = self._largest_ratio()

    def with_fixed(self, fixed: frozenset[tuple[int, int]], notes: tuple[str, ...]) -> SizeGrowth:
        """Return the same growth with some changes of size, (in the base, in the target), counted as no growth."""
        if not fixed and not notes:
            return self
        other = copy(self)
        other._fixed, other.notes = fixed, self.notes + notes
        other.width_ratio = other._largest_ratio()
        return other

    def _largest_ratio(self) -> float:
        ratios = [self._ratio(*sizes) for of_dims in self.sizes.values() for sizes in of_dims]
        return max(ratios, key=lambda ratio: abs(math.log(ratio)), default=1.0)

    def _ratio(self, base_size: int, size: int) -> float:
        return 1.0 if not base_size or (base_size, size) in self._fixed else size / base_size

    def _exponent(self, ratio: float) -> float:
        return 0.0 if ratio == 1.0 else math.log(ratio) / math.log(self.width_ratio)

    def dim(self, dim: Dim) -> float:
        if not isinstance(dim, ParameterDim):
            return 0.0
        return self._exponent(self._ratio(*self.sizes[dim.parameter][dim.index]))

    def scalar(self, scalar: InGraph) -> float:
        return 0.0


class PairedGrowth(SizeGrowth):
    """Growth read off the graphs of target and base: the ratio of every size and number to its twin in the base."""

    def __init__(
        self, target: CapturedGraph, base: CapturedGraph, blocks: Blocks, factors: Callable[[], Factors]
    ) -> None:
        ours, theirs = (dict(each.model.named_parameters()) for each in (target, base))
        self.blocks = blocks
        super().__init__(ours, pair_parameters(ours, theirs, blocks))
        self._twin = pair_graphs(target, base, blocks)
        self._captured = target, base
        self._find_factors = factors

    def _both(self, scalar: ScalarArgument | ModuleAttribute | ConstantTensor) -> tuple[object, object]:
        """Return the values of a number that stands in the graph: in the target, and in the base."""
        ours, theirs = (each.module for each in self._captured)
        return _value(ours, scalar.node, scalar), _value(theirs, self._twin[scalar.node], scalar)

    @cached_property
    def _factors(self) -> Factors | None:
        """All dims split into factors, computed only where some dim neither grows as the width ratio m nor stays."""
        exponents = {self._exponent(self._ratio(*sizes)) for of_dims in self.sizes.values() for sizes in of_dims}
        if not exponents - {0.0, 1.0} or self._captured[0].args is None:
            return None
        try:
            return self._find_factors()
        except PairingError as error:
            self.notes += (f"fused rows that grow in part count with the ratio of their sizes: {error}",)
            return None

    def _rows(self, dim: ParameterDim) -> float | None:
        """Return the growth exponent of the fastest-growing segment of a dim (as of a fused projection); None without
        segments.

        The rows of a fused projection are several layers side by side. A dim that some product sums over has no such
        segments.
        """
        name = self.blocks.twin(dim.parameter)
        factors = self._factors
        if factors is None or (name, dim.index) in factors.contracted or name not in factors.large.parameters:
            return None
        of_dim = factors.parameter(name)[dim.index]
        return self._exponent(float(largest_ratio(of_dim))) if has_segments(of_dim) else None

    def dim(self, dim: Dim) -> float:
        if isinstance(dim, ParameterDim):
            whole = super().dim(dim)
            rows = self._rows(dim) if whole not in (0.0, 1.0) else None
            return whole if rows is None else rows
        if self.width_ratio == 1.0:
            return 0.0
        sizes, base_sizes = shape_of(dim.node), shape_of(self._twin[dim.node])
        if sizes is None or base_sizes is None:
            raise InvalidInputError(
                f"How a dim grows cannot be read off without shapes: dim {dim.index} of {location(dim.node)}.\n"
                f"  expected: example inputs, so that base and target can be compared; got none.\n"
                f"  To fix: abcfx.transform(model, (inputs,), base=...)"
            )
        size, base_size = sizes[dim.index], base_sizes[dim.index]
        return 0.0 if UNKNOWN_SIZE in (size, base_size) else self._exponent(self._ratio(base_size, size))

    def scalar(self, scalar: InGraph) -> float:
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
        constants = [what for what, _ in number.powers if isinstance(what, ConstantTensor)]
        return all(value is not None for what in constants for value in self._both(what))


def _value(module: torch.nn.Module, node: fx.Node, scalar: ScalarArgument | ModuleAttribute | ConstantTensor) -> object:
    if isinstance(scalar, ConstantTensor):
        return _constant(module, node)
    if isinstance(scalar, ModuleAttribute):
        return attrgetter(scalar.key)(module.get_submodule(str(node.target)))
    return node.kwargs.get(scalar.key) if isinstance(scalar.key, str) else node.args[scalar.key]


def _constant(module: torch.nn.Module, node: fx.Node) -> float | None:
    """Return the value of a node that depends on no input and no parameter; None where it depends on one or has no
    value yet.
    """

    def run(at: fx.Node) -> Any:
        if at.op == "get_attr":
            held = attrgetter(str(at.target))(module)
            if isinstance(held, torch.nn.Parameter) or not isinstance(held, torch.Tensor) or held.is_meta:
                raise LookupError
            return held
        if plain_name(at.target) in CASTS:  # perhaps to the dtype of a tensor that is not known yet
            (cast, *_) = at.all_input_nodes
            return run(cast)
        args, kwargs = fx.node.map_arg((at.args, at.kwargs), run)
        if at.op == "call_method":
            return getattr(args[0], str(at.target))(*args[1:], **kwargs)
        if at.op != "call_function" or not callable(at.target):
            raise LookupError
        return at.target(*args, **kwargs)

    try:
        with torch.no_grad():
            value = run(node)
            return float(value) if isinstance(value, int | float | torch.Tensor) else None
    except Exception:  # any op of the model may run here: it raises where it needs what is not there before a run
        return None

"""Abstract tensors, shapes and numbers, which flow along the edges of a graph while its layer DAG is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
import torch.fx as fx

from abcfx.rules.extents import Dim, Number, ParameterDim, TensorDim

UNKNOWN_SIZE = -1
Dims: TypeAlias = Sequence[int] | int | None
"""The `dim` of a reduction as torch takes it: one dim, several, or None for all."""

Result: TypeAlias = "Value | Sizes | Number | Sequence[Result] | None"
"""What a rule returns: an abstract value, several, or None for what no other op of the graph may ask for."""


@dataclass(frozen=True)
class Statistic:
    """A record of how a tensor was made from a node of the layer DAG by powers, means and sums.

    By it a norm is recognised in any spelling: x * rsqrt(mean(x^2) + eps), (x - mean) / std, x / |x|.

    Attributes:
        node: the DAG node that the tensor was made from.
        degree: the tensor becomes k^degree times as large when the node's tensor becomes k times as large.
        reduced: whether a mean or sum was taken.
        summed: the dims that were summed over, where it was no mean.
        power: power of the entries when they were summed: 2 for an L2 norm, 1 for a plain sum.
        over: indices of the dims of the sum or mean, counted from the end.
    """

    node: str
    degree: float
    reduced: bool = False
    summed: tuple[Dim, ...] = ()
    power: float = 2.0
    over: tuple[int, ...] = ()


@dataclass(frozen=True)
class Simplex:
    """A mark on a tensor of positive entries, or of the logarithms of positive entries.

    Softmax makes entries that sum to 1 along a dim. Dividing by the sums along another dim in turn (the iterations of
    Sinkhorn, also on logarithms) makes a doubly stochastic matrix, which is recognised in any spelling.

    Attributes:
        over: indices of the dims along which the entries sum to 1; empty where they are only positive. Indices count
            from the end where the number of dims is known.
        is_log: whether the tensor holds the logarithms of such entries.
    """

    over: tuple[int, ...] = ()
    is_log: bool = False

    @property
    def is_doubly_stochastic(self) -> bool:
        """Whether the entries, which are positive, sum to 1 along several dims, as along rows and columns."""
        return len(self.over) > 1 and not self.is_log

    def divided(self, over: tuple[int, ...]) -> Simplex:
        """Return the mark for the tensor divided by its sums over some dims: its entries then sum to 1 along those."""
        return replace(self, over=tuple(sorted({*self.over, *over})))

    def permuted(self, order: tuple[int, ...]) -> Simplex:
        """Return the mark, which says along which dims entries sum to 1, for the tensor with its dims reordered."""
        ndim = len(order)
        return replace(self, over=tuple(sorted(order.index(i % ndim) - ndim for i in self.over)))


@dataclass(frozen=True)
class WeightTerm:
    """One summand of a weight that is computed from parameters: a product of them, such as B @ A in W + B @ A.

    Attributes:
        chain: the parameters that are multiplied as matrices, from left to right.
        gains: names of DAG nodes that multiply its rows or columns.
        cofactors: names of DAG nodes that multiply each of its entries.
        factor: the number that multiplies it.
        is_curved: whether the weight is not proportional to the parameters: tanh of them, or a constant plus them.
    """

    chain: tuple[Value, ...]
    gains: tuple[str, ...] = ()
    cofactors: tuple[str, ...] = ()
    factor: Number = field(default_factory=Number)
    is_curved: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose matrix product this summand of a computed weight is."""
        return tuple(matrix.parameter for matrix in self.chain if matrix.parameter is not None)


@dataclass(frozen=True)
class Concatenation:
    """A record of which tensors were concatenated to make a tensor, along which dim.

    Attributes:
        at: the fx node that returns the tensor: the one that concatenates, or a later one such as relu.
        joined: the fx node that concatenates.
        dim: index of the dim, counted from the end.
        parts: the tensors.
        sizes: the size of each along the dim.
    """

    at: fx.Node
    joined: fx.Node
    dim: int
    parts: tuple[Value, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """An abstract tensor: a record of what is known of a tensor of the graph, while its layer DAG is built.

    The layer DAG is a graph of the model's layers and other ops.

    Attributes:
        node: the DAG node whose output the tensor is, or is as large as; None for a constant (an input, a mask, a
            buffer) and for a parameter.
        at: the fx node that returns the tensor; None for a tensor inside of a module's rule.
        parameter: name of the parameter that the tensor is, or is a plain view of.
        dims: for a parameter, which of its dims each dim of the tensor is; None once a view has regrouped them.
        shape: sizes of the tensor, where they are known.
        statistic: how the tensor was made by powers and means, for norms that are written out.
        gains: parameters that a reparametrized weight is multiplied with, such as the magnitude of weight norm.
        normalised: whether a weight norm or spectral norm stands between the parameter and the tensor.
        simplex: mark of positive entries, for softmax and Sinkhorn's iterations.
        log_total: where the tensor is the logsumexp of another tensor with the same node, indices of its dims.
        is_curved: whether a parameter went through a function that is not homogeneous, such as tanh.
        terms: of a tensor that is computed from parameters, the products whose sum it is, where that is known.
        concatenation: of what the tensor was concatenated, which holds as long as `at` is the node that did it.
    """

    node: str | None = None
    at: fx.Node | None = None
    parameter: str | None = None
    dims: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    statistic: Statistic | None = None
    gains: tuple[str, ...] = ()
    normalised: bool = False
    simplex: Simplex | None = None
    log_total: tuple[int, ...] = ()
    is_curved: bool = False
    terms: tuple[WeightTerm, ...] = ()
    concatenation: Concatenation | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the tensor is a constant, which training does not change: an input, a mask, a buffer."""
        return self.node is None and self.parameter is None

    @property
    def ndim(self) -> int | None:
        """The number of dims of the tensor; None where it is not known."""
        if self.dims is not None:
            return len(self.dims)
        return None if self.shape is None else len(self.shape)

    def dim(self, index: int) -> Dim | None:
        """Return the dim at an index (negative counts from the end), or None when nothing is known about it."""
        if self.parameter is not None and self.dims is not None:
            return ParameterDim(self.parameter, self.dims[index])
        if self.at is None:
            return None
        ndim = self.ndim
        return TensorDim(self.at, index if ndim is None else index % ndim)

    def dims_at(self, indices: Sequence[int]) -> tuple[Dim, ...]:
        """Return the dims of the tensor at several indices, without those of which nothing is known."""
        return tuple(dim for i in indices if (dim := self.dim(i)) is not None)

    def from_end(self, index: int) -> int:
        """Return the index of a dim counted from the last one (-1); unchanged where the number of dims is not known."""
        return index if self.ndim is None or index < 0 else index - self.ndim

    def all_dims(self) -> tuple[Dim, ...]:
        """Return every dim of the tensor; none where their number is not known."""
        return self.dims_at(range(self.ndim or 0))

    def lacking(self, other: Value) -> tuple[Dim, ...]:
        """Return the dims of another tensor along which this one is repeated when the two are multiplied."""
        if self.shape is None or other.shape is None:
            return ()
        mine, theirs = self.shape, other.shape
        repeated = [i for i in range(-len(theirs), 0) if theirs[i] != 1 and (-i > len(mine) or mine[i] == 1)]
        return other.dims_at(repeated)

    def as_statistic(self) -> Statistic | None:
        """Return a record of how the tensor was made from a DAG node by powers and means; None if it has no node."""
        if self.statistic is not None:
            return self.statistic
        return None if self.node is None else Statistic(self.node, 1.0)

    def permuted(self, order: tuple[int, ...]) -> Value:
        """Return the tensor with its dims in another order; only for parameters is it known which dim went where."""
        return replace(self, dims=None if self.dims is None else tuple(self.dims[i] for i in order))


@dataclass(frozen=True)
class Sizes:
    """The `.shape` of a tensor: indexing it gives a Number that remembers which dim it is the size of."""

    of: Value

    def __getitem__(self, index: object) -> Number | Sizes:
        """Return the size of one dim, or the sizes of several, as values that stay tied to these dims."""
        if not isinstance(index, int):
            return Sizes(self.of)  # only a view can take several sizes at once, and views do not care
        dim = self.of.dim(index)
        return Number() if dim is None else Number(((dim, 1.0),))


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape that was recorded on an fx node; None if the node does not return one tensor.

    Sizes that depend on the data (batch, length) are -1; a width never is.
    """
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else UNKNOWN_SIZE for size in val.shape)


def index_from_end(dim: object) -> int | None:
    """Return the index of a tensor's dim, counted from the last one; None where the number of dims is not known."""
    shape = shape_of(dim.node) if isinstance(dim, TensorDim) else None
    return None if shape is None or not isinstance(dim, TensorDim) else dim.index % len(shape) - len(shape)


def is_discrete(node: fx.Node) -> bool:
    """Whether an fx node returns one tensor of integers or booleans, which a small change of weights leaves alone."""
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and not (val.is_floating_point() or val.is_complex())

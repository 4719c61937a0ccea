"""What flows along the edges of a traced graph while its layer DAG is built: abstract tensors instead of numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx

from abcfx.rules.extents import Dim, Number, ParameterDim, TensorDim

DATA = -1


@dataclass(frozen=True)
class Statistic:
    """What a tensor is when it was made from another one by powers and means: `degree`-homogeneous in DAG node `node`.

    `power`: of the entries when they were summed over the dims `summed`, 2 for an L2 norm and 1 for a plain sum; `over`
    are the indices of these dims (see Simplex).

    It lets a norm be seen for what it is however it is written: x * rsqrt(mean(x^2) + eps), (x - mean) / std, x / |x|.
    """

    node: str
    degree: float
    reduced: bool = False
    summed: tuple[Dim, ...] = ()
    power: float = 2.0
    over: tuple[int, ...] = ()


@dataclass(frozen=True)
class Simplex:
    """Positive entries that sum to 1 along the dims with indices `over`, or the logarithms of such entries.

    Indices count from the end where the number of dims is known. With nothing in `over`: only positive. Softmax makes
    one; dividing by sums over another dim in turn (Sinkhorn's iterations, also on logarithms) makes it doubly
    stochastic, which is seen however it is written.
    """

    over: tuple[int, ...] = ()
    is_log: bool = False

    @property
    def is_doubly_stochastic(self) -> bool:
        return len(self.over) > 1 and not self.is_log

    def divided(self, over: tuple[int, ...]) -> Simplex:
        """After division by its sums over one more dim."""
        return replace(self, over=tuple(sorted({*self.over, *over})))

    def permuted(self, order: tuple[int, ...]) -> Simplex:
        ndim = len(order)
        return replace(self, over=tuple(sorted(order.index(i % ndim) - ndim for i in self.over)))


@dataclass(frozen=True)
class Value:
    """An abstract tensor.

    `node`: the DAG node whose size, change and gradient it has; None for a constant (an input, a mask, a buffer).
    `at`: the fx node that returns the concrete tensor, or None inside a module's rule.
    `parameter`: its name, when the tensor is a parameter or a plain view of one.
    `dims`: for a parameter, which of its dims each dim of the tensor is; None once a view has regrouped them.
    `shape`: sizes of the concrete tensor, when known. `statistic`: see there.
    `gains`: parameters that a reparametrized weight is multiplied with, such as the magnitude of weight norm.
    `normalised`: a weight norm or spectral norm stands between the parameter and the tensor.
    `simplex`: see there. `log_total`: it is the logsumexp of a tensor with the same node, over the dims with these
    indices.
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

    @property
    def is_constant(self) -> bool:
        return self.node is None and self.parameter is None

    @property
    def ndim(self) -> int | None:
        if self.dims is not None:
            return len(self.dims)
        return None if self.shape is None else len(self.shape)

    def dim(self, index: int) -> Dim | None:
        """The dim at `index` (negative counts from the end), or None when nothing is known about it."""
        if self.parameter is not None and self.dims is not None:
            return ParameterDim(self.parameter, self.dims[index])
        if self.at is None:
            return None
        ndim = self.ndim
        return TensorDim(self.at, index if ndim is None else index % ndim)

    def from_end(self, index: int) -> int:
        """A dim's index counted from the end, where the number of dims is known."""
        return index if self.ndim is None or index < 0 else index - self.ndim

    def all_dims(self) -> tuple[Dim, ...]:
        """Every dim of the tensor; empty when their number is not known."""
        return tuple(d for i in range(self.ndim or 0) if (d := self.dim(i)) is not None)

    def permuted(self, order: tuple[int, ...]) -> Value:
        """The same parameter with its dims in another order (tensors of activations only change `at`)."""
        return replace(self, dims=None if self.dims is None else tuple(self.dims[i] for i in order))


@dataclass(frozen=True)
class Sizes:
    """The `.shape` of a tensor: indexing it gives a Number that remembers which dim it is the size of."""

    of: Value

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Sizes(self.of)  # only a view can take several sizes at once, and views do not care
        dim = self.of.dim(index)
        return Number() if dim is None else Number(((dim, 1.0),))


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Sizes recorded on an fx node by capture, if it had example inputs and the node returns one tensor.

    A size that the data decides (batch, length) is DATA: a width never is.
    """
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else DATA for size in val.shape)


def is_discrete(node: fx.Node) -> bool:
    """Whether an fx node returns one tensor of integers or booleans, which no small change of weights changes."""
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and not (val.is_floating_point() or val.is_complex())

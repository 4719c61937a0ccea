"""`Op`: what a rule can say about an op, in the words of the field (layer, merge, product, norm, ...)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from abcfx.rules import weight_terms
from abcfx.rules.builder import DagNode
from abcfx.rules.extents import Dim, Extent, Number
from abcfx.rules.fixed_dims import FixedDims
from abcfx.rules.kinds import (
    Layer,
    Merge,
    Mix,
    Norm,
    NumberFactor,
    Pointwise,
    Power,
    Product,
    Reduce,
    Softmax,
)
from abcfx.rules.node_maker import NodeMaker, is_zero
from abcfx.rules.segments import features_dim, segment_nodes, segments_of
from abcfx.rules.values import Dims, Simplex, Statistic, Value, shape_of
from abcfx.rules.weights import dims_of, factors_of, in_order_of_use, layer_kind, layers_in_sum, read_weight
from abcfx.support.location import location

Broadcast = tuple[tuple[Extent, ...], tuple[Extent, ...]]


class Op(NodeMaker):
    """One op of the traced graph, as its rule sees it.

    A rule takes the Op, then (for a module) the module, then the op's own arguments, where each tensor is a `Value`.
    It returns a `Value`, or a tuple of them for an op with several results. What it can ask about the arguments stands
    in `OpArguments`.
    """

    # -- what the op does: every method returns the Value of a tensor

    def same(self, x: Value) -> Value:
        """Return a tensor as large as x that changes as x does, as for a reshape, dropout, relu or pooling.

        A parameter is still known by its name afterwards; which of its dims is which is not.
        """
        return replace(x, at=self.at, dims=None, shape=shape_of(self.at), terms=weight_terms.regrouped(x, self.at))

    def nonlinear(self, x: Value) -> Value:
        """Apply a function phi with phi(0) = 0 and phi(kx) != k phi(x), such as gelu or tanh.

        The result is as large as x and changes as x does, as with `same`. Besides, x is marked as pinned: a larger copy
        of the network can compute the same function only if x stays as large as it was.
        """
        self._pin(x, is_bent=True)
        return replace(self.same(x), is_curved=True, terms=weight_terms.curved(x))

    def view(self, x: Value, order: tuple[int, ...] | None = None) -> Value:
        """Return x with its dims in another order; without `order`, with dims regrouped as by a reshape."""
        if order is not None and x.simplex is not None:
            x = replace(x, simplex=x.simplex.permuted(order))
        if order is not None and x.terms:
            return replace(self.same(x), terms=weight_terms.permuted(x, order))
        if order is None or x.dims is None:
            return self.same(x)
        shape = None if x.shape is None else tuple(x.shape[i] for i in order)
        return replace(x.permuted(order), at=self.at, shape=shape)

    def layer(
        self,
        x: Value | None,
        weight: Value,
        fan_in: Sequence[int],
        fan_out: Sequence[int],
        bias: Value | None = None,
        inner: bool = False,
        pieces: int = 1,
        fan_back: tuple[Extent, ...] | None = None,
        over: Sequence[int] | None = None,
        paired: Mapping[int, int] | None = None,
        channels: int | None = None,
    ) -> Value:
        """Multiply x by a weight, summed over the weight's fan_in dims, and add a bias: adds a layer to the layer DAG.

        A weight that is computed from parameters alone is read as a sum of products of them, each a chain of layers;
        what multiplies them entry by entry counts as gain. If it is no such sum (a softmax), it counts as an
        activation.

        Args:
            x: the input; None for a lookup in a table.
            weight: the weight. An activation in its place makes a product of activations.
            fan_in: dims of the weight that are summed over.
            fan_out: dims of the weight that the result has.
            bias: parameter that is added to the result; None for no bias.
            inner: whether x exists only inside of the op, so that no scale node can stand before it.
            pieces: number of layers that it counts as in the linear program's objective: 3 for fused q, k, v.
            fan_back: dims that the gradient of x sums over, if these are not all of `fan_out`.
            over: dims of x that are summed over, where these are not its last ones; () where x has its rows in another
                order each time.
            paired: dims of the weight that count matrices -> the dims of x that run along with them.
            channels: of a convolution, the dim of x that meets the first dim of `fan_in`.
        """
        read = read_weight(self._builder, weight)
        if read is None:
            product = self.product(x if x is not None else Value(), weight, weight.dims_at(fan_in))
            return product if bias is None else self.merge([product, bias])
        features = features_dim(fan_in, over, paired) if channels is None else channels
        segments = () if inner else segments_of(self._builder, self.at, x, weight, read, fan_in, features)
        inner = inner or (x is not None and x.at not in self.at.all_input_nodes)
        inner = inner or (read.is_composed and weight.at not in self.at.all_input_nodes)
        outputs: list[Value] = []
        for i, term in enumerate(read.terms):
            y: Value | None = x
            steps = in_order_of_use(term, fan_in)
            for k, matrix in enumerate(steps):
                is_last = k == len(steps) - 1
                gains = (*self._vectors_of(matrix.gains), *(term.gains if is_last else ()))
                vectors = (self._vectors(bias) if i == 0 and is_last else ()) + gains
                kind = layer_kind(self._node(y) if y is not None else None, matrix, term, is_last)
                node = DagNode(
                    self._layer_name(kind.parameter),
                    replace(
                        kind,
                        fan_in=dims_of(matrix, weight, fan_in),
                        fan_out=dims_of(matrix, weight, fan_out),
                        pieces=pieces,
                        inner=inner or (read.is_normalised and i > 0),
                        fan_back=fan_back,
                        normalised=read.is_normalised,
                        vectors=vectors,
                    ),
                    self.at,
                    self._path,
                    gains,
                    operand=None if y is None or k else y.at,
                    over=None if over is None else tuple(over),
                    paired={d.index: j for m, j in (paired or {}).items() for d in dims_of(matrix, weight, [m])},
                    weight=weight.at if read.is_composed else None,
                    is_curved=term.is_curved,
                )
                if segments:
                    self.disregard(x)  # the tensors that it is a concatenation of are read in its place
                    sources = [self._node(each.x) for each in segments]
                    return self.merge(map(self._value_of, segment_nodes(node, segments, sources)))
                y = self._value_of(node)
            assert y is not None
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else self.merge(outputs)

    def merge(self, values: Iterable[Value]) -> Value:
        """Add or concatenate tensors: the result is as large as the largest, and changes as the one that changes most.

        A constant among the values changes nothing. But unless it is zero, a wider copy of the model must keep the
        others as large as they are.
        """
        values = list(values)
        is_shifted = any(v.is_constant and not is_zero(v) for v in values)
        if is_shifted:
            for v in values:
                self._pin(v)
        terms = weight_terms.summed(values, is_shifted)
        read_from = [(node, v.at) for v in values if (node := self._node(v)) is not None]
        nodes = tuple(dict.fromkeys(node for node, _ in read_from))
        if not nodes:
            return self.constant()
        if len(nodes) == 1:
            return Value(nodes[0], self.at, shape=shape_of(self.at), terms=terms)
        operands = {node: at for node, at in read_from if at is not None and at in self.at.all_input_nodes}
        merged = DagNode(self.at.name, Merge(nodes), self.at, self._path, operands=operands)
        return replace(self._value_of(merged), terms=terms)

    def product(
        self, x: Value, y: Value, contracted: tuple[Extent, ...] = (), broadcast: Broadcast | None = None
    ) -> Value:
        """Multiply x and y, entry by entry or summed over dims, as a product node of the layer DAG.

        x times 1 / (a norm of x) is recognised as a norm; weights that sum to 1 along rows and columns, times an
        activation, as a mix, which is never larger than the activation.

        Args:
            x: a tensor.
            y: a tensor.
            contracted: the dims that are summed over.
            broadcast: dims that x lacks, and dims that y lacks; read off the shapes for a product entry by entry.
        """
        for tensor, factor in ((x, y), (y, x)):
            if not contracted and (normed := self._divided_by_norm(tensor, factor)) is not None:
                return replace(normed, terms=tensor.terms, normalised=bool(tensor.terms))
        left, right = self._node(x), self._node(y)
        if left is None and right is None:
            return self.constant()
        terms = () if contracted else weight_terms.multiplied(self._builder, x, y, (left, right))
        if not contracted and (left is None or right is None):
            return Value(left or right, self.at, shape=shape_of(self.at), terms=terms)
        missing = broadcast or (((), ()) if contracted else (x.lacking(y), y.lacking(x)))
        for weights, pair, lacking in ((x, (left, right), missing), (y, (right, left), (missing[1], missing[0]))):
            if weights.simplex is not None and weights.simplex.is_doubly_stochastic and None not in pair:
                return self._contraction(x, Mix(pair, contracted, lacking))
        return replace(self._contraction(x, Product((left, right), contracted, missing)), terms=terms)

    def norm(self, x: Value, gain: Value | None = None, bias: Value | None = None) -> Value:
        """Divide x by its standard deviation or RMS, multiply by a gain, add a bias: of order 1, however large x is."""
        gains = self._vectors(gain)
        y = self._unary(x, lambda node: Norm((node,), vectors=gains + self._vectors(bias)), gains)
        if y.node is not None:
            return y
        return self.merge([v for v in (gain, bias) if v is not None])  # of constants: only gain and bias learn

    def pointwise(self, x: Value) -> Value:
        """Apply a function phi with phi(0) != 0, such as sigmoid: the result is of order 1.

        For phi(0) = 0 use `same` or `nonlinear`.
        """
        return self._unary(x, lambda node: Pointwise((node,)))

    def power(self, x: Value, exponent: float) -> Value:
        """Raise x to a power that does not change with width: entries of magnitude n^s become n^(s * exponent)."""
        if exponent == 1:
            return self.same(x)
        y = self._unary(x, lambda node: Power((node,), exponent))
        statistic = x.as_statistic()
        if statistic is None:
            return y
        return replace(y, statistic=replace(statistic, degree=statistic.degree * exponent))

    def scale(self, x: Value, factor: Number) -> Value:
        """Multiply x by a number that may differ between the model and the smaller base that it is compared with."""
        y = self._unary(x, lambda node: NumberFactor((node,), factor))
        return replace(y, terms=weight_terms.scaled(x, factor))

    def softmax(self, x: Value, dim: int, is_log: bool = False) -> Value:
        """Take the softmax of x over one dim: entries ~ 1 / n for a dim of n entries that grows with the width.

        With `is_log` it is the logarithm of the softmax.
        """
        y = self.less_log_total(x, (x.from_end(dim),))
        return y if y.simplex is None else replace(y, simplex=replace(y.simplex, is_log=is_log))

    def less_log_total(self, x: Value, over: tuple[int, ...]) -> Value:
        """Subtract from x its logsumexp over some dims, which is what a log_softmax does.

        `over` are indices of the dims, counted from the end.
        """
        if x.simplex is None or not x.simplex.is_log:
            x = replace(x, simplex=Simplex(is_log=True))  # the logarithms of exp(x)
        return self._simplex(x, over, x.dims_at(over))

    def softmax_over_tokens(self, x: Value) -> Value:
        """Take the softmax of x over a dim, such as tokens, whose size does not change with width.

        Entries of the result are of order 1 in width.
        """
        return self._unary(x, lambda node: Softmax((node,), ()))

    def exponential(self, x: Value) -> Value:
        """Return exp(x), of order 1; like a softmax if x holds logarithms of entries that sum to 1."""
        if x.simplex is not None and x.simplex.is_log and x.simplex.over:
            return replace(self.same(x), simplex=replace(x.simplex, is_log=False))
        y = self.pointwise(x)
        return y if y.node is None else replace(y, simplex=Simplex())

    def log_total(self, x: Value, dims: Sequence[int] | int) -> Value:
        """Take logsumexp of x over dims: as large as entries of x, and marked so that x minus it is a log-softmax."""
        indices = [dims] if isinstance(dims, int) else dims
        return replace(self.nonlinear(x), simplex=None, log_total=tuple(x.from_end(i) for i in indices))

    def reduce(self, x: Value, dims: Dims, mean: bool, dims_of: Value | None = None) -> Value:
        """Take the mean or sum of x over dims: as large as an entry or, for a sum, n times as large over n entries.

        A sum that is a dot product with a vector is recorded as a layer.

        Args:
            x: a tensor.
            dims: the dims; None for all of them.
            mean: take the mean if True, else the sum.
            dims_of: read `dims` as indices of this tensor instead of x, if x is an intermediate of this op.
        """
        indices = [dims] if isinstance(dims, int) else dims
        given = dims_of or x
        over = given.all_dims() if indices is None else given.dims_at(indices)
        if (y := self._sum_of_layers(x, indices, mean)) is not None:
            return y
        y = self._dot_product(x, [given.from_end(i) for i in indices or ()], over, mean)
        if y is None:
            y = self._unary(x, lambda node: Reduce((node,), over, mean))
            y = replace(y, terms=weight_terms.without_dims(x, indices))
        statistic = x.as_statistic()
        if statistic is None:
            return y
        reduced = replace(
            statistic,
            reduced=True,
            power=statistic.power if statistic.reduced else statistic.degree,
            summed=statistic.summed if mean else over,
            over=tuple(given.from_end(i) for i in indices or ()),
        )
        return replace(y, statistic=reduced)

    def spread(self, x: Value, dims: Dims, power: float) -> Value:
        """Take (mean of (x - mean)^2) ** power over dims: the variance at power 1, the standard deviation at 1/2."""
        return self.power(self.reduce(self.power(x, 2.0), dims, mean=True, dims_of=x), power)

    def fixed(self, x: Value, dims: Sequence[int]) -> Value:
        """Return x for a function of whole matrices, and refuse models in which one of the dims grows with the width.

        How such a function, for example an inverse, depends on the number of rows is not known.
        """
        over = x.dims_at(dims)
        return self._unary(x, lambda node: FixedDims((node,), over, f"{self.at.target}", location(self.at)))

    def several(self, x: Value, count: int) -> tuple[Value, ...]:
        """Return `count` abstract tensors (records of where tensors come from), each as large as x."""
        return tuple(replace(self.same(x), shape=None) for _ in range(count))

    def split(self, x: Value, count: int, dim: int) -> tuple[Value, ...]:
        """Cut x in `count` parts along a dim, each as large as x and changing as x does in training.

        A layer whose result is cut along its features counts as that many layers in the linear program's objective.
        """
        is_layer = x.node is not None and isinstance(self._builder.kind(x.node), Layer)
        if x.node is not None and is_layer and dim in (-1, (x.ndim or 0) - 1):
            self._builder.cut(x.node, count)
        return self.several(x, count)

    # -- inside

    def _sum_of_layers(self, x: Value, indices: Sequence[int] | None, mean: bool) -> Value | None:
        """Read the sum or mean over dims of sums of products u * v, v a parameter, as the layers u @ v that they are.

        None where no summand is such a product. `indices` are the dims.
        """
        sums = []
        for part, factor, read in layers_in_sum(self._builder, x, indices, mean, self.at):
            if read is None:
                y = self.reduce(part, indices, mean=False)
            else:
                y = self.layer(read.input, read.weight, read.fan_in, read.fan_out, inner=True, fan_back=read.fan_back)
            sums.append(self.scale(y, factor) if factor.powers else y)
        return self.merge(sums) if len(sums) > 1 else next(iter(sums), None)

    def _dot_product(self, x: Value, indices: Sequence[int], over: tuple[Dim, ...], mean: bool) -> Value | None:
        """Read a sum or mean of a product u * v as the contraction of u with v that it is; None for any other x.

        Args:
            x: the tensor that is summed, perhaps a number times a product of activations.
            indices: the dims that are summed over, counted from the end.
            over: the same dims, each as a record of what it is a dim of.
            mean: whether the sum is divided by its number of entries.
        """
        found = factors_of(self._builder, x, indices)
        if found is None:
            return None
        y = self._contraction(x, Product(found.kind.inputs, over, found.kind.broadcast))
        factor = found.number.times(Number(tuple((dim, -1.0) for dim in over)) if mean else Number())
        return self.scale(y, factor) if factor.powers else y

    def _simplex(self, x: Value, over: tuple[int, ...], dims: tuple[Dim, ...]) -> Value:
        """Divide positive x by its sums over dims, as a softmax does, and return its abstract tensor.

        If sums over other dims are 1 already, no node is added to the layer DAG: entries stay as large as they are.

        Args:
            x: the tensor, marked as one of positive entries.
            over: indices of the dims, counted from the end.
            dims: the same dims, each as a record of what it is a dim of.
        """
        assert x.simplex is not None
        y = self.same(x) if x.simplex.over else self._unary(x, lambda node: Softmax((node,), dims))
        return replace(y, simplex=x.simplex.divided(over))

    def _divided_by_norm(self, x: Value, factor: Value) -> Value | None:
        """Return x * factor as a norm or softmax if the factor is 1 / (a mean or sum of powers of x); else None."""
        stat = factor.statistic
        if x.node is None or stat is None or not stat.reduced or stat.degree != -1:
            return None
        if x.node == stat.node and x.simplex is not None and stat.power == 1 and stat.summed:
            return self._simplex(x, stat.over, stat.summed)
        return self._normed(x.node, stat)

    def _normed(self, node: str, stat: Statistic) -> Value | None:
        """Divide the tensor of a DAG node by a norm, which `stat` describes; return the result's abstract tensor.

        None unless the node is `stat.node`, of which the norm was taken, or a product that contains it.
        """
        if node == stat.node:
            return self._unary(Value(node), lambda node: Norm((node,), stat.summed, stat.power))
        kind = self._builder.kind(node)
        if isinstance(kind, Product) and not kind.contracted:
            for this, other in (kind.inputs, kind.inputs[::-1]):
                if this is not None and (normed := self._normed(this, stat)) is not None:
                    return self.product(normed, Value(other))
        return None

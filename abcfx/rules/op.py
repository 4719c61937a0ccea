"""What a rule can do: `Op` adds nodes to the layer DAG in the words of the field (layer, merge, product, norm, ...)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx

from abcfx.errors import UnknownOpError
from abcfx.rules.builder import DagBuilder, DagNode
from abcfx.rules.extents import ConstantTensor, Dim, Extent, ModuleAttribute, Number, ScalarArgument
from abcfx.rules.kinds import (
    Kind,
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
    Unary,
    Vector,
)
from abcfx.rules.registry import plain_name
from abcfx.rules.values import Simplex, Statistic, Value, is_discrete, shape_of
from abcfx.support.location import location

Broadcast = tuple[tuple[Extent, ...], tuple[Extent, ...]]


class Op:
    """One op of the traced graph, seen by its rule.

    A rule takes the Op, then (for a module) the module, then the op's own arguments, where each tensor is a `Value`.
    It returns a `Value`, or a tuple of them for an op with several results.
    """

    def __init__(
        self,
        builder: DagBuilder,
        at: fx.Node,
        path: str = "",
        is_within: bool = False,
    ) -> None:
        """`is_within`: the op is one of those that `at`, a custom function, runs; its numbers are not those of `at`."""
        self.at = at
        self.path = path
        self.is_within = is_within
        self._builder = builder
        self._names = builder.names

    # -- what the op is given

    def parameter(self, owner: torch.nn.Module, name: str) -> Value | None:
        """The parameter `name` of a module that is a leaf of the graph; None when the module has none."""
        held = getattr(owner, name, None)
        if held is None:
            return None
        gains, normalised = tuple[str, ...](), False
        if held not in self._names:
            held, gains = self._computed_from(owner, name, held)
            normalised = _is_normalised(owner, name)
        dims = tuple(range(held.ndim))
        return Value(None, None, self._names[held], dims, tuple(held.shape), gains=gains, normalised=normalised)

    def attribute(self, key: str) -> Number:
        """The Python number `key` of the module that is called; it may change with width."""
        return Number(((ModuleAttribute(self.at, key), 1.0),))

    def _computed_from(
        self, owner: torch.nn.Module, name: str, held: torch.Tensor
    ) -> tuple[torch.nn.Parameter, tuple[str, ...]]:
        """The parameter that a reparametrized weight (weight norm, spectral norm) stands for, and its gains.

        At init such a weight equals that parameter up to a norm, and changes as it does.
        """
        parts = [p for n, p in owner.named_parameters() if n.startswith((f"parametrizations.{name}.", f"{name}_"))]
        main = [p for p in parts if p.shape == held.shape and p in self._names]
        if len(main) != 1:
            raise UnknownOpError(
                f"{type(owner).__name__}.{name} in {location(self.at)} is computed from {len(parts)} parameters; how "
                f"it changes with them is not known.\n"
                f"  To fix: register a rule for the module, @abcfx.rules.register_rule({type(owner).__name__})"
            )
        return main[0], tuple(self._names[p] for p in parts if p is not main[0] and p in self._names)

    def scalar(self, key: int | str) -> Number:
        """The Python number at position (or keyword) `key` of the op's arguments; it may change with width."""
        return Number() if self.is_within else Number(((ScalarArgument(self.at, key), 1.0),))

    def constant_number(self, x: Value) -> Number | None:
        """A constant tensor of one entry, seen as a number that may change with width; None for any other tensor."""
        if not x.is_constant or x.at is None or x.shape is None or any(size != 1 for size in x.shape):
            return None
        return Number(((ConstantTensor(x.at), 1.0),))

    def is_weight(self, x: Value) -> bool:
        """Whether a tensor is a parameter, or computed from parameters alone."""
        return x.parameter is not None if x.node is None else self._is_parametric(x.node)

    # -- what the op does: every method returns the Value of a tensor

    def constant(self) -> Value:
        """A tensor that training does not change."""
        return Value(at=self.at, shape=shape_of(self.at))

    def same(self, x: Value) -> Value:
        """Reshape, dropout, relu, finite pooling: size and change of x. A parameter keeps its name, not its dims."""
        return replace(x, at=self.at, dims=None, shape=shape_of(self.at))

    def nonlinear(self, x: Value) -> Value:
        """phi(x) with phi(0) = 0 and phi(kx) != k phi(x), such as gelu or tanh: as `same`, and x is marked as pinned.

        Copies of a network can compute the same function only if x stays as large as it was (abcfx.growing.scales).
        """
        self._pin(x)
        return self.same(x)

    def view(self, x: Value, order: tuple[int, ...] | None = None) -> Value:
        """x with its dims in another order; without `order`, a regrouping of dims."""
        if order is not None and x.simplex is not None:
            x = replace(x, simplex=x.simplex.permuted(order))
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
    ) -> Value:
        """A weight op: contracts dims `fan_in` of `weight` with x (None: a lookup in a table), gives dims `fan_out`.

        `over`: the dims of x that are contracted, where these are not its last ones; () where x has its rows in another
        order each time. `paired`: dims of the weight that count matrices -> the dims of x that run along with them.

        A weight that is computed from parameters alone (masked, standardised, a sum of several) is a layer of each of
        the matrices among them; the others count as gains.
        """
        source = None if x is None else self._node(x)
        weights, gains = self._matrices(weight)
        if not weights:
            dims = tuple(d for i in fan_in if (d := weight.dim(i)) is not None)
            y = self.product(x if x is not None else Value(), weight, dims)
            return y if bias is None else self.merge([y, bias])
        inner = inner or (x is not None and x.at not in self.at.all_input_nodes)
        factors = self._vectors(*(Value(parameter=name) for name in gains))
        vectors = self._vectors(bias) + factors
        layers = []
        for each in weights:
            dims_in, dims_out = (tuple(d for i in fan if (d := each.dim(i)) is not None) for fan in (fan_in, fan_out))
            assert each.parameter is not None
            kind = Layer(
                (source,),
                each.parameter,
                dims_in,
                dims_out,
                pieces,
                inner,
                self._factor(weight),
                fan_back,
                weight.normalised or self._has_norm(weight),
                vectors=vectors,
            )
            node = DagNode(
                self._layer_name(each.parameter),
                kind,
                self.at,
                self.path,
                factors,
                operand=None if x is None else x.at,
                over=None if over is None else tuple(over),
                paired={d.index: i for k, i in (paired or {}).items() if (d := each.dim(k)) is not None},
            )
            layers.append(self._value_of(node))
        return layers[0] if len(layers) == 1 else self.merge(layers)

    def merge(self, values: Iterable[Value]) -> Value:
        """Add or concatenate: the largest dominates. Constants beside it change nothing, but pin it (unless zero)."""
        values = list(values)
        if any(v.is_constant and not _is_zero(v) for v in values):
            for v in values:
                self._pin(v)
        read_from = [(node, v.at) for v in values if (node := self._node(v)) is not None]
        nodes = tuple(dict.fromkeys(node for node, _ in read_from))
        if not nodes:
            return self.constant()
        if len(nodes) == 1:
            return Value(nodes[0], self.at, shape=shape_of(self.at))
        operands = {node: at for node, at in read_from if at is not None and at in self.at.all_input_nodes}
        kind = Merge(nodes)
        return self._value_of(DagNode(self.at.name, kind, self.at, self.path, operands=operands))

    def product(
        self, x: Value, y: Value, contracted: tuple[Extent, ...] = (), broadcast: Broadcast | None = None
    ) -> Value:
        """x * y entry by entry, or contracted over the dims given. x times 1 / (a norm of x) is a norm.

        Doubly stochastic weights times an activation are a mix of it. `broadcast`: dims that x lacks, and that y lacks;
        read off the shapes where x and y are multiplied entry by entry.
        """
        for tensor, factor in ((x, y), (y, x)):
            stat = factor.statistic
            if stat is not None and stat.reduced and stat.degree == -1 and tensor.node is not None and not contracted:
                if tensor.node == stat.node and tensor.simplex is not None and stat.power == 1 and stat.summed:
                    return self.simplex(tensor, stat.over, stat.summed)
                normed = self._normed(tensor.node, stat)
                if normed is not None:
                    return normed
        left, right = self._node(x), self._node(y)
        if left is None and right is None:
            return self.constant()
        if not contracted and (left is None or right is None):
            return Value(left or right, self.at, shape=shape_of(self.at))
        missing = broadcast or (((), ()) if contracted else (_missing(x, y), _missing(y, x)))
        for weights, pair, lacking in ((x, (left, right), missing), (y, (right, left), (missing[1], missing[0]))):
            if weights.simplex is not None and weights.simplex.is_doubly_stochastic and None not in pair:
                return self._contraction(x, Mix(pair, contracted, lacking))
        return self._contraction(x, Product((left, right), contracted, missing))

    def _contraction(self, x: Value, kind: Product) -> Value:
        operand = x.at if x.at in self.at.all_input_nodes else None
        return self._value_of(DagNode(self.at.name, kind, self.at, self.path, operand=operand))

    def norm(self, x: Value, gain: Value | None = None, bias: Value | None = None) -> Value:
        """Normalisation by its own statistics, then gain and bias."""
        gains = self._vectors(gain)
        y = self._unary(x, lambda node: Norm((node,), vectors=gains + self._vectors(bias)), gains)
        if y.node is not None:
            return y
        return self.merge([v for v in (gain, bias) if v is not None])  # of constants: only gain and bias learn

    def pointwise(self, x: Value) -> Value:
        """A function with phi(0) != 0, such as sigmoid. For phi(0) = 0 use `same`."""
        return self._unary(x, lambda node: Pointwise((node,)))

    def power(self, x: Value, exponent: float) -> Value:
        """x ** exponent, for a number that does not change with width."""
        if exponent == 1:
            return self.same(x)
        y = self._unary(x, lambda node: Power((node,), exponent))
        stat = self._statistic(x)
        return y if stat is None else replace(y, statistic=replace(stat, degree=stat.degree * exponent))

    def scale(self, x: Value, factor: Number) -> Value:
        """x times a Python number that may differ between the base and the target model."""
        return self._unary(x, lambda node: NumberFactor((node,), factor))

    def softmax(self, x: Value, dim: int, is_log: bool = False) -> Value:
        over = x.dim(dim)
        if x.simplex is None or not x.simplex.is_log:
            x = replace(x, simplex=Simplex(is_log=True))  # the logarithms of exp(x)
        y = self.simplex(x, (x.from_end(dim),), () if over is None else (over,))
        return y if y.simplex is None else replace(y, simplex=replace(y.simplex, is_log=is_log))

    def simplex(self, x: Value, over: tuple[int, ...], dims: tuple[Dim, ...]) -> Value:
        """Positive x divided by its sums over `dims`: a softmax. What sums to 1 already keeps its size and change."""
        assert x.simplex is not None
        y = self.same(x) if x.simplex.over else self._unary(x, lambda node: Softmax((node,), dims))
        return replace(y, simplex=x.simplex.divided(over))

    def exponential(self, x: Value) -> Value:
        """exp(x): positive; of the logarithms of weights that sum to 1, those weights."""
        if x.simplex is not None and x.simplex.is_log and x.simplex.over:
            return replace(self.same(x), simplex=replace(x.simplex, is_log=False))
        y = self.pointwise(x)
        return y if y.node is None else replace(y, simplex=Simplex())

    def log_total(self, x: Value, dims: Sequence[int] | int) -> Value:
        """logsumexp of x over dims: subtracted from x it leaves logarithms of what sums to 1."""
        indices = [dims] if isinstance(dims, int) else dims
        return replace(self.nonlinear(x), simplex=None, log_total=tuple(x.from_end(i) for i in indices))

    def softmax_over_tokens(self, x: Value) -> Value:
        """Softmax over a dim that has nothing to do with width."""
        return self._unary(x, lambda node: Softmax((node,), ()))

    def reduce(self, x: Value, dims: Sequence[int] | int | None, mean: bool, dims_of: Value | None = None) -> Value:
        """Mean or sum over dims (None: all of them), which are those of `dims_of` where x was made inside this op."""
        indices = [dims] if isinstance(dims, int) else dims
        given = dims_of or x
        over = given.all_dims() if indices is None else tuple(d for i in indices if (d := given.dim(i)) is not None)
        if not mean and (contracted := self._contracted_with_vector(x, indices)) is not None:
            return contracted
        y = self._unary(x, lambda node: Reduce((node,), over, mean))
        stat = self._statistic(x)
        if stat is None:
            return y
        power = stat.power if stat.reduced else stat.degree
        counted = tuple(given.from_end(i) for i in indices or ())
        reduced = replace(stat, reduced=True, power=power, summed=stat.summed if mean else over, over=counted)
        return replace(y, statistic=reduced)

    def spread(self, x: Value, dims: Sequence[int] | int | None, power: float) -> Value:
        """(mean of (x - mean)^2) ** power over dims: variance at power 1, standard deviation at 1/2."""
        return self.power(self.reduce(self.power(x, 2.0), dims, mean=True, dims_of=x), power)

    def several(self, x: Value, count: int) -> tuple[Value, ...]:
        """`count` tensors with size and change of x."""
        return tuple(replace(self.same(x), shape=None) for _ in range(count))

    def split(self, x: Value, count: int, dim: int) -> tuple[Value, ...]:
        """x cut in `count` along `dim`. A layer cut along its features counts as that many layers in the objective."""
        is_layer = x.node is not None and isinstance(self._builder.kind(x.node), Layer)
        if x.node is not None and is_layer and dim in (-1, (x.ndim or 0) - 1):
            self._builder.cut(x.node, count)
        return self.several(x, count)

    # -- inside

    def _statistic(self, x: Value) -> Statistic | None:
        if x.statistic is not None:
            return x.statistic
        return None if x.node is None else Statistic(x.node, 1.0)

    def _unary(self, x: Value, make: Any, gains: tuple[str, ...] = ()) -> Value:
        node = self._node(x)
        return self.constant() if node is None else self._add(self.at.name, make(node), gains)

    def _pin(self, x: Value) -> None:
        """Mark a node, or a parameter that is no node yet, as one that must keep its size in a larger copy."""
        if x.node is not None:
            self._builder.pin(x.node)
        elif x.parameter is not None:
            self._builder.pinned_parameters.add(x.parameter)

    def _node(self, x: Value) -> str | None:
        """The DAG node of a value; a parameter that is added or multiplied becomes a vector node on first use."""
        if x.parameter is None or x.node is not None:
            return x.node
        vector = self._builder.add_vector(Vector((), x.parameter, x.all_dims()), self.at, self.path)
        if x.gains:
            return self.merge([Value(vector), *(Value(parameter=gain) for gain in x.gains)]).node
        return vector

    def _contracted_with_vector(self, x: Value, dims: Sequence[int] | None) -> Value | None:
        """(x * v).sum(dims) with a raw parameter v that runs along dims is a layer, as x @ v is."""
        kind = self._builder.kind(x.node) if x.node is not None else None
        if not isinstance(kind, Product) or kind.contracted or dims is None or x.ndim is None:
            return None
        for this, other in (kind.inputs, kind.inputs[::-1]):
            vector = None if other is None else self._builder.kind(other)
            if this is None or not isinstance(vector, Vector) or self._is_parametric(this):
                continue
            shape = self._builder.shapes[vector.parameter]
            along = [len(shape) - x.ndim + d % x.ndim for d in dims]
            if all(0 <= i < len(shape) and shape[i] > 1 for i in along):
                weight = Value(None, self.at, vector.parameter, tuple(range(len(shape))), shape)
                rest = [i for i, size in enumerate(shape) if size > 1 and i not in along]
                return self.layer(Value(this), weight, along, rest, inner=True)
        return None

    def _is_parametric(self, node: str) -> bool:
        """Whether a node is made of parameters (and constants) alone."""
        return self._builder.nodes[node].is_parametric

    def _matrices(self, weight: Value) -> tuple[list[Value], list[str]]:
        """(matrices, gains): the parameters that a weight is, or is computed from; ([], []) for an activation."""
        if weight.node is None:
            return ([weight], list(weight.gains)) if weight.parameter is not None else ([], [])
        if not self._is_parametric(weight.node):
            return [], []
        above = map(self._builder.kind, self._builder.above(weight.node))
        parts = [kind for kind in above if isinstance(kind, Vector)]
        shapes = {part.parameter: self._builder.shapes[part.parameter] for part in parts}
        mains = [name for name, shape in shapes.items() if sum(size > 1 for size in shape) > 1] or list(shapes)
        found = []
        for name in mains:
            same_rank = len(shapes[name]) == (weight.ndim or len(shapes[name]))
            dims = tuple(range(len(shapes[name]))) if same_rank else None
            found.append(Value(None, weight.at, name, dims, shapes[name] if same_rank else weight.shape))
        return found, [name for name in shapes if name not in mains]

    def _has_norm(self, weight: Value) -> bool:
        """Whether a computed weight was divided by a norm on its way from the parameter."""
        if weight.node is None:
            return False
        kinds = map(self._builder.kind, self._builder.above(weight.node))
        return any(isinstance(kind, Norm) or (isinstance(kind, Power) and kind.exponent < 0) for kind in kinds)

    def _factor(self, weight: Value) -> Number:
        """The number that a computed weight is multiplied with, on its way from the parameter."""
        factor, node = Number(), weight.node
        while node is not None and isinstance(kind := self._builder.kind(node), Unary):
            factor = factor.times(kind.factor) if isinstance(kind, NumberFactor) else factor
            node = kind.input
        return factor

    def _normed(self, node: str, stat: Statistic) -> Value | None:
        """`node` divided by a norm of `stat.node`: a Norm, if it is that node or a product of it with other factors."""
        if node == stat.node:
            return self._add(self.at.name, Norm((node,), stat.summed, stat.power))
        kind = self._builder.kind(node)
        if isinstance(kind, Product) and not kind.contracted:
            for this, other in (kind.inputs, kind.inputs[::-1]):
                if this is not None and (normed := self._normed(this, stat)) is not None:
                    return self.product(normed, Value(other))
        return None

    def _vectors(self, *values: Value | None) -> tuple[str, ...]:
        return tuple(node for v in values if v is not None and (node := self._node(v)) is not None)

    def _layer_name(self, parameter: str) -> str:
        """The parameter's owner; for a second use, the module that uses it (a tied head is called "head")."""
        owner = parameter.removesuffix(".weight")
        taken = self._builder
        return self.path if owner in taken and self.path and self.path not in taken else owner

    def _add(self, name: str, kind: Kind, gains: tuple[str, ...] = ()) -> Value:
        """A new node; `gains` are those of its vectors that multiply, the others are added."""
        return self._value_of(DagNode(name, kind, self.at, self.path, gains))

    def _value_of(self, node: DagNode) -> Value:
        """The tensor of a new node."""
        return Value(self._builder.add(node), self.at, shape=shape_of(self.at))


def _missing(x: Value, y: Value) -> tuple[Dim, ...]:
    """The dims of y along which x is repeated when both are multiplied entry by entry."""
    if x.shape is None or y.shape is None:
        return ()
    repeated = [i for i in range(-len(y.shape), 0) if y.shape[i] != 1 and (-i > len(x.shape) or x.shape[i] == 1)]
    return tuple(d for i in repeated if (d := y.dim(i)) is not None)


def _is_zero(constant: Value) -> bool:
    """Whether a constant is made as zeros, is empty or no quantity: what stands beside it keeps its scale."""
    if constant.at is None:
        return False
    if is_discrete(constant.at):  # an index: where to write, not what
        return True
    return 0 in (shape_of(constant.at) or ()) or plain_name(constant.at.target) in ("zeros", "zeros_like", "new_zeros")


_NORMS = ("_WeightNorm", "_SpectralNorm", "_Orthogonal")


def _is_normalised(owner: torch.nn.Module, name: str) -> bool:
    """Whether a weight is computed by torch's weight norm, spectral norm or orthogonal parametrization."""
    registered = getattr(owner, "parametrizations", None)
    if registered is not None and name in registered:
        return any(type(each).__name__ in _NORMS for each in registered[name])
    return hasattr(owner, f"{name}_v") or hasattr(owner, f"{name}_orig")  # the older ones, by hooks

"""Rules of weight ops on vectors: linear maps, lookups in tables, matrix products in any spelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch.nn as nn

from abcfx.rules.elementwise import mul
from abcfx.rules.extents import Dim
from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.values import Value
from abcfx.rules.weight_terms import chained, permuted


@register_rule("linear")
def linear(op: Op, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Handle F.linear, x @ weight.T + bias: a layer with fan_in the last dim of the weight, fan_out the first."""
    return op.layer(x, weight, fan_in=[-1], fan_out=[-2], bias=bias)


@register_rule(nn.Linear)
def linear_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of nn.Linear: a layer with its weight (out, in), summed over `in`, and its bias."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return linear(op, x, weight, op.parameter(module, "bias"))


@register_rule("embedding_bag")
def embedding_bag(
    op: Op,
    x: Value,
    y: Value,
    offsets: object = None,
    *rest: object,
    per_sample_weights: object = None,
) -> Value | tuple[Value, ...]:
    """Handle F.embedding_bag: the mean or sum of rows of a table, each times its own weight if weights are given.

    The result has the columns of the table and entries as large as the table's: it is a lookup, a layer without fan_in.
    """
    out = embedding(op, x, y)
    position = 5 if x.is_constant else 3  # F.embedding_bag takes (ids, table), aten.embedding_bag (table, ids)
    weights = rest[position] if len(rest) > position else per_sample_weights
    if isinstance(weights, Value) and not weights.is_constant:
        out = op.product(out, weights)
    val = op.at.meta.get("val")
    return (out, *(op.constant() for _ in val[1:])) if isinstance(val, tuple | list) else out


@register_rule("embedding")
def embedding(op: Op, x: Value, y: Value, *_: object) -> Value:
    """Handle a table lookup, F.embedding(ids, table) or aten.embedding(table, ids): a layer without fan_in.

    The result has the columns of the table as its last dim, and entries as large as the table's.
    """
    return op.layer(None, y if x.is_constant else x, fan_in=[], fan_out=[1])


@register_rule(nn.Embedding)
def embedding_module(op: Op, module: nn.Module, input: Value) -> Value:
    """Handle a call of nn.Embedding, a lookup in its table: a layer that sums over nothing; fan_out is the columns."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return embedding(op, input, weight)


@register_rule(nn.EmbeddingBag)
def embedding_bag_module(
    op: Op, module: nn.Module, input: Value, offsets: object = None, per_sample_weights: Value | None = None
) -> Value | tuple[Value, ...]:
    """Handle a call of nn.EmbeddingBag, the mean or sum of rows of its table: a lookup, a layer without fan_in."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return embedding_bag(op, input, weight, offsets, per_sample_weights=per_sample_weights)


@register_rule(nn.Bilinear)
def bilinear_module(op: Op, module: nn.Module, x: Value, y: Value) -> Value:
    """Handle a call of nn.Bilinear, x W y + bias: a layer on x, whose result is multiplied by y and summed."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return bilinear(op, x, y, weight, op.parameter(module, "bias"))


@register_rule("weight_norm", "weight_norm_interface")
def weight_norm(op: Op, direction: Value, gain: Value, *_: object) -> Value:
    """Handle torch's weight norm, gain * direction / |direction|: return the parameter `direction`, with its gain."""
    return replace(direction, at=op.at, gains=() if gain.parameter is None else (gain.parameter,), normalised=True)


@register_rule("matmul", "mm", "bmm", "mv", "dot", "smm", "spmm", "dsmm", "hsmm", "hspmm", "sparse_mm")
def matmul(op: Op, x: Value, y: Value) -> Value:
    """Handle x @ y of matrices or vectors: a layer if one of them is a weight, else a product of two activations.

    Both sum over n entries, the last dim of x; at init that makes the RMS entry sqrt(n) times as large.
    """
    if op.is_weight(y) and not op.is_weight(x):
        vector = y.ndim == 1
        paired = {i: i for i in range(-(y.ndim or 0), -2)}
        return op.layer(x, y, fan_in=[0] if vector else [-2], fan_out=[] if vector else [-1], paired=paired)
    if op.is_weight(x) and not op.is_weight(y):
        over, paired = [-1] if y.ndim == 1 else [-2], {i: i for i in range(-(x.ndim or 0), -2)}
        return op.layer(y, x, fan_in=[-1], fan_out=[] if x.ndim == 1 else [-2], over=over, paired=paired)
    contracted = x.dim(-1) or y.dim(-2 if (y.ndim or 2) > 1 else 0)
    rows, columns = _matrix_dim(x, -2), _matrix_dim(y, -1)
    product = op.product(x, y, () if contracted is None else (contracted,), (columns, rows))
    return replace(product, terms=chained(x, y)) if op.is_weight(x) and op.is_weight(y) else product


def _matrix_dim(x: Value, index: int) -> tuple[Dim, ...]:
    """Return the dim at `index` of a matrix or a batch of matrices; () if x is a vector or its shape is unknown."""
    return x.dims_at([index]) if (x.ndim or 0) > 1 else ()


@register_rule("chain_matmul")
def chain_matmul(op: Op, *matrices: Value | Sequence[Value]) -> Value:
    """Handle torch.chain_matmul(x, y, ...) and linalg.multi_dot([x, y, ...]) as x @ y @ ..., from left to right."""
    first, *others = [x for each in matrices for x in ([each] if isinstance(each, Value) else each)]
    for i, other in enumerate(others):
        first = matmul(op, first if i == 0 else replace(first, at=None, shape=None), other)
    return first


@register_rule("rmatmul")
def rmatmul(op: Op, x: Value, y: Value) -> Value:
    """Handle y @ x as Python's reflected operator `__rmatmul__(x, y)` spells it: as matmul(y, x)."""
    return matmul(op, y, x)


@register_rule("inner")
def inner(op: Op, x: Value, y: Value) -> Value:
    """Handle torch.inner, a sum over the last dim of both tensors: a layer if one is a weight, else a product."""
    if op.is_weight(y) and not op.is_weight(x):
        return op.layer(x, y, fan_in=[-1], fan_out=range((y.ndim or 1) - 1))
    if op.is_weight(x) and not op.is_weight(y):
        return inner(op, y, x)
    contracted = x.dim(-1)
    return op.product(x, y, () if contracted is None else (contracted,))


@register_rule("vecdot", "vdot")
def vecdot(op: Op, x: Value, y: Value, dim: int = -1) -> Value:
    """Handle linalg.vecdot, (x * y).sum(dim): a product of two tensors whose dim `dim` is summed over."""
    return op.reduce(mul(op, x, y), dim, mean=False, dims_of=x)


@register_rule("tensordot")
def tensordot(
    op: Op, x: Value, y: Value, dims: int | Sequence[Sequence[int]] | Sequence[int] = 2, dims_of_y: object = None
) -> Value:
    """Handle torch.tensordot, which multiplies two tensors and sums over dims of both.

    It is a layer if one of the two is a weight, else a product of activations. `dims` are those of both; aten's form of
    the op has the dims of x there, and those of y, a list, behind them.
    """
    if isinstance(dims, int):
        of_x, of_y = list(range(-dims, 0)), list(range(dims))
    else:
        of_x, of_y = map(list, cast(Sequence[Sequence[int]], dims if dims_of_y is None else (dims, dims_of_y)))
    if op.is_weight(x) and not op.is_weight(y):
        x, y, of_x, of_y = y, x, of_y, of_x
    if op.is_weight(y) and not op.is_weight(x):
        summed = {i % (y.ndim or 1) for i in of_y}
        fan_out = [i for i in range(y.ndim or 0) if i not in summed]
        return op.layer(x, y, of_y, fan_out, over=of_x)
    return op.product(x, y, x.dims_at(of_x))


@register_rule("addmm", "baddbmm", "addmv", "addbmm", "saddmm", "sspaddmm", "addr")
def addmm(op: Op, added: Value, x: Value, y: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    """Handle torch.addmm and the like, beta * added + alpha * (x @ y): entries as large as the larger term.

    addbmm sums the products of a batch of matrices, addr multiplies two vectors, every entry of one by every entry of
    the other.
    """
    name = plain_name(op.at.target)
    product = {"addr": outer, "addbmm": _batch_sum}.get(str(name), matmul)(op, x, y)
    if alpha != 1:
        product = op.scale(product, op.number(alpha, "alpha"))
    if beta == 0:
        op.disregard(added)
        return product
    return op.merge([product, added if beta == 1 else op.scale(added, op.number(beta, "beta"))])


def _batch_sum(op: Op, x: Value, y: Value) -> Value:
    """Multiply two batches of matrices and sum over the batch, as torch.addbmm: a layer if one of them is a weight."""
    for this, other, inner_dim, kept in ((y, x, 1, 2), (x, y, 2, 1)):
        if op.is_weight(this) and not op.is_weight(other):
            return op.layer(other, this, [0, inner_dim], [kept], over=[0, 3 - inner_dim])
    return op.product(x, y, x.dims_at([0, 2]))


@register_rule("outer", "kron")
def outer(op: Op, x: Value, y: Value) -> Value:
    """Handle torch.outer and the like, products of every entry of x with every entry of y: magnitudes multiply."""
    return op.product(x, y, broadcast=(y.all_dims(), x.all_dims()))


@register_rule("cross")
def cross(op: Op, x: Value, y: Value, dim: int | None = -1) -> Value:
    """Handle torch.cross, the cross product of vectors of three entries: as large as a product entry by entry."""
    return op.product(x, y)


@register_rule("bilinear")
def bilinear(op: Op, x: Value, y: Value, weight: Value, bias: Value | None = None) -> Value:
    """Handle F.bilinear, x W y + bias: a layer on x, whose result is multiplied by y and summed over y's last dim."""
    once = op.layer(x, weight, fan_in=[1], fan_out=[0, 2], inner=True)
    contracted = y.dim(-1)
    out = op.product(once, y, () if contracted is None else (contracted,))
    return out if bias is None else op.merge([out, bias])


@register_rule("einsum")
def einsum(op: Op, equation: str, *operands: Value | Sequence[Value]) -> Value:
    """Handle torch.einsum: contract the operands from left to right, two at a time.

    A pair of which one is a weight is a layer, any other pair a product of activations; letters that nothing later has
    are summed over.
    """
    tensors = [x for each in operands for x in ([each] if isinstance(each, Value) else each)]
    inputs, _, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not output:
        every = inputs.replace(",", "")
        output = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    tensors, letters = _with_gains(op, tensors, letters)
    for k, x in enumerate(tensors):
        tensors[k], letters[k] = _summed_alone(op, x, letters[k], output + "".join(letters[:k] + letters[k + 1 :]))
    value = tensors[0]
    seen = letters[0]
    for k in range(1, len(tensors)):
        later = output + "".join(letters[k + 1 :])
        if k > 1:  # what is made inside the op has no dims that can be looked up
            value = replace(value, at=None, shape=None)
        value = _einsum_pair(op, value, seen, tensors[k], letters[k], later)
        seen = "".join(dict.fromkeys(c for c in seen + letters[k] if c in later))
    return replace(value, terms=permuted(value, (1, 0))) if len(output) == 2 and seen == output[::-1] else value


def _summed_alone(op: Op, x: Value, letters: str, kept: str) -> tuple[Value, str]:
    """Sum one operand of an einsum over the dims that neither the result nor another operand has.

    A weight stays as it is.

    Args:
        op: the op of the traced graph for which a node is added to the layer DAG, a graph of layers and ops.
        x: the operand.
        letters: the letters of its dims.
        kept: the letters of the result and of all other operands.

    Returns:
        The sum, and the letters that it has.
    """
    alone = [c for c in dict.fromkeys(letters) if c not in kept and c != "."]
    if not alone or op.is_weight(x):
        return x, letters
    before, dots, after = letters.partition("...")
    dims = [before.index(c) if c in before or not dots else after.index(c) - len(after) for c in alone]
    summed = op.reduce(x, dims, mean=False)
    return replace(summed, at=None, shape=None), "".join(c for c in letters if c not in alone)


def _with_gains(op: Op, tensors: list[Value], letters: list[str]) -> tuple[list[Value], list[str]]:
    """Multiply the weights of an einsum by the gains among its operands, weights with some of the same letters.

    Args:
        op: the einsum.
        tensors: its operands.
        letters: the letters of the dims of each.

    Returns:
        The operands that are left, and their letters.
    """
    for i, gain in enumerate(tensors):
        for k, weight in enumerate(tensors):
            is_gain = set(letters[i]) < set(letters[k]) and gain.shape is not None and op.is_weight(gain)
            if len(tensors) < 3 or not is_gain or not op.is_weight(weight) or "." in letters[k]:
                continue
            sizes = dict(zip(letters[i], gain.shape or (), strict=True))
            shaped = replace(gain, shape=tuple(sizes.get(c, 1) for c in letters[k]), dims=None)
            product = replace(op.product(weight, shaped), shape=weight.shape)
            left = [j for j in range(len(tensors)) if j != i]
            return _with_gains(op, [product if j == k else tensors[j] for j in left], [letters[j] for j in left])
    return tensors, letters


def _einsum_pair(op: Op, x: Value, x_letters: str, y: Value, y_letters: str, kept: str) -> Value:
    """Contract two operands of an einsum: add a layer if one of them is a weight, else a product.

    Args:
        op: the op of the traced graph for which a node is added to the layer DAG, a graph of layers and ops.
        x: the first operand.
        x_letters: the letters of its dims.
        y: the second operand.
        y_letters: the letters of its dims.
        kept: the letters that the result or later operands have; the others are summed over.
    """
    if op.is_weight(x) and not op.is_weight(y):
        x, x_letters, y, y_letters = y, y_letters, x, x_letters
    contracted = [c for c in y_letters if c in x_letters and c not in kept]

    def position(letters: str, c: str) -> int:
        """Return the index of an einsum operand's dim, given its letter; behind an ellipsis it counts from the end."""
        before, dots, after = letters.partition("...")
        return before.index(c) if c in before or not dots else after.index(c) - len(after)

    if x.node is not None and x.at == y.at and x_letters == y_letters and contracted:  # a sum of squares
        return op.reduce(op.power(x, 2.0), [_from_last(x_letters, c) for c in contracted], mean=False, dims_of=x)
    fan_out = [c for c in y_letters if c in kept and c not in x_letters and c != "."]
    if op.is_weight(y) and not op.is_weight(x) and (contracted or fan_out):
        both = [c for c in y_letters if c in kept and c in x_letters and c != "."]
        return op.layer(
            x,
            y,
            [position(y_letters, c) for c in contracted],
            [position(y_letters, c) for c in fan_out or both],
            over=[_from_last(x_letters, c) for c in contracted],
            paired={position(y_letters, c): _from_last(x_letters, c) for c in both},
            fan_back=None if fan_out else (),
        )

    def missing(x_letters: str, y: Value, y_letters: str) -> tuple[Dim, ...]:
        """Return the dims of y whose einsum letters x does not have."""
        letters = [c for c in y_letters if c not in x_letters and c != "."] if y.ndim is not None else []
        return y.dims_at([position(y_letters, c) for c in letters])

    dims = y.dims_at([position(y_letters, c) for c in contracted])
    broadcast = missing(x_letters, y, y_letters), missing(y_letters, x, x_letters)
    product = op.product(x, y, dims, broadcast)
    if op.is_weight(x) and len(x_letters) == len(y_letters) == 2 and len(contracted) == 1:
        left = x if x_letters[1] in contracted else op.view(x, (1, 0))
        right = y if y_letters[0] in contracted else op.view(y, (1, 0))
        return replace(product, terms=chained(left, right))
    return product


def _from_last(letters: str, c: str) -> int:
    """Return the index of an einsum operand's dim, given its letter, counted from the last dim.

    Dims before an ellipsis are counted from the first.
    """
    before, dots, after = letters.partition("...")
    return before.index(c) if dots and c in before else (after or before).index(c) - len(after or before)

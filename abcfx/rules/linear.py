"""Rules of weight ops on vectors: linear maps, lookups in tables, matrix products in any spelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn as nn

from abcfx.rules.extents import Dim, Number
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value
from abcfx.rules.weight_terms import chained, permuted


@register_rule("linear")
def linear(op: Op, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Add x @ weight.T + bias (`F.linear`) as a layer to the layer DAG. The last dim of the weight is summed over."""
    return op.layer(x, weight, fan_in=[-1], fan_out=[-2], bias=bias)


@register_rule(nn.Linear)
def linear_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of nn.Linear in the traced graph: add its weight and bias as a layer, as for `F.linear`."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return linear(op, x, weight, op.parameter(module, "bias"))


@register_rule("embedding_bag")
def embedding_bag(
    op: Op, x: Value, y: Value, offsets: object = None, *rest: object, **options: object
) -> Value | tuple[Value, ...]:
    """Handle F.embedding_bag: the mean or sum of rows of a table, each times its own weight if weights are given."""
    out = embedding(op, x, y)
    position = 5 if x.is_constant else 3  # F.embedding_bag takes (ids, table), aten.embedding_bag (table, ids)
    weights = options.get("per_sample_weights", rest[position] if len(rest) > position else None)
    if isinstance(weights, Value) and not weights.is_constant:
        out = op.product(out, weights)
    val = op.at.meta.get("val")
    return (out, *(op.constant() for _ in val[1:])) if isinstance(val, tuple | list) else out


@register_rule("embedding")
def embedding(op: Op, x: Value, y: Value, *_: object, **__: object) -> Value:
    """Handle F.embedding(ids, table) and aten.embedding(table, ids): add the table as a layer that looks up rows."""
    return op.layer(None, y if x.is_constant else x, fan_in=[], fan_out=[1])


@register_rule(nn.Embedding)
def embedding_module(op: Op, module: nn.Module, input: Value) -> Value:
    """Handle a call of nn.Embedding: add its table as a layer that looks up rows, without a dim that is summed over."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return embedding(op, input, weight)


@register_rule(nn.EmbeddingBag)
def embedding_bag_module(
    op: Op, module: nn.Module, input: Value, offsets: object = None, per_sample_weights: Value | None = None
) -> Value | tuple[Value, ...]:
    """Handle a call of nn.EmbeddingBag, the mean or sum of rows of its table, as the function `F.embedding_bag`."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return embedding_bag(op, input, weight, offsets, per_sample_weights=per_sample_weights)


@register_rule(nn.Bilinear)
def bilinear_module(op: Op, module: nn.Module, x: Value, y: Value) -> Value:
    """Handle nn.Bilinear, x W y + bias, as a layer on x whose result is multiplied with y and summed."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    once = op.layer(x, weight, fan_in=[1], fan_out=[0, 2], inner=True)
    contracted = y.dim(-1)
    out = op.product(once, y, () if contracted is None else (contracted,))
    bias = op.parameter(module, "bias")
    return out if bias is None else op.merge([out, bias])


@register_rule("weight_norm", "weight_norm_interface")
def weight_norm(op: Op, direction: Value, gain: Value, *_: object) -> Value:
    """Return the weight of weight norm, gain * direction / |direction|, as the parameter `direction` with a gain."""
    return replace(direction, at=op.at, gains=() if gain.parameter is None else (gain.parameter,), normalised=True)


@register_rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(op: Op, x: Value, y: Value) -> Value:
    """Handle x @ y of matrices or vectors: a layer if one of them is a weight, else a product of two activations."""
    if op.is_weight(y) and not op.is_weight(x):
        vector = y.ndim == 1
        paired = {i: i for i in range(-(y.ndim or 0), -2)}
        return op.layer(x, y, fan_in=[0] if vector else [-2], fan_out=[] if vector else [-1], paired=paired)
    if op.is_weight(x) and not op.is_weight(y):
        over, paired = [-1] if y.ndim == 1 else [-2], {i: i for i in range(-(x.ndim or 0), -2)}
        return op.layer(y, x, fan_in=[-1], fan_out=[] if x.ndim == 1 else [-2], over=over, paired=paired)
    contracted = x.dim(-1)
    rows, columns = _matrix_dim(x, -2), _matrix_dim(y, -1)
    product = op.product(x, y, () if contracted is None else (contracted,), (columns, rows))
    return replace(product, terms=chained(x, y)) if op.is_weight(x) and op.is_weight(y) else product


def _matrix_dim(x: Value, index: int) -> tuple[Dim, ...]:
    """Return the dim at `index` of a matrix or batch of matrices; none if x is a vector or its shape is unknown."""
    return x.dims_at([index]) if (x.ndim or 0) > 1 else ()


@register_rule(
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_fftn", "fft_ifftn", "fft_rfftn"
)
def fourier(op: Op, x: Value, *args: object, **kwargs: object) -> Value:
    """Handle a Fourier transform: apart from a factor sqrt(n), n the size of its dims, it keeps the size of x."""
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if isinstance(dims, list | tuple):
        over = x.dims_at(dims)
    else:
        over = x.dims_at([dims]) if isinstance(dims, int) else x.all_dims()
    return op.scale(x, Number(tuple((d, 0.5) for d in over))) if over else op.same(x)


@register_rule("linalg_solve_triangular", "solve_triangular")
def solve_triangular(op: Op, matrix: Value, x: Value, *_: object, **__: object) -> Value:
    """Handle solve_triangular as a product of x with the inverse matrix, whose entries are taken as order 1."""
    return op.product(op.pointwise(matrix), x)


@register_rule("addmm", "baddbmm", "addbmm", "addmv")
def addmm(op: Op, bias: Value, x: Value, y: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    """Handle addmm(bias, x, y), beta * bias + alpha * x @ y, as a matrix product, scaled by alpha, and a sum."""
    product = matmul(op, x, y)
    return op.merge([product if alpha == 1 else op.scale(product, op.scalar("alpha")), bias])


@register_rule("einsum")
def einsum(op: Op, equation: str, *operands: Value | Sequence[Value]) -> Value:
    """Handle torch.einsum: contract the operands from left to right, two at a time; a pair with one weight is a
    layer.
    """
    tensors = [x for each in operands for x in ([each] if isinstance(each, Value) else each)]
    inputs, _, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not output:
        every = inputs.replace(",", "")
        output = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    value = tensors[0]
    seen = letters[0]
    for k in range(1, len(tensors)):
        later = output + "".join(letters[k + 1 :])
        if k > 1:  # what is made inside the op has no dims that can be looked up
            value = replace(value, at=None, shape=None)
        value = _einsum_pair(op, value, seen, tensors[k], letters[k], later)
        seen = "".join(dict.fromkeys(c for c in seen + letters[k] if c in later))
    return replace(value, terms=permuted(value, (1, 0))) if len(output) == 2 and seen == output[::-1] else value


def _einsum_pair(op: Op, x: Value, x_letters: str, y: Value, y_letters: str, kept: str) -> Value:
    """Contract two operands of an einsum: add a layer if one of them is a weight, else a product.

    Args:
        op: the op in whose place the node stands.
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
        """Return the index of the dim with this letter, counted from the end behind an ellipsis."""
        before, dots, after = letters.partition("...")
        return before.index(c) if c in before or not dots else after.index(c) - len(after)

    if op.is_weight(y) and not op.is_weight(x):
        fan_out = [c for c in y_letters if c in kept and c not in x_letters and c != "."]
        both = [c for c in y_letters if c in kept and c in x_letters and c != "."]
        return op.layer(
            x,
            y,
            [position(y_letters, c) for c in contracted],
            [position(y_letters, c) for c in fan_out],
            over=[_from_last(x_letters, c) for c in contracted],
            paired={position(y_letters, c): _from_last(x_letters, c) for c in both},
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
    """Return the index of a dim, counted from the last one; letters before an ellipsis are counted from the first."""
    before, dots, after = letters.partition("...")
    return before.index(c) if dots and c in before else (after or before).index(c) - len(after or before)

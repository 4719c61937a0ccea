"""Rules of normalisation. Norms that are written out need none: `Op.product` recognises x times 1/rms(x)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch.nn as nn

from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.values import Dims, Value


@register_rule("layer_norm", "group_norm")
def layer_norm(
    op: Op, x: Value, shape_or_groups: object, weight: Value | None = None, bias: Value | None = None, *_: object
) -> Value:
    """Handle layer_norm(x, shape, weight, bias) and group_norm: the result is of order 1, however large x is."""
    return op.norm(x, weight, bias)


@register_rule("rms_norm")
def rms_norm(op: Op, x: Value, shape: object, weight: Value | None = None, eps: object = None) -> Value:
    """Handle F.rms_norm, x divided by its RMS entry and multiplied by a gain: of order 1, however large x is."""
    return op.norm(x, weight)


@register_rule("batch_norm", "instance_norm")
def batch_norm(
    op: Op,
    x: Value,
    first: Value | None = None,
    second: Value | None = None,
    third: Value | None = None,
    fourth: Value | None = None,
    *_: object,
) -> Value:
    """Handle F.batch_norm(x, mean, var, gain, bias) or aten's (x, gain, bias, mean, var): the result is of order 1."""
    learned = [v for v in (first, second, third, fourth) if v is not None and not v.is_constant]
    aten_order = first in learned or second in learned
    gain, bias = (first, second) if aten_order else (third, fourth)
    return op.norm(x, gain if gain in learned else None, bias if bias in learned else None)


@register_rule("native_layer_norm", "native_batch_norm", "native_batch_norm_legit", "cudnn_batch_norm")
def native_norm(op: Op, x: Value, *args: object) -> tuple[Value, ...]:
    """Handle aten.native_layer_norm and its kin: x normalised, of order 1, its mean, and 1 / its standard deviation."""
    first = 1 if plain_name(op.at.target) == "native_layer_norm" else 0
    out = batch_norm(op, x, *(v if isinstance(v, Value) else None for v in args[first : first + 2]))
    return out, op.pointwise(x), op.pointwise(x)


@register_rule("native_group_norm")
def native_group_norm(op: Op, x: Value, gain: Value | None, bias: Value | None, *_: object) -> tuple[Value, ...]:
    """Handle aten.native_group_norm: return x normalised, of order 1, its mean, and 1 / its standard deviation."""
    return op.norm(x, gain, bias), op.pointwise(x), op.pointwise(x)


@register_rule(
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
def norm_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d and the like: the result is of order 1."""
    return op.norm(x, op.parameter(module, "weight"), op.parameter(module, "bias"))


@register_rule("normalize")
def normalize(op: Op, x: Value, p: float = 2.0, dim: int = 1, *_: object) -> Value:
    """Handle F.normalize(x, p, dim), x over its p-norm along a dim of n entries: the result is ~ n^(-1/p)."""
    return op.product(x, op.power(vector_norm(op, x, p, dim), -1.0))


@register_rule("cosine_similarity")
def cosine_similarity(op: Op, x: Value, y: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    """Handle F.cosine_similarity: divide x and y by their norms over `dim`, then multiply them and sum over it.

    The result is without that dim, and at most 1.
    """
    product = op.product(normalize(op, x, 2.0, dim), normalize(op, y, 2.0, dim))
    return op.reduce(product, dim, mean=False, dims_of=x)


@register_rule("norm", "vector_norm", "linalg_vector_norm", "linalg_norm", "frobenius_norm", "linalg_matrix_norm")
def vector_norm(op: Op, x: Value, ord: object = 2, dim: Dims = None, *_: object) -> Value:
    """Handle torch.linalg.vector_norm and the like, (sum of |x|^p over dims)^(1/p), which for n entries is ~ n^(1/p).

    Of the norms of matrices only the Frobenius norm is such a sum; others need matrices of a fixed shape, and are as
    large as their entries.
    """
    if plain_name(op.at.target) == "linalg_matrix_norm":
        dim = (-2, -1) if dim is None else dim
        if ord not in ("fro", 2):
            return op.nonlinear(op.fixed(x, [dim] if isinstance(dim, int) else dim))
    if isinstance(ord, int | float) and ord in (math.inf, -math.inf, 0):
        return op.same(x) if ord else op.constant()
    power = float(ord) if isinstance(ord, int | float) else 2.0
    return op.power(op.reduce(op.power(x, power), dim, mean=False, dims_of=x), 1.0 / power)


@register_rule("norm_except_dim")
def norm_except_dim(op: Op, x: Value, pow: int = 2, dim: int = 0) -> Value:
    """Handle torch.norm_except_dim, the p-norm of a weight over all dims but one, by which weight norm divides.

    Over n entries the result is n^(1/p) times as large as an entry.
    """
    return vector_norm(op, x, pow, [i for i in range(x.ndim or 0) if i != dim])


@register_rule("nuclear_norm")
def nuclear_norm(op: Op, x: Value, *_: object) -> Value:
    """Handle the nuclear norm of a matrix of a fixed shape: as large as its entries."""
    return op.nonlinear(op.fixed(x, (-2, -1)))


@register_rule("renorm")
def renorm(op: Op, x: Value, *_: object) -> Value:
    """Handle torch.renorm, which shortens rows that are longer than a number: entries stay as large as they are."""
    return op.nonlinear(x)


@register_rule("dist", "pairwise_distance")
def distance(op: Op, x: Value, y: Value, p: float = 2.0, *_: object) -> Value:
    """Handle F.pairwise_distance, the p-norm of x - y over the last dim, and torch.dist, the same over all dims.

    Over n entries the result is n^(1/p) times as large as an entry of x - y.
    """
    dim = None if plain_name(op.at.target) == "dist" else -1
    return _distance(op, x, op.merge([x, y]), p, dim)


@register_rule("cdist")
def cdist(op: Op, x: Value, y: Value, p: float = 2.0, *_: object) -> Value:
    """Handle torch.cdist, p-norms of x_i - y_j for all rows of two matrices: n^(1/p) times an entry, for n columns."""
    return _distance(op, x, op.merge([x, y]), p, -1)


@register_rule("pdist")
def pdist(op: Op, x: Value, p: float = 2.0) -> Value:
    """Handle F.pdist, p-norms of x_i - x_j for all rows of a matrix: n^(1/p) times an entry, for n columns."""
    return _distance(op, x, x, p, -1)


def _distance(op: Op, x: Value, difference: Value, p: float, dim: int | None) -> Value:
    """Return the p-norm of a difference of tensors, over one dim of x or, if `dim` is None, over all of its dims."""
    total = op.reduce(op.power(replace(difference, statistic=None), p), dim, mean=False, dims_of=x)
    return op.power(replace(total, statistic=None), 1.0 / p)

"""Rules of normalisation. Norms that are written out need none: `Op.product` recognises x times 1/rms(x)."""

from __future__ import annotations

import torch.nn as nn

from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Dims, Value


@register_rule("layer_norm", "rms_norm", "group_norm")
def layer_norm(
    op: Op,
    x: Value,
    shape_or_groups: object,
    weight: Value | None = None,
    bias: Value | None = None,
    *_: object,
    **__: object,
) -> Value:
    """Handle layer_norm(x, shape, weight, bias), rms_norm(x, shape, weight, eps) and group_norm: add a norm of x."""
    return op.norm(x, weight, bias if isinstance(bias, Value) else None)


@register_rule("batch_norm", "instance_norm")
def batch_norm(
    op: Op,
    x: Value,
    first: object = None,
    second: object = None,
    third: object = None,
    fourth: object = None,
    *_: object,
    **__: object,
) -> Value:
    """Handle F.batch_norm(x, mean, var, gain, bias) and aten's (x, gain, bias, mean, var): add a norm of x.

    Gain and bias are told from the running mean and variance in that they are parameters, while those are buffers.
    """
    pairs = [[v if isinstance(v, Value) else None for v in pair] for pair in ((first, second), (third, fourth))]
    gain, bias = next((pair for pair in pairs if any(v and not v.is_constant for v in pair)), (None, None))
    return op.norm(x, gain, bias)


@register_rule(
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
def norm_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d and the like: add a norm with its gain and bias."""
    return op.norm(x, op.parameter(module, "weight"), op.parameter(module, "bias"))


@register_rule("normalize")
def normalize(op: Op, x: Value, p: float = 2.0, dim: int = 1, **_: object) -> Value:
    """Handle F.normalize(x, p, dim): x times 1 / (its p-norm over a dim), which is recognised as a norm."""
    return op.product(x, op.power(vector_norm(op, x, p, dim), -1.0))


@register_rule("cosine_similarity")
def cosine_similarity(op: Op, x: Value, y: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    """Handle F.cosine_similarity: divide x and y by their norms over `dim`, then multiply them and sum over it."""
    over = x.dim(dim)
    return op.product(normalize(op, x, 2.0, dim), normalize(op, y, 2.0, dim), () if over is None else (over,))


@register_rule("norm", "vector_norm", "linalg_vector_norm", "linalg_norm", "frobenius_norm")
def vector_norm(op: Op, x: Value, ord: object = 2, dim: Dims = None, *_: object, **__: object) -> Value:
    """Handle the norm of x over dims, (sum of x ** p) ** (1 / p) with p = 1 or, for any other `ord`, 2."""
    power = 1.0 if ord == 1 else 2.0
    return op.power(op.reduce(op.power(x, power), dim, mean=False, dims_of=x), 1.0 / power)

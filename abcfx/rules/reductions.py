"""Rules of softmax, of means, sums and products over dims, and of the largest entries along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch.nn as nn

from abcfx.rules.elementwise import div
from abcfx.rules.extents import Number
from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.values import UNKNOWN_SIZE, Dims, Value


@register_rule("max", "min")
def extremum_or_largest(op: Op, x: Value, y: object = None, *_: object) -> Value | tuple[Value, ...]:
    """Handle max(x) and max(x, dim), the largest entry of x, and max(x, y): entries as large as in x or y.

    With a dim, the indices of the largest entries are a second result, a constant.
    """
    if isinstance(y, Value):
        return op.merge([x, y])
    return op.same(x) if y is None else (op.same(x), op.constant())


@register_rule("amax", "amin", "quantile", "nanquantile", "msort")
def extremum(op: Op, x: Value, *_: object, dim: object = None) -> Value:
    """Handle the largest, smallest or a middle entry along a dim: as large as entries of x, and changing as they do."""
    return op.same(x)


@register_rule("aminmax")
def aminmax(op: Op, x: Value, *, dim: object = None) -> tuple[Value, Value]:
    """Handle torch.aminmax: return the least and the largest entry, both as large as entries of x."""
    return op.same(x), op.same(x)


@register_rule("logsumexp")
def logsumexp(op: Op, x: Value, dim: Sequence[int] | int, *_: object) -> Value:
    """Handle torch.logsumexp: entries as large as those of x, and changing as they do in training.

    The result is marked, so that x minus it is recognised as a log_softmax: its exp sums to 1 over `dim`.
    """
    return op.log_total(x, dim)


@register_rule("logcumsumexp")
def logcumsumexp(op: Op, x: Value, dim: int) -> Value:
    """Handle torch.logcumsumexp, log of the running sum of exp(x) along a dim: as large as entries of x."""
    return op.nonlinear(x)


@register_rule("cumsum", "cumulative_trapezoid")
def cumsum(op: Op, x: Value, dim: object = -1, *_: object, dx: object = 1) -> Value:
    """Handle a running sum along a dim of n entries: entries n times as large as in x, since all may have one sign."""
    over = x.dim(dim) if isinstance(dim, int) else None
    return op.same(x) if over is None else op.scale(x, Number(((over, 1.0),)))


@register_rule("prod", "cumprod")
def prod(op: Op, x: Value, dim: int | None = None, *_: object) -> Value:
    """Handle torch.prod and cumprod, products of the n entries along a dim that does not grow: entries as of x ** n."""
    dims = range(x.ndim or 0) if dim is None else [dim]
    count = math.prod(x.shape[i] for i in dims) if x.shape is not None else UNKNOWN_SIZE
    held = op.fixed(x, dims)
    if count < 1 or plain_name(op.at.target) == "cumprod":  # a running product begins with x itself
        return op.nonlinear(held)
    return op.power(replace(held, statistic=None), float(count))


@register_rule("softmax", "log_softmax", "softmin")
def softmax(op: Op, x: Value, dim: int | None = None, *_: object) -> Value:
    """Handle a softmax or log_softmax of x over `dim`: ~ 1 / n over a dim of n entries that grows with the width.

    A dim that is None is chosen as torch chooses it.
    """
    return op.softmax(x, _softmax_dim(x, dim), is_log=plain_name(op.at.target) == "log_softmax")


def _softmax_dim(x: Value, dim: int | None) -> int:
    """Return the dim of a softmax; if it is None, the one that torch chooses by the number of dims, 0 or 1."""
    if dim is not None:
        return dim
    return 0 if x.ndim in (0, 1, 3) else 1


@register_rule("gumbel_softmax")
def gumbel_softmax(op: Op, x: Value, tau: object = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Value:
    """Handle F.gumbel_softmax, a softmax of x / tau with noise, as large as a softmax over `dim`."""
    return op.softmax(x if tau == 1 else div(op, x, tau), dim)


@register_rule(nn.Softmax, nn.LogSoftmax)
def softmax_module(op: Op, module: nn.Softmax | nn.LogSoftmax, x: Value) -> Value:
    """Handle a call of nn.Softmax or nn.LogSoftmax, as large as 1 / n over a dim of n entries that grows."""
    return op.softmax(x, _softmax_dim(x, module.dim), is_log=isinstance(module, nn.LogSoftmax))


@register_rule("mean", "nanmean")
def mean(op: Op, x: Value, dim: Dims = None, *_: object) -> Value:
    """Handle the mean of x over dims (all if None): as large as an entry of x, since entries may all have one sign."""
    return op.reduce(x, dim, mean=True)


@register_rule("sum", "nansum")
def sum_(op: Op, x: Value, dim: Dims = None, *_: object) -> Value:
    """Handle the sum of x over dims (all if None): n times as large over n entries, which may all have one sign."""
    return op.reduce(x, dim, mean=False)


@register_rule("trapezoid")
def trapezoid(op: Op, y: Value, x: object = None, *_: object, dx: object = 1, dim: int = -1) -> Value:
    """Handle torch.trapezoid(y, x), the integral of y over x along a dim: entries as large as the sum of y over it."""
    return op.reduce(y, dim, mean=False)


@register_rule("var")
def var(op: Op, x: Value, dim: Dims | bool = None, *_: object) -> Value:
    """Handle the variance of x over dims (all if None): as large as squares of the entries of x."""
    return op.spread(x, None if isinstance(dim, bool) else dim, 1.0)  # var(x, unbiased) reduces all dims


@register_rule("std")
def std(op: Op, x: Value, dim: Dims | bool = None, *_: object) -> Value:
    """Handle the standard deviation of x over dims (all if None): as large as the entries of x."""
    return op.spread(x, None if isinstance(dim, bool) else dim, 0.5)


@register_rule("var_mean", "std_mean")
def spread_and_mean(
    op: Op, x: Value, dim: Dims | bool = None, *_: object, correction: object = 1
) -> tuple[Value, Value]:
    """Handle var_mean and std_mean over dims: return the variance or standard deviation of x, and its mean."""
    spread = var if plain_name(op.at.target) == "var_mean" else std
    return spread(op, x, dim), op.reduce(x, None if isinstance(dim, bool) else dim, mean=True)

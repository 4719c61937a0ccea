"""Rules of ops that work entry by entry, of softmax, and of means and sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn as nn

from abcfx.rules.extents import Number
from abcfx.rules.op import Op
from abcfx.rules.op_properties import FORGETS_SIZE, HOMOGENEOUS, KEEPS_ZERO
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.values import Dims, Simplex, Value


@register_rule(*HOMOGENEOUS)
def homogeneous(op: Op, x: Value, *_: object, **__: object) -> Value:
    """Handle a function phi with phi(kx) = k phi(x) for k > 0, such as relu or dropout.

    Entries keep their size and their change in training.
    """
    return op.same(x)


@register_rule(nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def homogeneous_module(op: Op, module: nn.Module, x: Value, *_: object) -> Value:
    """Handle a call of a module such as nn.ReLU or nn.Dropout that computes phi with phi(kx) = k phi(x) for k > 0."""
    return op.same(x)


@register_rule(*KEEPS_ZERO)
def keeps_zero(op: Op, x: Value, *_: object, **__: object) -> Value:
    """Handle a function phi with phi(0) = 0 but phi(kx) != k phi(x), such as gelu.

    Entries keep their size and their change in training, and a larger copy of the model must keep the size of x.
    """
    return op.nonlinear(x)


@register_rule(
    nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Softsign,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
def keeps_zero_module(op: Op, module: nn.Module, x: Value, *_: object) -> Value:
    """Handle a call of a module such as nn.GELU that computes phi with phi(0) = 0 but phi(kx) != k phi(x)."""
    return op.nonlinear(x)


@register_rule(*FORGETS_SIZE)
def forgets_size(op: Op, x: Value, *_: object, **__: object) -> Value:
    """Handle a function phi with phi(0) != 0, such as sigmoid or cos: its result is of order 1, however small x is."""
    return op.pointwise(x)


@register_rule("exp")
def exp(op: Op, x: Value) -> Value:
    """Handle exp(x): of order 1, or like a softmax where x holds logarithms of entries that sum to 1."""
    return op.exponential(x)


@register_rule(nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus, nn.Threshold)
def forgets_size_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of a module such as nn.Sigmoid that computes phi with phi(0) != 0: its result is of order 1."""
    return op.pointwise(x)


@register_rule("prelu")
def prelu(op: Op, x: Value, slope: Value) -> Value:
    """Handle F.prelu as a sum of x and x times the learned slope."""
    return op.merge([x, op.product(op.same(x), slope)])


@register_rule(nn.PReLU)
def prelu_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of nn.PReLU as a sum of x and x times its learned slope."""
    slope = op.parameter(module, "weight")
    assert slope is not None
    return prelu(op, x, slope)


@register_rule("glu")
def glu(op: Op, x: Value, dim: int = -1) -> Value:
    """Handle F.glu: x is cut in two halves along `dim`, and the first is multiplied by the sigmoid of the second."""
    content, gate = op.split(x, 2, dim)
    return op.product(content, op.pointwise(gate))


@register_rule(nn.GLU)
def glu_module(op: Op, module: nn.GLU, x: Value) -> Value:
    """Handle a call of nn.GLU as the function `F.glu`."""
    return glu(op, x, module.dim)


@register_rule("add", "sub", "rsub", "maximum", "minimum", "max", "min", "lerp", "logaddexp")
def add(op: Op, x: object, y: object = None, *_: object, **__: object) -> Value | tuple[Value, ...]:
    """Handle add, max and the like of two tensors as a merge, whose largest input dominates.

    max(x) and max(x, dim) keep the size of x and its change in training.
    """
    if not isinstance(x, Value) or not isinstance(y, Value):
        tensor = x if isinstance(x, Value) else y
        assert isinstance(tensor, Value)
        reduces = _reduces(op) and y is not None
        return (op.same(tensor), op.constant()) if reduces else op.same(tensor) if y is None else op.nonlinear(tensor)
    for tensor, other in ((x, y), (y, x)):
        stat = other.statistic
        if stat is not None and stat.reduced and stat.degree == 1 and stat.node == tensor.node:
            return op.same(tensor)  # x - mean(x): centred, still x
        if other.log_total and other.node == tensor.node:  # logarithms of weights; their own potentials add up
            if tensor.log_total:
                return replace(op.same(tensor), log_total=(*tensor.log_total, *other.log_total))
            logs = tensor.simplex if tensor.simplex is not None and tensor.simplex.is_log else Simplex(is_log=True)
            return replace(op.same(tensor), simplex=logs.divided(other.log_total))
    return op.merge([x, y])


def _reduces(op: Op) -> bool:
    """Whether the op is torch's max or min, where a number after the tensor is the dim to reduce."""
    return str(getattr(op.at.target, "__name__", op.at.target)) in ("max", "min")


@register_rule("amax", "amin", "quantile")
def extremum(op: Op, x: Value, *_: object, **__: object) -> Value:
    """Handle the largest, smallest or a middle entry along a dim: its size and change in training are those of x."""
    return op.same(x)


@register_rule("logsumexp")
def logsumexp(op: Op, x: Value, dim: Sequence[int] | int, *_: object, **__: object) -> Value:
    """Handle torch.logsumexp, and remember that x minus the result holds logarithms of entries that sum to 1."""
    return op.log_total(x, dim)


@register_rule(
    "argmax", "argmin", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full", "new_empty", "dim", "numel",
    "is_floating_point", "argsort", "bucketize", "storage_offset", "sym_storage_offset", "stride", "sym_stride",
)  # fmt: skip
def constant(op: Op, *_: object, **__: object) -> Value:
    """Handle an op whose result training does not change: an index, a comparison, a new tensor of zeros, a number."""
    return op.constant()


@register_rule("mul")
def mul(op: Op, x: object, y: object) -> Value:
    """Handle x * y: a square if they are one tensor, a scaling if one is a number, else a product entry by entry."""
    if isinstance(x, Value) and isinstance(y, Value):
        if x.node is not None and x.node == y.node and x.statistic == y.statistic:
            return op.power(x, 2.0)
        for one, other in ((x, y), (y, x)):
            if (number := op.constant_number(other)) is not None:
                return op.scale(one, number)
        return op.product(x, y)
    tensor, factor, key = (x, y, 1) if isinstance(x, Value) else (y, x, 0)
    assert isinstance(tensor, Value)
    return op.scale(tensor, factor if isinstance(factor, Number) else op.scalar(key))


@register_rule("div")
def div(op: Op, x: object, y: object, **_: object) -> Value:
    """Handle x / y: a scaling by 1 / y if y is a number, else a product with y ** -1."""
    if isinstance(y, Value) and isinstance(x, Value) and (number := op.constant_number(y)) is not None:
        return op.scale(x, number.power(-1.0))
    if isinstance(y, Value):
        inverse = op.power(y, -1.0) if y.node is not None else y
        return op.product(x, inverse) if isinstance(x, Value) else inverse
    assert isinstance(x, Value)
    return op.scale(x, (y if isinstance(y, Number) else op.scalar(1)).power(-1.0))


@register_rule("pow")
def power(op: Op, x: object, exponent: object) -> Value:
    """Handle x ** exponent for a number `exponent`; with a tensor as exponent, the result is taken to be of order 1."""
    if isinstance(x, Value) and isinstance(exponent, int | float):
        return op.power(x, float(exponent))
    tensor = exponent if isinstance(exponent, Value) else x
    assert isinstance(tensor, Value)
    return op.pointwise(tensor)


@register_rule("square")
def square(op: Op, x: Value) -> Value:
    """Handle x ** 2."""
    return op.power(x, 2.0)


@register_rule("sqrt")
def sqrt(op: Op, x: Value) -> Value:
    """Handle x ** 0.5."""
    return op.power(x, 0.5)


@register_rule("rsqrt")
def rsqrt(op: Op, x: Value) -> Value:
    """Handle x ** -0.5."""
    return op.power(x, -0.5)


@register_rule("reciprocal")
def reciprocal(op: Op, x: Value) -> Value:
    """Handle 1 / x."""
    return op.power(x, -1.0)


@register_rule("where")
def where(op: Op, condition: Value, x: object, y: object) -> Value:
    """Handle torch.where(condition, x, y) as a merge of x and y, whose larger one dominates."""
    return op.merge([v for v in (x, y) if isinstance(v, Value)])


@register_rule("softmax", "log_softmax", "gumbel_softmax", "softmin")
def softmax(op: Op, x: Value, dim: int | None = None, *_: object, **__: object) -> Value:
    """Handle a softmax or log_softmax of x over `dim` (the last one if None)."""
    return op.softmax(x, -1 if dim is None else dim, is_log=plain_name(op.at.target) == "log_softmax")


@register_rule(nn.Softmax, nn.LogSoftmax)
def softmax_module(op: Op, module: nn.Softmax | nn.LogSoftmax, x: Value) -> Value:
    """Handle a call of nn.Softmax or nn.LogSoftmax over its dim."""
    return op.softmax(x, -1 if module.dim is None else module.dim, is_log=isinstance(module, nn.LogSoftmax))


@register_rule("mean")
def mean(op: Op, x: Value, dim: Dims = None, *_: object, **__: object) -> Value:
    """Handle the mean of x over dims (all if None)."""
    return op.reduce(x, dim, mean=True)


@register_rule("sum")
def sum_(op: Op, x: Value, dim: Dims = None, *_: object, **__: object) -> Value:
    """Handle the sum of x over dims (all if None)."""
    return op.reduce(x, dim, mean=False)


@register_rule("var")
def var(op: Op, x: Value, dim: Dims = None, *_: object, **__: object) -> Value:
    """Handle the variance of x over dims (all if None)."""
    return op.spread(x, dim, 1.0)


@register_rule("std")
def std(op: Op, x: Value, dim: Dims = None, *_: object, **__: object) -> Value:
    """Handle the standard deviation of x over dims (all if None)."""
    return op.spread(x, dim, 0.5)


@register_rule(
    "cross_entropy", "cross_entropy_loss", "nll_loss", "nll_loss_nd", "mse_loss", "l1_loss", "smooth_l1_loss",
    "huber_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy", "kl_div",
)  # fmt: skip
def loss(op: Op, x: Value, target: object, *_: object, **__: object) -> Value:
    """Handle a loss: its size and change in training are those of its inputs; a regression loss is a mean."""
    both = op.nonlinear(op.merge([v for v in (x, target) if isinstance(v, Value)]))
    averages = plain_name(op.at.target) in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
    return op.reduce(both, None, mean=True, dims_of=x) if averages else both


@register_rule(nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.BCEWithLogitsLoss)
def loss_module(op: Op, module: nn.Module, x: Value, target: object) -> Value:
    """Handle a call of a loss module as its function."""
    return loss(op, x, target)

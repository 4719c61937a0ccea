"""Rules of ops that work entry by entry."""

from __future__ import annotations

from dataclasses import replace

import torch.nn as nn

from abcfx.rules.op import Op
from abcfx.rules.op_properties import FORGETS_SIZE, HOMOGENEOUS, KEEPS_ZERO
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.segments import passed_on
from abcfx.rules.values import Simplex, Value


@register_rule(*HOMOGENEOUS)
def homogeneous(op: Op, x: Value, *_: object) -> Value:
    """Handle a function phi with phi(kx) = k phi(x) for k > 0, such as relu or dropout.

    Entries, and their change in training, stay as large as they are.
    """
    return passed_on(x, op.same(x), op.at)


@register_rule("to", "type_as", "float", "half")
def cast(op: Op, x: Value, *like: object) -> Value:
    """Handle x.to(...) and x.type_as(y), x in another dtype or on another device: entries stay as large as they are."""
    op.disregard(*like)  # of another tensor the dtype and device count
    return op.same(x)


@register_rule("masked_fill")
def masked_fill(op: Op, x: Value, mask: Value, value: object) -> Value:
    """Handle masked_fill, x with some entries overwritten: entries are as large as those of x.

    If the value that is filled in is a tensor that training changes, the result is as large as the larger of the two.
    """
    return op.merge([x, value]) if isinstance(value, Value) and not value.is_constant else op.same(x)


@register_rule("native_dropout")
def native_dropout(op: Op, x: Value, *_: object) -> tuple[Value, Value]:
    """Handle aten.native_dropout: return x with entries dropped, as large as x, and the mask, a constant."""
    return op.same(x), op.constant()


@register_rule(nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def homogeneous_module(op: Op, module: nn.Module, x: Value, *_: object) -> Value:
    """Handle a call of a module such as nn.ReLU or nn.Dropout that computes phi with phi(kx) = k phi(x) for k > 0.

    Entries, and their change in training, stay as large as they are.
    """
    return passed_on(x, op.same(x), op.at)


@register_rule(*KEEPS_ZERO)
def keeps_zero(op: Op, x: Value, *_: object) -> Value:
    """Handle a function phi with phi(0) = 0 but phi(kx) != k phi(x), such as gelu.

    Entries, and their change in training, stay as large as they are. A larger copy of the model that is to compute the
    same must keep the entries of x as large as they are here.
    """
    return op.nonlinear(x)


@register_rule("clamp", "clamp_min", "clamp_max")
def clamp(op: Op, x: Value, *bounds: object) -> Value:
    """Handle clamp between bounds that are numbers or tensors.

    Entries are as large as those of x or, if training changes a bound, as the largest of the three tensors.
    """
    moving = [bound for bound in bounds if isinstance(bound, Value) and not bound.is_constant]
    return op.nonlinear(op.merge([x, *moving]) if moving else x)


@register_rule(
    nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Softsign,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
def keeps_zero_module(op: Op, module: nn.Module, x: Value, *_: object) -> Value:
    """Handle a call of a module such as nn.GELU that computes phi with phi(0) = 0 but phi(kx) != k phi(x).

    Entries, and their change in training, stay as large as they are.
    """
    return op.nonlinear(x)


@register_rule(*FORGETS_SIZE)
def forgets_size(op: Op, x: Value, *_: object) -> Value:
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
    """Handle F.prelu, x where it is positive, else slope * x, as the sum of x and x times the learned slope."""
    return op.merge([x, op.product(op.same(x), slope)])


@register_rule(nn.PReLU)
def prelu_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of nn.PReLU as the sum of x and x times its learned slope: as large as the larger of the two."""
    slope = op.parameter(module, "weight")
    assert slope is not None
    return prelu(op, x, slope)


@register_rule("glu")
def glu(op: Op, x: Value, dim: int = -1) -> Value:
    """Handle F.glu: x is cut in two halves along `dim`, and the first is multiplied by the sigmoid of the second.

    The result has half as many entries along that dim, as large as those of the first half, since a sigmoid is of order
    1.
    """
    content, gate = op.split(x, 2, dim)
    return op.product(content, op.pointwise(gate))


@register_rule(nn.GLU)
def glu_module(op: Op, module: nn.GLU, x: Value) -> Value:
    """Handle a call of nn.GLU: one half of x along a dim times the sigmoid of the other, as large as the first."""
    return glu(op, x, module.dim)


@register_rule("add", "sub", "rsub")
def add(op: Op, x: object, y: object, alpha: object = 1) -> Value:
    """Handle x + alpha * y: entries are as large as the larger of the two, save that x - mean(x) is as large as x."""
    if alpha != 1:
        reverse = plain_name(op.at.target) == "rsub"  # y - alpha * x
        x, y = (y, x) if reverse else (x, y)
        y = op.scale(y, op.number(alpha, 2, "alpha")) if isinstance(y, Value) else y
    if not isinstance(x, Value) or not isinstance(y, Value):
        tensor = x if isinstance(x, Value) else y
        assert isinstance(tensor, Value)
        return op.nonlinear(tensor)
    for tensor, other in ((x, y), (y, x)):
        stat = other.statistic
        if stat is not None and stat.reduced and stat.degree == 1 and stat.node == tensor.node:
            op.disregard(other)  # it is computed from x
            return op.same(tensor)  # x - mean(x): centred, still x
        if other.log_total and other.node == tensor.node:  # logarithms of weights; their own potentials add up
            if tensor.log_total:
                return replace(op.same(tensor), log_total=(*tensor.log_total, *other.log_total))
            if _is_total_of(other, tensor):
                return op.less_log_total(tensor, other.log_total)
            logs = tensor.simplex if tensor.simplex is not None and tensor.simplex.is_log else Simplex(is_log=True)
            return replace(op.same(tensor), simplex=logs.divided(other.log_total))
    return op.merge([x, y])


def _is_total_of(total: Value, x: Value) -> bool:
    """Whether a logsumexp is that of x itself: x minus it is a log_softmax then, and not one step of many."""
    at = total.at
    while at is not None and "logsumexp" not in (plain_name(at.target) or ""):
        at = next(iter(at.all_input_nodes), None)
    return at is not None and x.at in at.all_input_nodes


@register_rule("maximum", "minimum", "fmax", "fmin", "hypot", "nextafter")
def largest(op: Op, x: Value, y: Value) -> Value:
    """Handle torch.maximum, minimum, hypot and the like of two tensors: entries as large as those of the larger one."""
    return op.merge([x, y])


@register_rule("logaddexp", "logaddexp2")
def logaddexp(op: Op, x: Value, y: Value) -> Value:
    """Handle torch.logaddexp, log(exp(x) + exp(y)): entries as large as the larger of x and y."""
    return op.nonlinear(op.merge([x, y]))


@register_rule("remainder", "fmod", "rmod", "floordiv", "rfloordiv")
def remainder(op: Op, x: object, y: object) -> Value:
    """Handle remainders and rounded quotients of x and y, either of which may be a number.

    Entries are taken to be as large as the larger of x and y, and to change as they do.
    """
    return op.nonlinear(op.merge([v for v in (x, y) if isinstance(v, Value)]))


@register_rule("lerp")
def lerp(op: Op, x: Value, y: Value, weight: object) -> Value:
    """Handle torch.lerp, x + weight * (y - x): entries as large as the larger of x and y.

    If the weight is a tensor, its product with y - x is added, so that it also counts how large the weight is and how
    it changes.
    """
    if not isinstance(weight, Value):
        return op.merge([x, y])
    return op.merge([x, op.product(op.merge([x, y]), weight)])


@register_rule("addcmul", "addcdiv")
def addcmul(op: Op, x: Value, y: Value, z: Value, *, value: object = 1) -> Value:
    """Handle torch.addcmul and addcdiv, x + value * y * z and x + value * y / z: as large as the larger term."""
    term = mul(op, y, z) if plain_name(op.at.target) == "addcmul" else div(op, y, z)
    return op.merge([x, term if value == 1 else op.scale(term, op.number(value, "value"))])


@register_rule("copysign")
def copysign(op: Op, x: Value, y: object) -> Value:
    """Handle torch.copysign(x, y): entries as large as those of x, with the signs of y."""
    return op.product(op.same(x), op.pointwise(y)) if isinstance(y, Value) else op.same(x)


@register_rule("xlogy", "special_xlog1py", "ldexp")
def times_function(op: Op, x: object, y: object) -> Value:
    """Handle xlogy, xlog1py and ldexp, which are x log(y), x log(1 + y) and x * 2^y.

    The function of y is taken to be of order 1, so that the result is as large as x.
    """
    factor = op.pointwise(y) if isinstance(y, Value) else y
    return mul(op, x, factor) if isinstance(x, Value) or isinstance(factor, Value) else op.constant()


@register_rule("atan2", "complex", "polar", "igamma", "igammac", "special_zeta", "polygamma", "heaviside")
def function_of_two(op: Op, x: object, y: object) -> Value:
    """Handle functions of two tensors: of order 1 (atan2, polar, igamma, ...), or as large as the larger (complex)."""
    both = op.merge([v for v in (x, y) if isinstance(v, Value)])
    return op.same(both) if plain_name(op.at.target) == "complex" else op.pointwise(both)


@register_rule("angle")
def angle(op: Op, x: Value) -> Value:
    """Handle torch.angle, the angle of complex numbers: of order 1, however large the tensor is."""
    return op.pointwise(x)


@register_rule("frexp")
def frexp(op: Op, x: Value) -> tuple[Value, Value]:
    """Handle torch.frexp, x = mantissa * 2^exponent: the mantissa is of order 1, the exponent a constant integer."""
    return op.pointwise(x), op.constant()


@register_rule(
    *(f"special_{name}_polynomial_{kind}" for name in ("chebyshev", "shifted_chebyshev") for kind in "tuvw"),
    "special_hermite_polynomial_h", "special_hermite_polynomial_he", "special_laguerre_polynomial_l",
    "special_legendre_polynomial_p",
)  # fmt: skip
def polynomial(op: Op, x: Value, degree: object) -> Value:
    """Handle orthogonal polynomials of x, such as those of Chebyshev: of order 1, as their values at 0 are."""
    return op.pointwise(x)


@register_rule("zero", "fill", "normal", "uniform", "exponential", "geometric", "cauchy", "log_normal", "random")
def fill(op: Op, x: object, value: object = None, *_: object) -> Value:
    """Handle ops that overwrite x, such as x.zero_(), x.fill_(value), x.normal_(mean, std), and torch.normal.

    Entries are as large as the value or mean if that is a tensor; without such a tensor the result is a constant.
    """
    overwrites = str(getattr(op.at.target, "__name__", op.at.target)).partition(".")[0] != "normal"
    if overwrites:
        op.disregard(x)
    held = [v for v in (None if overwrites else x, value) if isinstance(v, Value)]
    return op.merge(held) if held else op.constant()


@register_rule(
    "argmax", "argmin", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros", "new_ones", "new_full", "new_empty",
    "zeros", "ones", "full", "empty", "empty_strided", "rand", "randn", "randint", "randperm", "arange", "linspace",
    "logspace", "eye", "tensor", "scalar_tensor", "tril_indices", "triu_indices", "new_tensor",
    "new_empty_strided", "dim", "numel", "nelement", "element_size", "get_device", "is_floating_point",
    "is_complex", "is_conj", "is_neg", "is_signed", "is_nonzero", "is_same_size", "is_inference", "is_contiguous",
    "argsort", "bucketize", "searchsorted", "storage_offset", "sym_storage_offset", "stride", "sym_stride", "all",
    "any", "allclose", "equal", "isclose", "isfinite", "isin", "isneginf", "isposinf", "isreal", "signbit",
    "logical_and", "logical_not", "logical_or", "logical_xor", "bitwise_and", "bitwise_not", "bitwise_or",
    "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", "count_nonzero", "nonzero", "nonzero_static",
    "argwhere", "bincount", "histc", "one_hot", "multinomial", "gcd", "lcm", "linalg_matrix_rank", "unravel_index",
    "bool", "int", "long", "short", "dim_order", "is_shared", "is_distributed",
)  # fmt: skip
def constant(op: Op, *values: object, **options: object) -> Value:
    """Handle an op whose result training does not change: an index, a comparison, a new tensor of zeros, a number."""
    op.disregard(*values, *options.values())
    return op.constant()


@register_rule("as_tensor")
def as_tensor(op: Op, data: object, dtype: object = None, device: object = None) -> Value:
    """Handle torch.as_tensor: a tensor stays what it is, and goes on to get gradients; numbers become a constant."""
    return op.view(data) if isinstance(data, Value) else op.constant()


@register_rule("mul")
def mul(op: Op, x: object, y: object) -> Value:
    """Handle x * y: a square if both are one tensor, a scaling if one is a number, else a product entry by entry.

    The magnitudes of entries multiply.
    """
    if isinstance(x, Value) and isinstance(y, Value):
        if x.node is not None and x.node == y.node and x.statistic == y.statistic:
            return op.power(x, 2.0)
        for one, other in ((x, y), (y, x)):
            if (number := op.constant_number(other)) is not None:
                return op.scale(one, number)
        return op.product(x, y)
    tensor, factor, keys = (x, y, (1, "other")) if isinstance(x, Value) else (y, x, (0, "input"))
    assert isinstance(tensor, Value)
    return op.scale(tensor, op.number(factor, *keys))


@register_rule("div")
def div(op: Op, x: object, y: object) -> Value:
    """Handle x / y: a scaling by 1 / y if y is a number, else a product with y ** -1, which is large for small y."""
    if isinstance(y, Value) and isinstance(x, Value) and (number := op.constant_number(y)) is not None:
        return op.scale(x, number.power(-1.0))
    if isinstance(y, Value):
        inverse = op.power(y, -1.0) if y.node is not None else y
        return op.product(x, inverse) if isinstance(x, Value) else inverse
    assert isinstance(x, Value)
    return op.scale(x, op.number(y, 1, "other").power(-1.0))


@register_rule("rdiv")
def rdiv(op: Op, x: Value, y: object) -> Value:
    """Handle y / x, where x is a tensor and y a number, as x ** -1: the result is large where x is small."""
    return op.power(x, -1.0)


@register_rule("pow")
def power(op: Op, x: object, exponent: object) -> Value:
    """Handle x ** exponent: entries of magnitude n^s, n the width, become n^(s * exponent) if the exponent is a number.

    With a tensor as exponent the result is taken to be of order 1.
    """
    if isinstance(x, Value) and isinstance(exponent, int | float):
        return op.power(x, float(exponent))
    return op.pointwise(op.merge([v for v in (x, exponent) if isinstance(v, Value)]))


@register_rule("rpow")
def rpow(op: Op, exponent: Value, base: object) -> Value:
    """Handle base ** exponent for a tensor `exponent`: of order 1, as 1 is the value for the exponent 0."""
    return op.pointwise(exponent)


@register_rule("square")
def square(op: Op, x: Value) -> Value:
    """Handle torch.square: entries of magnitude n^s become n^(2 s), where n is the width."""
    return op.power(x, 2.0)


@register_rule("sqrt")
def sqrt(op: Op, x: Value) -> Value:
    """Handle torch.sqrt: entries of magnitude n^s become n^(s/2), where n is the width."""
    return op.power(x, 0.5)


@register_rule("rsqrt")
def rsqrt(op: Op, x: Value) -> Value:
    """Handle torch.rsqrt, 1 / sqrt(x): entries of magnitude n^s become n^(-s/2), where n is the width."""
    return op.power(x, -0.5)


@register_rule("reciprocal")
def reciprocal(op: Op, x: Value) -> Value:
    """Handle torch.reciprocal, 1 / x: entries of magnitude n^s become n^-s, where n is the width."""
    return op.power(x, -1.0)


@register_rule("where")
def where(op: Op, condition: Value, x: object, y: object) -> Value:
    """Handle torch.where(condition, x, y), entries of x or y: as large as the larger of the two kinds."""
    return op.merge([v for v in (x, y) if isinstance(v, Value)])

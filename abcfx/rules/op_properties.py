"""Properties of ops, by name: how the size of the result follows the size of the input.

Names are those of torch functions, methods and aten ops, without namespace, overload, leading and trailing underscores.
The rules of `abcfx.rules` and the checks of `abcfx.growing` read the same tables.
"""

from __future__ import annotations

HOMOGENEOUS = (
    "relu", "leaky_relu", "rrelu", "abs", "neg", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout",
    "identity", "to", "float", "double", "half", "bfloat16", "cfloat", "cdouble", "chalf", "type", "contiguous",
    "clone", "detach", "cpu", "cuda", "xpu", "mtia", "alias", "nan_to_num", "tril", "triu", "real", "imag",
    "requires_grad", "fill_diagonal", "positive", "conj", "conj_physical", "resolve_conj", "resolve_neg", "deg2rad",
    "rad2deg",
)  # fmt: skip
"""Entry by entry, phi(k x) = k phi(x) for every k > 0; shape stays."""

KEEPS_ZERO = (
    "relu6", "gelu", "silu", "tanh", "elu", "selu", "celu", "mish", "hardtanh", "hardswish", "softsign", "tanhshrink",
    "softshrink", "hardshrink", "sin", "asin", "atan", "erf", "sinh", "expm1", "log1p", "sign", "sgn", "alpha_dropout",
    "feature_alpha_dropout", "round", "floor", "ceil", "trunc", "frac", "tan", "asinh", "atanh", "erfinv", "special_i1",
    "special_i1e", "special_bessel_j1", "special_entr", "fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine",
)  # fmt: skip
"""phi(0) = 0 and Lipschitz: the result has the size and the change of the input."""

FORGETS_SIZE = (
    "sigmoid", "hardsigmoid", "logsigmoid", "log_sigmoid", "softplus", "exp2", "cos", "cosh", "log", "log2",
    "log10", "erfc", "acos", "acosh", "sinc", "threshold", "logit", "digamma", "lgamma", "mvlgamma", "i0",
    "special_i0e", "special_erfcx", "special_ndtr", "special_ndtri", "special_log_ndtr", "special_bessel_j0",
    "special_bessel_y0", "special_bessel_y1", "special_modified_bessel_k0", "special_modified_bessel_k1",
    "special_scaled_modified_bessel_k0", "special_scaled_modified_bessel_k1", "special_spherical_bessel_j0",
    "special_airy_ai", "bernoulli", "poisson", "binomial",
)  # fmt: skip
"""phi(0) is not 0, or phi is far from homogeneous: the result is of order 1, whatever the size of the input."""

VIEWS = frozenset({
    "getitem", "select", "slice", "view", "narrow", "transpose", "permute", "squeeze", "unsqueeze", "index", "expand",
    "flatten", "reshape", "diagonal", "t", "alias", "detach", "unflatten",
})  # fmt: skip
"""The result is a view of the first input: it holds entries of it, in another shape or order."""

WRITES = (
    "copy", "index_put", "index_add", "index_copy", "index_fill", "index_reduce", "scatter", "scatter_add",
    "scatter_reduce", "masked_scatter", "slice_scatter", "select_scatter",
)  # fmt: skip
"""Entries of the first input are replaced by, or summed with, those of the last."""

JOINTLY_HOMOGENEOUS = (
    "add", "sub", "rsub", "lerp", "where", "maximum", "minimum", "max", "min", "amax", "amin", "mean", "sort", "topk",
    "max_pool2d_with_indices", "cumsum", "masked_fill", "type_as",
)  # fmt: skip
"""If all inputs become k times as large, so does the result; ops of several inputs, and reductions."""


def keeps_factor(name: str) -> bool:
    """Whether an op's result is k times as large if all its inputs are, as for relu or a sum.

    Args:
        name: name of the op; `native_dropout` and `_to_copy` are the aten spellings of `dropout` and `to`.
    """
    plain = name.strip("_")
    return plain in _KEEPS_FACTOR or plain in ("native_dropout", "to_copy")


_KEEPS_FACTOR = frozenset(HOMOGENEOUS) | frozenset(JOINTLY_HOMOGENEOUS)

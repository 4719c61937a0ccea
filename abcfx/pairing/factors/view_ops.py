"""Rules of the ops that move entries: views, cuts, concatenation, indexing, padding; and of those that make tensors."""

from __future__ import annotations

from abcfx.capture.aten import Ref
from abcfx.pairing.factors.atoms import UnfitError, fresh, grows, joined, piece, regrouped, sizes, unify
from abcfx.pairing.factors.step import RULES, Dims, ProblemKind, Result, Step, over, rule


@rule(
    "clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous", "copy", "zeros_like",
    "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
    "dropout", "native_dropout", "fill", "fill_", "zero_", "_conj", "_neg_view", "view_of", "tril", "triu", "flip",
    "roll", "normal_", "uniform_", "exponential_", "_reshape_alias_copy", "renorm", "cumsum", "cumprod", "cummax",
    "cummin", "hardswish", "hardswish_", "hardsigmoid", "hardtanh", "elu", "celu", "selu", "rrelu", "rrelu_with_noise",
    "mish", "log_sigmoid_forward", "softshrink", "hardshrink", "threshold", "nan_to_num", "logit", "special_entr",
    "logcumsumexp", "_softmax", "_log_softmax", "_safe_softmax", "sort", "argsort", "masked_fill", "masked_fill_",
)  # fmt: skip
def like_first(step: Step) -> Result:
    """Find the dims of results that all have the dims of the op's first input."""
    first = step.dims(step.tensors()[0])
    return [first] * len(step.call.outs) if len(step.call.outs) > 1 else first


@rule("copy_")
def copied(step: Step) -> Dims:
    """Find the dims of a tensor into which another one is copied, with broadcasting: its own."""
    step.check_broadcast(step.dims(step.tensors()[1]), step.dims(step.tensors()[0]))
    return step.dims(step.tensors()[0])


@rule("view", "_unsafe_view", "_reshape_alias", "reshape", "unsqueeze", "squeeze", "view_copy", "flatten", "unsqueeze_")
def regroup(step: Step) -> Dims:
    """Find the dims of a view: the same entries in row-major order, grouped into other dims."""
    return regrouped(step.dims(step.tensors()[0]), step.shape())


@rule("expand")
def expand(step: Step) -> Dims:
    """Find the dims of a tensor after expand: those of the input, with new dims in the place of dims of size one."""
    dims, shape = step.dims(step.tensors()[0]), step.shape()
    padded = ((),) * (len(shape) - len(dims)) + dims
    return tuple(dim if sizes(dim) == size else fresh(size) for dim, size in zip(padded, shape, strict=True))


@rule("repeat")
def repeat(step: Step) -> Dims:
    """Find the dims of a tensor that is repeated as a whole along each dim: number of repeats times the old dim."""
    dims, shape = step.dims(step.tensors()[0]), step.shape()
    padded = ((),) * (len(shape) - len(dims)) + dims
    return tuple((*fresh(over(size, sizes(dim))), *dim) for dim, size in zip(padded, shape, strict=True))


@rule("repeat_interleave")
def repeat_interleave(step: Step) -> Dims:
    """Find the dims of a tensor whose entries are each repeated along one dim: that dim times the number of repeats."""
    return tuple(
        dim if sizes(dim) == size else (*dim, *fresh(over(size, sizes(dim))))
        for dim, size in zip(step.dims(step.tensors()[0]), step.shape(), strict=True)
    )


@rule("permute")
def permute(step: Step) -> Dims:
    """Find the dims of a permuted tensor: the same ones in another order."""
    dims = step.dims(step.tensors()[0])
    return tuple(dims[i] for i in step.call.argument("dims"))


@rule("transpose", "transpose_")
def transpose(step: Step) -> Dims:
    """Find the dims of a transposed tensor: the same ones with two of them exchanged."""
    dims = list(step.dims(step.tensors()[0]))
    i, j = step.call.argument("dim0"), step.call.argument("dim1")
    if dims:
        dims[i], dims[j] = dims[j], dims[i]
    return tuple(dims)


@rule("t", "t_")
def flipped(step: Step) -> Dims:
    """Find the dims of the transpose of a matrix: the same ones in reverse order."""
    return tuple(reversed(step.dims(step.tensors()[0])))


@rule("select")
def select(step: Step) -> Dims:
    """Find the dims of x[:, i]: those of x without the one of which an index is chosen."""
    dims = list(step.dims(step.tensors()[0]))
    chosen = dims.pop(step.call.argument("dim"))
    if grows(chosen):
        step.report("one index of a dim that grows is selected", chosen)
    return tuple(dims)


@rule("slice")
def cut(step: Step) -> Dims:
    """Find the dims of a slice of a tensor: those of the tensor, one of which is cut to a piece of it."""
    dims, at = list(step.dims(step.tensors()[0])), step.call.argument("dim", 0)
    if sizes(dims[at]) == step.shape()[at]:
        return tuple(dims)
    stride = step.call.argument("step", 1)
    if stride > 1:
        size = step.shape()[at]
        dims[at] = regrouped([dims[at]], [size, (stride, stride)])[0]
        return tuple(dims)
    starts = [
        _offset(call.argument("start", 0), total) for call, total in zip(step.calls, sizes(dims[at]), strict=True)
    ]
    dims[at] = piece(dims[at], (starts[0], starts[1]), step.shape()[at])
    return tuple(dims)


def _offset(start: int, total: int) -> int:
    """Return the offset at which a slice begins, for a `start` that may be negative or too large."""
    return min(max(start + total if start < 0 else start, 0), total)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")
def split(step: Step) -> list[Dims]:
    """Find the dims of each piece into which a split along one dim cuts a tensor: that dim becomes a piece of it."""
    dims, at = step.dims(step.tensors()[0]), step.call.argument("dim", 0)
    found, start = [], (0, 0)
    for ref in step.call.outs:
        size = step.shape(ref)[at]
        parts = list(dims)
        parts[at] = piece(dims[at], start, size)
        found.append(tuple(parts))
        start = start[0] + size[0], start[1] + size[1]
    return found


@rule("unbind")
def unbind(step: Step) -> list[Dims]:
    """Find the dims of the tensors into which unbind cuts one along a dim, which none of them has."""
    dims = list(step.dims(step.tensors()[0]))
    dims.pop(step.call.argument("dim", 0))
    return [tuple(dims)] * len(step.call.outs)


@rule("cat", "concat")
def cat(step: Step) -> Dims:
    """Find the dims of tensors concatenated along one dim, which consists of theirs; the others must be the same."""
    tensors = [step.dims(ref) for ref in step.tensors()]
    tensors = [dims for dims in tensors if len(dims) == len(step.shape())]  # an empty one may have one dim
    at = step.call.argument("dim", 0) % len(step.shape())
    found = list(tensors[0])
    for place in range(len(found)):
        for other in tensors[1:] if place != at else ():
            unify(found[place], other[place])
    found[at] = joined([dims[at] for dims in tensors])
    return tuple(found)


@rule("stack")
def stack(step: Step) -> Dims:
    """Find the dims of a stack of tensors: those of each tensor, which must be the same, and a new one."""
    tensors = [step.dims(ref) for ref in step.tensors()]
    for other in tensors[1:]:
        for one, two in zip(tensors[0], other, strict=True):
            unify(one, two)
    at = step.call.argument("dim", 0) % len(step.shape())
    return (*tensors[0][:at], fresh(step.shape()[at]), *tensors[0][at:])


@rule("index", "index_unsafe")
def index(step: Step) -> Dims:
    """Find the dims of x[i, :, j]: those of the indices take the place of the dims that are indexed, or come first."""
    x, indices = step.dims(step.tensors()[0]), step.call.argument("indices")
    at = [place for place, each in enumerate(indices) if isinstance(each, Ref)]
    for place in at:
        if grows(x[place]):
            step.report("a dim that grows is indexed", x[place], ProblemKind.COMPETING)
    kept = [dim for place, dim in enumerate(x) if place not in at]
    count = len(step.shape()) - len(kept)
    front = 0 if at != list(range(at[0], at[-1] + 1)) else at[0]
    new = tuple(fresh(size) for size in step.shape()[front : front + count])
    return (*kept[:front], *new, *kept[front:])


@rule("index_select")
def index_select(step: Step) -> Dims:
    """Find the dims of x.index_select(dim, index): those of x, with a new dim in the place of the indexed one."""
    dims, at = list(step.dims(step.tensors()[0])), step.call.argument("dim")
    if grows(dims[at]):
        step.report("a dim that grows is indexed", dims[at], ProblemKind.COMPETING)
    if dims:
        dims[at] = fresh(step.shape()[at])
    return tuple(dims)


@rule("gather")
def gather(step: Step) -> Dims:
    """Find the dims of x.gather(dim, index): those of x where the sizes are equal, with new ones elsewhere."""
    dims, at = list(step.dims(step.tensors()[0])), step.call.argument("dim")
    return tuple(
        dim if place != at % len(dims) and sizes(dim) == size else fresh(size)
        for place, (dim, size) in enumerate(zip(dims, step.shape(), strict=True))
    )


@rule(
    "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "index_put",
    "index_put_", "index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_",
    "_unsafe_index_put", "slice_scatter", "select_scatter", "masked_scatter", "masked_scatter_", "diagonal_scatter",
)  # fmt: skip
def written(step: Step) -> Dims:
    """Find the dims of a tensor into which others are written, as scatter does: its own.

    The last dim of what is written is the same as its last dim, if the sizes are equal.
    """
    x = step.dims(step.tensors()[0])
    for ref in step.tensors()[1:]:
        source = step.dims(ref)
        if step.is_floating(ref) and source and x and sizes(source[-1]) == sizes(x[-1]):
            unify(source[-1], x[-1])
    return x


@rule(
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "unfold",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_max_pool2d", "max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "upsample_trilinear3d", "grid_sampler_2d",
    "_fft_r2c", "_fft_c2c", "_fft_c2r", "view_as_real", "view_as_complex",
)  # fmt: skip
def resized(step: Step) -> Result:
    """Find the dims after an op such as pooling or padding: dims that keep their size are the same, others are new."""
    x = step.dims(step.tensors()[0])
    found = []
    for ref in step.call.outs:
        shape = step.shape(ref)
        found.append(tuple(x[i] if i < len(x) and sizes(x[i]) == size else fresh(size) for i, size in enumerate(shape)))
    return found if len(found) > 1 else found[0]


@rule("pixel_shuffle")
def pixel_shuffle(step: Step) -> Dims:
    """Find the dims after pixel_shuffle, which turns channels into a grid of pixels: (out channels, height, width)."""
    *lead, channels, _, _ = step.dims(step.tensors()[0])
    factor = step.call.argument("upscale_factor")
    (out, _) = regrouped([channels], [step.shape()[-3], (factor**2, factor**2)])
    return (*lead, out, fresh(step.shape()[-2]), fresh(step.shape()[-1]))


@rule("pixel_unshuffle")
def pixel_unshuffle(step: Step) -> Dims:
    """Find the dims after pixel_unshuffle, which turns grids of pixels into channels: (channels x grid, ...)."""
    *lead, channels, _, _ = step.dims(step.tensors()[0])
    factor = step.call.argument("downscale_factor")
    return (*lead, (*channels, *fresh((factor**2, factor**2))), fresh(step.shape()[-2]), fresh(step.shape()[-1]))


@rule("diagonal")
def diagonal(step: Step) -> Dims:
    """Find the dims of a diagonal over two dims of a tensor: its other dims, then that of the diagonal."""
    dims = step.dims(step.tensors()[0])
    gone = {step.call.argument("dim1", 0) % len(dims), step.call.argument("dim2", 1) % len(dims)}
    return (*(dim for place, dim in enumerate(dims) if place not in gone), fresh(step.shape()[-1]))


@rule("as_strided")
def strided(step: Step) -> Dims:
    """Find the dims of an as_strided view: those of its input, if the shape stays as it is.

    Raises:
        UnfitError: it has another shape.
    """
    dims = step.dims(step.tensors()[0])
    if [sizes(dim) for dim in dims] != step.shape():
        raise UnfitError("as_strided addresses memory, not dims")
    return dims


@rule("im2col")
def patches(step: Step) -> Dims:
    """Find the dims after im2col, which makes columns of an image's patches: (channels x positions, patches)."""
    *lead, channels, _, _ = step.dims(step.tensors()[0])
    column, count = step.shape()[-2:]
    return (*lead, (*channels, *fresh(over(column, sizes(channels)))), fresh(count))


@rule("col2im")
def unpatched(step: Step) -> Dims:
    """Find the dims after col2im, which adds up columns of patches to an image: (channels, height, width)."""
    *lead, column, _ = step.dims(step.tensors()[0])
    channels, *space = step.shape()[-3:]
    return (*lead, regrouped([column], [channels, over(sizes(column), channels)])[0], *map(fresh, space))


@rule(
    "arange", "zeros", "ones", "empty", "full", "eye", "scalar_tensor", "new_zeros", "new_ones", "new_empty",
    "new_full", "linspace", "rand", "randn", "randint", "randperm", "tril_indices", "triu_indices", "empty_strided",
    "one_hot", "new_empty_strided", "nonzero", "nonzero_static", "histc", "bincount", "searchsorted", "bucketize",
    "masked_select", "_unique2", "unique_dim", "unique_consecutive", "empty_permuted", "_local_scalar_dense", "item",
    "multinomial", "_fused_sdp_choice", "sym_size", "hann_window", "cdist", "_cdist_forward", "_pdist_forward", "isin",
)  # fmt: skip
def new(step: Step) -> Result:
    """Find the dims of a tensor that is made anew, as by arange: new ones, which are no input's."""
    found = [step.unknown(ref) for ref in step.call.outs]
    if step.call.name in ("arange", "linspace") and any(grows(dim) for dims in found for dim in dims):
        step.report("numbers that count along a dim that grows", found[0][0])
    return found if len(found) != 1 else found[0]


_MOVING = frozenset(name for name, function in RULES.items() if function.__module__ == __name__)


def moves_entries(name: str) -> bool:
    """Whether an op of this name moves, repeats or drops entries, or makes a tensor, and computes nothing."""
    return name in _MOVING

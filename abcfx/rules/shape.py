"""Rules of ops that move entries: views, indexing, concatenation, cutting. Sizes and changes stay as they are."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

import torch.fx as fx
import torch.nn as nn

from abcfx.rules.op import Op
from abcfx.rules.op_properties import WRITES
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.segments import concatenation_of
from abcfx.rules.values import Result, Sizes, Value


@register_rule(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "repeat", "tile",
    "ravel", "constant_pad_nd", "roll", "flip", "fliplr", "flipud", "narrow", "unfold", "fold", "im2col", "col2im",
    "as_strided", "broadcast_to", "gather", "take", "take_along_dim", "masked_select",
    "moveaxis", "slice", "view_as_real", "view_as_complex", "diff", "rot90", "add_batch_dim", "remove_batch_dim",
    "channel_shuffle", "native_channel_shuffle", "combinations", "slice_inverse",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "pad_circular", "pad_enum",
)  # fmt: skip
def regroup(op: Op, x: Value, *_: object) -> Value:
    """Handle an op that moves, regroups, repeats or picks entries, such as view.

    Entries, and their change in training, stay as large as they are; the result has other dims.
    """
    return op.view(x)


@register_rule("diagonal")
def diagonal(op: Op, x: Value, offset: object = 0, dim1: object = 0, dim2: object = 1) -> Value:
    """Handle torch.diagonal and torch.linalg.diagonal: entries that are picked keep their size and their change."""
    return op.view(x)


@register_rule("repeat_interleave")
def repeat_interleave(
    op: Op, x: Value, repeats: object = None, dim: object = None, *, output_size: object = None
) -> Value:
    """Handle an op that repeats each entry: entries, and their change in training, stay as they are."""
    return op.view(x)


@register_rule("expand_as", "view_as", "reshape_as")
def regroup_as(op: Op, x: Value, other: Value) -> Value:
    """Handle x.view_as(other) and the like: x in the shape of `other`, whose entries do not matter."""
    op.disregard(other)  # its shape counts, not its entries
    return op.view(x)


@register_rule(nn.Flatten, nn.Unflatten, nn.ChannelShuffle)
def regroup_module(op: Op, module: nn.Module, x: Value) -> Value:
    """Handle a call of a module that regroups entries, such as nn.Flatten: they stay as large as they are."""
    return op.view(x)


@register_rule("pad")
def pad(op: Op, x: Value, widths: object, mode: str = "constant", value: object = None) -> Value:
    """Handle F.pad in any mode, x with a number or copies of its entries around it: entries stay as they are."""
    return op.view(x)


@register_rule("transpose")
def transpose(op: Op, x: Value, dim0: int, dim1: int) -> Value:
    """Handle transpose(x, dim0, dim1): two dims of x are swapped, and later ops know which is which; entries stay."""
    ndim = x.ndim or (2 if {dim0, dim1} == {-1, -2} else 0)  # the last two dims swap whatever stands before them
    order = list(range(ndim))
    if order:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return op.view(x, tuple(order) if order else None)


@register_rule("t", "T", "H", "numpy_T")
def flipped(op: Op, x: Value) -> Value:
    """Handle x.T: the dims of a matrix are swapped, and later ops know which is which; entries stay.

    If x is not a matrix, its dims count as unknown afterwards.
    """
    return op.view(x, tuple(reversed(range(x.ndim))) if x.ndim == 2 else None)


@register_rule("mT", "mH", "adjoint")
def flipped_matrices(op: Op, x: Value) -> Value:
    """Handle x.mT: the last two dims of x are swapped, and later ops know which is which; entries stay."""
    return transpose(op, x, -1, -2)


@register_rule("permute")
def permute(op: Op, x: Value, *dims: int | Sequence[int]) -> Value:
    """Handle permute(x, dims): the dims of x in another order, and later ops know which is which; entries stay."""
    order = [i for each in dims for i in ([each] if isinstance(each, int) else each)]
    return op.view(x, tuple(i % len(order) for i in order))


@register_rule("getitem", "select")
def index(op: Op, x: Value | Sizes | Sequence[Result], item: object, *rest: object) -> Result:
    """Handle x[item] and select(x, dim, index): entries, and their change in training, stay as they are."""
    if isinstance(x, Value):
        return op.view(x) if rest else _entries(op, x, item if isinstance(item, tuple) else (item,))
    if isinstance(x, Sizes):
        return x[item]
    assert isinstance(item, int | slice)
    return x[item]


def _entries(op: Op, x: Value, items: Sequence[object]) -> Value:
    """Return x[items], whose entries, and their change in training, are as large as those of x.

    A parameter indexed by a tensor is a lookup in a table, a layer; a slice of a parameter is still that parameter.
    """
    if x.parameter is None or x.node is not None or x.dims is None:
        return op.same(x)
    of_dims = [each for each in items if each is not None]  # None makes a new dim
    if Ellipsis in [each for each in of_dims if not isinstance(each, Value)]:
        at = next(i for i, each in enumerate(of_dims) if each is Ellipsis)
        of_dims[at : at + 1] = [slice(None)] * (len(x.dims) - len(of_dims) + 1)
    of_dims += [slice(None)] * (len(x.dims) - len(of_dims))
    if any(isinstance(each, Value) for each in of_dims):
        return op.layer(None, x, fan_in=[], fan_out=[i for i, each in enumerate(of_dims) if isinstance(each, slice)])
    kept = [d for d, each in zip(x.dims, of_dims, strict=False) if isinstance(each, slice)]
    simple = all(isinstance(each, slice | int) for each in items)
    return replace(op.same(x), dims=tuple(kept) if simple else None)


@register_rule("index_select")
def index_select(op: Op, x: Value, dim: int, index: Value) -> Value:
    """Handle x.index_select(dim, index), x[index] for dim 0, x[:, index] for dim 1: entries stay as they are."""
    before = dim if dim >= 0 else dim + (x.ndim or 0)
    return _entries(op, x, [*[slice(None)] * before, index])


@register_rule("index")
def index_tensor(op: Op, x: Value, indices: Sequence[object]) -> Value:
    """Handle aten.index(x, [i, None, j]), which is x[i, :, j] in an exported graph: entries stay as they are."""
    return _entries(op, x, tuple(slice(None) if i is None else i for i in indices))


@register_rule("getattr")
def attribute(op: Op, x: Value | tuple[Result, ...], name: str) -> Result:
    """Handle an attribute of a tensor (x.shape, x.T), or a named result (values, indices) of an op with several."""
    if isinstance(x, tuple):
        val = op.at.args[0].meta.get("val") if isinstance(op.at.args[0], fx.Node) else None
        named = [i for i, each in enumerate(val or ()) if getattr(val, name, None) is each]
        return x[named[0] if named else {"values": 0, "indices": 1}[name]]
    if name == "shape":
        return Sizes(x)
    if name in ("T", "H"):
        return flipped(op, x)
    if name in ("mT", "mH"):
        return flipped_matrices(op, x)
    return op.same(x) if name in ("data", "real", "imag") else None


@register_rule("size", "sym_size")
def size(op: Op, x: Value, dim: int | None = None) -> Result:
    """Handle x.size() and x.size(dim): return sizes of x as values that remember of which dims they are the sizes."""
    return Sizes(x) if dim is None else Sizes(x)[dim]


@register_rule("cat", "stack", "vstack", "dstack", "cartesian_prod")
def cat(op: Op, *tensors: Value | Sequence[Value] | int) -> Value:
    """Handle cat([x, y], dim), stack and the like: the result is as large as the largest tensor, by its entries."""
    merged = op.merge(_flat(tensors))
    if str(getattr(op.at.target, "__name__", "")).partition(".")[0] not in ("cat", "concat", "concatenate"):
        return merged
    dim = next((each for each in tensors if isinstance(each, int)), 0)
    return replace(merged, concatenation=concatenation_of(op.at, _flat(tensors), dim))


def _flat(tensors: Sequence[object]) -> list[Value]:
    """Return the tensors among the arguments of an op that takes them one by one or as a list."""
    return [x for each in tensors for x in (each if isinstance(each, list | tuple) else [each]) if isinstance(x, Value)]


@register_rule("meshgrid", "broadcast_tensors")
def one_by_one(op: Op, *tensors: Value | Sequence[Value]) -> tuple[Value, ...]:
    """Handle meshgrid and broadcast_tensors, which return a view of each tensor: entries stay as large as they are."""
    return tuple(replace(op.view(x), shape=None) for x in _flat(tensors))


@register_rule("atleast_1d", "atleast_2d", "atleast_3d")
def at_least(op: Op, *tensors: Value | Sequence[Value]) -> Result:
    """Handle atleast_1d to atleast_3d: a view of one tensor, or of each of several; entries stay as they are."""
    return op.view(tensors[0]) if isinstance(tensors[0], Value) and len(tensors) == 1 else one_by_one(op, *tensors)


@register_rule("diag")
def diag(op: Op, x: Value, diagonal: int = 0) -> Value:
    """Handle torch.diag, the diagonal of a matrix or a matrix with that diagonal: entries stay as large as they are."""
    return op.view(x) if x.ndim == 2 else diag_embed(op, x)


@register_rule("diag_embed", "diagflat")
def diag_embed(op: Op, x: Value, *_: object) -> Value:
    """Handle torch.diag_embed, which puts a vector on the diagonal of a matrix: entries stay as large as they are.

    The matrix must not grow with the width: all but a few entries would be zero, so that its RMS entry would shrink.
    """
    return op.view(op.fixed(x, [-1]))


@register_rule("block_diag")
def block_diag(op: Op, *tensors: Value | Sequence[Value]) -> Value:
    """Handle torch.block_diag of matrices that do not grow: entries as large as those of the largest of them."""
    return op.merge([op.fixed(x, [-1]) for x in _flat(tensors)])


@register_rule("trace")
def trace(op: Op, x: Value) -> Value:
    """Handle the trace of a matrix as a sum over its diagonal: n times as large as an entry, for n rows."""
    return op.reduce(x, [-1], mean=False)


@register_rule("setitem", "put", "diagonal_scatter", "as_strided_scatter", *WRITES)
def write(op: Op, x: Value, *args: object, reduce: object = None, alpha: object = 1) -> Value:
    """Handle ops such as scatter, which write or add other tensors into x: entries as large as the largest of all."""
    written = _flat(args)
    if alpha != 1 and written:
        written[-1] = op.scale(written[-1], op.number(alpha, "alpha"))
    return op.merge([x, *written])


@register_rule("split", "split_with_sizes", "chunk")
def split(op: Op, x: Value, how: object, dim: int = 0) -> tuple[Value, ...]:
    """Handle split and chunk, which cut x along `dim`: entries, and their change in training, stay as they are."""
    return op.split(x, len(how) if isinstance(how, list | tuple) else count_results(op), dim)


@register_rule("tensor_split", "hsplit", "vsplit", "dsplit")
def split_at(op: Op, x: Value, where: object, dim: int | None = None) -> tuple[Value, ...]:
    """Handle torch.tensor_split, hsplit and the like, which cut x into equal parts or at the given places.

    Entries, and their change in training, stay as large as they are.
    """
    name = str(plain_name(op.at.target))
    if dim is None:
        dim = {"hsplit": 0 if x.ndim == 1 else 1, "dsplit": 2}.get(name, 0)
    return op.split(x, len(where) + 1 if isinstance(where, list | tuple) else count_results(op), dim)


def count_results(op: Op) -> int:
    """Return how many tensors the op returns; where shapes are not known, how many of them the graph uses."""
    val = op.at.meta.get("val")
    if isinstance(val, list | tuple):
        return len(val)
    taken = [user.args[1] for user in op.at.users if user.target is operator.getitem]
    return max((i for i in taken if isinstance(i, int)), default=0) + 1


@register_rule("gradient")
def gradient(op: Op, x: Value, *_: object, spacing: object = 1, dim: object = None) -> Result:
    """Handle torch.gradient, differences of neighbours along each dim: entries as large as those of x."""
    return op.several(x, count_results(op))


@register_rule("unbind")
def unbind(op: Op, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """Handle unbind, which cuts x into its slices along `dim`: entries and their change stay as large as they are."""
    return op.several(x, count_results(op))


@register_rule("topk", "sort", "kthvalue", "mode", "cummax", "cummin")
def with_indices(op: Op, x: Value, *_: object, dim: object = -1) -> tuple[Value, Value]:
    """Handle ops such as topk and sort, which return entries of x, as large as before, and indices, as constants."""
    return op.same(x), op.constant()


@register_rule("median", "nanmedian")
def median(op: Op, x: Value, dim: int | None = None, *_: object) -> Result:
    """Handle torch.median: an entry of x or, with a `dim`, the entries along it and their indices.

    Entries, and their change in training, stay as large as they are; indices are constants.
    """
    return op.same(x) if dim is None else (op.same(x), op.constant())

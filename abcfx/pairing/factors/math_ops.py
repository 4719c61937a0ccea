"""Rules of the ops that compute: products, convolutions, norms, attention, reductions, and pointwise ops.

Each returns the dims of an op's result. A dim here is more than a size: it is a product of atoms, each with its size in
the small and in the large model, so that one knows which dims of different tensors are one and the same. A rule makes
dims the same that the op requires to be, and builds those of the result from those of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from abcfx.capture.aten import Ref
from abcfx.pairing.factors.atoms import Dim, SizePair, fresh, piece, regrouped, sizes, unify, without_origin
from abcfx.pairing.factors.step import Dims, Result, Step, over, rule


def pointwise(step: Step) -> Dims:
    """Find the dims of a pointwise op's result, as products of factors: those of its inputs.

    Dims of several inputs that are broadcast onto each other become the same.
    """
    operands = [step.dims(ref) for ref in step.tensors()]
    found = []
    for place in range(len(step.shape())):
        from_right = len(step.shape()) - place
        there = [dims[-from_right] for dims in operands if len(dims) >= from_right]
        wide = [dim for dim in there if sizes(dim) == step.shape()[place] != (1, 1)]
        for other in wide[1:]:
            unify(wide[0], other)
        found.append(wide[0] if wide else fresh(step.shape()[place]))
    return tuple(found)


@rule("mm", "bmm", "mv", "dot", "vdot", "_int_mm")
def product(step: Step) -> Dims:
    """Return the dims of a matrix product a @ b, and make the dim that is summed over the same one in a and b."""
    return step.contract(*step.tensors())


@rule("addmm", "baddbmm", "addmv", "addbmm", "_addmm_activation")
def added_product(step: Step) -> Dims:
    """Find the dims of bias + a @ b from those of a and b, onto which the bias is broadcast."""
    bias, *factors = step.tensors()
    found = step.contract(*factors)
    step.check_broadcast(step.dims(bias), found)
    return found


@rule("convolution", "mkldnn_convolution", "_convolution", "convolution_overrideable")
def convolution(step: Step) -> Dims:
    """Find the dims of a convolution's result, which sums over the input channels of one group."""
    x, weight = (step.dims(step.call.argument(name)) for name in ("input", "weight"))
    bias, transposed = step.call.argument("bias"), step.call.argument("transposed", False)
    groups: SizePair = (step.calls[0].argument("groups"), step.calls[1].argument("groups"))
    channels = x[1]
    inner, outer = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
    if groups == (1, 1):
        unify(channels, inner)
        out = outer
    elif transposed:  # weight: (groups x in, out per group, ...)
        unify(channels, inner)
        out = (*regrouped([inner], [groups, over(sizes(inner), groups)])[0], *outer)
    else:  # weight: (groups x out, in per group, ...)
        of_group = regrouped([channels], [groups, sizes(inner)])
        unify(of_group[1], inner)
        of_weight = regrouped([outer], [groups, over(sizes(outer), groups)])
        unify(of_group[0], of_weight[0])
        out = outer
    step.contracted(inner)
    if isinstance(bias, Ref):
        unify(step.dims(bias)[0], out)
    spatial = (fresh(size) for size in step.shape()[2:])
    return (without_origin(x[0]), without_origin(out), *spatial)


@rule("embedding")
def embedding(step: Step) -> Dims:
    """Find the dims of rows that are looked up in a table: those of the ids, then the table's dims but the first."""
    table, at = step.dims(step.call.argument("weight")), step.dims(step.call.argument("indices"))
    step.factors.indexed.append(table[0])
    return (*at, *map(without_origin, table[1:]))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(step: Step) -> list[Dims]:
    """Find the dims of a lookup that sums or averages the rows of each bag: (bags, columns of the table)."""
    table = step.dims(step.call.argument("weight"))
    step.factors.indexed.append(table[0])
    results = [step.unknown(ref) for ref in step.call.outs]
    return [(results[0][0], without_origin(table[1])), *results[1:]]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(step: Step) -> list[Dims]:
    """Find the dims of a layer norm's result, those of x.

    If x grows by copies of its entries, all entries of the normalised dims must be copied equally often; else the
    larger model would compute something else.
    """
    x = step.dims(step.call.argument("input"))
    count = len(step.call.argument("normalized_shape"))
    for name in ("weight", "bias"):
        if isinstance(ref := step.optional(name), Ref):
            step.check_broadcast(step.dims(ref), x)
    for dim in x[-count:]:
        step.even(dim)
    return [x, *(x[:-count] + ((),) * count for _ in step.call.outs[1:])]


@rule("native_group_norm")
def group_norm(step: Step) -> list[Dims]:
    """Find the dims of a group norm's result, those of x.

    If x grows by copies of its entries, all channels of a group must be copied equally often; else the larger model
    would compute something else.
    """
    x = step.dims(step.call.argument("input"))
    groups: SizePair = (step.calls[0].argument("group"), step.calls[1].argument("group"))
    of_group = regrouped([x[1]], [groups, over(sizes(x[1]), groups)])
    step.even(of_group[1])
    _unify_vectors(step, ("weight", "bias"), x[1])
    return [x, *((x[0], of_group[0]) for _ in step.call.outs[1:])]


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "_native_batch_norm_legit_functional",
)  # fmt: skip
def batch_norm(step: Step) -> list[Dims]:
    """Find the dims of a batch norm's result, those of x; add its running buffers to `step.factors.statistics`."""
    x = step.dims(step.call.argument("input"))
    _unify_vectors(step, ("weight", "bias", "running_mean", "running_var"), x[1])
    for name in ("running_mean", "running_var"):
        if isinstance(ref := step.optional(name), Ref):
            step.factors.statistics.update(use.origin[0] for use in step.dims(ref)[0] if use.origin)
    rest = [step.shape(ref) for ref in step.call.outs[1:]]  # empty in eval mode
    return [x, *((x[1],) if shape == [sizes(x[1])] else tuple(map(fresh, shape)) for shape in rest)]


def _unify_vectors(step: Step, names: Sequence[str], channels: Dim) -> None:
    """Make the dims of per-channel vectors (arguments of these names) the same as the dim of the channels."""
    for name in names:
        if isinstance(ref := step.optional(name), Ref):
            unify(step.dims(ref)[0], channels)


@rule(
    "sum", "mean", "var", "std", "amax", "amin", "prod", "norm", "linalg_vector_norm", "any", "all", "logsumexp",
    "argmax", "argmin", "max", "min", "median", "var_mean", "std_mean", "nansum", "count_nonzero", "aminmax", "mode",
)  # fmt: skip
def reduction(step: Step) -> Result:
    """Find the dims that are left after a reduction (sum, mean, max) over some dims, or over all."""
    x = step.dims(step.tensors()[0])
    over, keep = step.optional("dim"), bool(step.optional("keepdim"))
    over = list(range(len(x))) if over is None or over == [] else [over] if isinstance(over, int) else over
    gone = {i % len(x) for i in over} if x else set()
    for i in gone:
        step.reduced(x[i])
    kept = tuple(() if i in gone else dim for i, dim in enumerate(x) if keep or i not in gone)
    if any(len(step.shape(ref)) != len(kept) for ref in step.call.outs):  # max(x, other) is pointwise
        return pointwise(step)
    return [kept] * len(step.call.outs) if len(step.call.outs) > 1 else kept


@rule("topk", "kthvalue")
def topk(step: Step) -> list[Dims]:
    """Find the dims of the entries that a top-k chooses, and of their indices: those of x, of which one is shorter."""
    dims, at = list(step.dims(step.tensors()[0])), step.call.argument("dim", -1)
    if sizes(dims[at]) != step.shape(step.call.outs[0])[at]:
        dims[at] = step.unfollowed(step.shape(step.call.outs[0])[at])  # which of equal entries are chosen is open
    return [tuple(dims)] * 2


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps",
)  # fmt: skip
def attention(step: Step) -> list[Dims]:
    """Find the dims of scaled dot-product attention's result: those of the query, the last one that of the values.

    Several query heads may share a key head.
    """
    query, key, value = (step.dims(step.call.argument(name)) for name in ("query", "key", "value"))
    unify(query[-1], key[-1])
    for place in range(len(query) - 2):
        if sizes(query[place]) == sizes(key[place]):
            unify(query[place], key[place])
        else:  # several query heads for each key
            of_key = regrouped([query[place]], [sizes(key[place]), over(sizes(query[place]), sizes(key[place]))])
            unify(of_key[0], key[place])
        unify(key[place], value[place])
    unify(key[-2], value[-2])
    out = tuple(map(without_origin, (*query[:-1], value[-1])))
    return [out, *(step.unknown(ref) for ref in step.call.outs[1:])]


@rule("glu")
def gated(step: Step) -> Dims:
    """Find the dims of a gated linear unit's result: those of x, of which one is half as long.

    The two halves of that dim are multiplied with each other, and so become the same.
    """
    dims, at = list(step.dims(step.tensors()[0])), step.call.argument("dim", -1)
    half = step.shape()[at]
    halves = [piece(dims[at], start, half) for start in ((0, 0), half)]
    unify(halves[0], halves[1])
    dims[at] = halves[0]
    return tuple(dims)


@rule("_prelu_kernel", "prelu")
def prelu(step: Step) -> Dims:
    """Find the dims of a leaky ReLU of x with learned slopes: those of x."""
    x, slope = (step.dims(ref) for ref in step.tensors())
    step.check_broadcast(slope, x)
    return x


@rule("_weight_norm_interface")
def weight_norm(step: Step) -> list[Dims]:
    """Find the dims of the weight g v / |v| and of its norms |v|, which are over the dims that g does not have."""
    direction, gain = (step.dims(ref) for ref in step.tensors())
    step.check_broadcast(gain, direction)
    for summed in (dim for dim, kept in zip(direction, gain, strict=True) if sizes(dim) != sizes(kept)):
        step.normed(summed)
    return [direction, gain]


@rule("_grouped_mm", "grouped_mm_fallback")
def grouped_product(step: Step) -> Dims:
    """Find the dims of x (tokens, in), sorted by expert, times the matrices (experts, in, out): (tokens, out)."""
    x, weight, *_ = (step.dims(ref) for ref in step.tensors())
    unify(x[-1], weight[-2])
    step.contracted(weight[-2])
    return tuple(map(without_origin, (*x[:-1], weight[-1])))

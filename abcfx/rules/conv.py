"""Rules of convolutions of any rank, transposed or grouped, and of pooling over finite (spatial) dims."""

from __future__ import annotations

import torch.nn as nn

from abcfx.rules.extents import Number
from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.shape import count_results
from abcfx.rules.values import Value


@register_rule("conv1d", "conv2d", "conv3d")
def conv(op: Op, x: Value, weight: Value, bias: Value | None = None, *options: object) -> Value:
    """Handle F.conv1d to conv3d: a layer with a weight (out, in / groups, *kernel), summed over all dims but `out`."""
    groups = options[3] if len(options) > 3 else 1  # after stride, padding, dilation
    return _grouped(op, x, weight, bias, None if groups == 1 else op.number(groups, 6, "groups"))


def _grouped(op: Op, x: Value, weight: Value, bias: Value | None, groups: Number | None) -> Value:
    """Add a convolution, perhaps with groups, to the layer DAG as a layer, and return its result.

    Its fan_out is dim 0 of the weight, its fan_in all other dims. The gradient of an input channel sums over the output
    channels of its own group alone.

    Args:
        op: the op of the traced graph for which a node is added to the layer DAG, a graph of layers and ops.
        x: the input.
        weight: the weight (out, in / groups, *kernel).
        bias: the bias, if any.
        groups: number of groups of channels; None for 1.
    """
    out = weight.dim(0)
    back = None if groups is None or out is None else (Number(((out, 1.0),)).times(groups.power(-1.0)),)
    channels = 1 - (weight.ndim or 2)
    return op.layer(x, weight, range(1, weight.ndim or 2), [0], bias, fan_back=back, channels=channels)


@register_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(op: Op, x: Value, weight: Value, bias: Value | None = None, *options: object) -> Value:
    """Handle F.conv_transpose1d to 3d: a layer with a weight (in, out / groups, *kernel), summed over all but `out`."""
    return _transposed(op, x, weight, bias, options[3] if len(options) > 3 else 1)  # after stride and paddings


def _transposed(op: Op, x: Value, weight: Value, bias: Value | None, groups: object) -> Value:
    """Add a transposed convolution as a layer that sums over all but dim 1 of a weight (in, out / groups, *kernel).

    The layer is added to the layer DAG (graph of layers and ops), and its result is returned. With one group for each
    channel it sums over the kernel alone, and the weight is a vector along its channels.
    """
    kernel = range(2, weight.ndim or 2)
    if groups != 1 and weight.shape is not None and groups == weight.shape[0]:
        return op.layer(x, weight, kernel, [0, 1], bias, fan_back=weight.dims_at([1]))
    return op.layer(x, weight, [0, *kernel], [1], bias, channels=1 - (weight.ndim or 2))


@register_rule("convolution")
def convolution(
    op: Op,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: object,
    *_: object,
) -> Value:
    """Handle aten.convolution, any convolution, transposed or not: a layer that sums over input channels and kernel."""
    if transposed:
        return _transposed(op, x, weight, bias, groups)
    return _grouped(op, x, weight, bias, None if groups == 1 else op.number(groups, 8, "groups"))


@register_rule("conv_tbc")
def conv_tbc(op: Op, x: Value, weight: Value, bias: Value, pad: int = 0) -> Value:
    """Handle torch.conv_tbc, a convolution over (time, batch, channels): a layer over kernel and input channels."""
    return op.layer(x, weight, fan_in=[1, 0], fan_out=[2], bias=bias)


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_module(op: Op, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Value) -> Value:
    """Handle a call of nn.Conv1d to nn.Conv3d: a layer whose fan_in is in / groups times kernel, and fan_out `out`."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    groups = None if module.groups == 1 else op.attribute("groups")
    return _grouped(op, x, weight, op.parameter(module, "bias"), groups)


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def conv_transpose_module(
    op: Op, module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, x: Value, output_size: object = None
) -> Value:
    """Handle a call of nn.ConvTranspose1d to 3d: a layer with fan_in channels x kernel, fan_out `out / groups`."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return _transposed(op, x, weight, op.parameter(module, "bias"), module.groups)


@register_rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices", "adaptive_max_pool3d_with_indices",
    "fractional_max_pool2d", "fractional_max_pool3d", "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d_with_indices", "max_unpool1d", "max_unpool2d", "max_unpool3d",
    "boolean_dispatch", "interpolate", "upsample", "upsample_nearest", "upsample_bilinear",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_nearest_exact1d",
    "upsample_nearest_exact2d", "upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_trilinear3d", "upsample_bilinear2d_aa", "upsample_bicubic2d_aa",
    "upsample_lanczos2d_aa", "pixel_shuffle", "pixel_unshuffle", "lp_pool1d", "lp_pool2d", "lp_pool3d",
    "affine_grid", "affine_grid_generator", "avg_pool", "max_pool",
)  # fmt: skip
def pool(op: Op, x: Value, *_: object) -> Value | tuple[Value, ...]:
    """Handle pooling and resizing: entries, and their change in training, stay as large as they are.

    If the op returns the indices of the largest entries as well, they are a second result, a constant.
    """
    named = str(plain_name(op.at.target)).endswith("with_indices")
    return (op.same(x), op.constant()) if named or count_results(op) > 1 else op.same(x)


@register_rule("local_response_norm")
def local_response_norm(op: Op, x: Value, *_: object) -> Value:
    """Handle F.local_response_norm, x / (k + alpha * mean of x^2 over a fixed number of neighbours) ** beta.

    Its result is as large as x, and changes as x does: it keeps small entries as they are.
    """
    return op.nonlinear(x)


@register_rule("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(op: Op, x: Value, grid: Value, *_: object) -> Value:
    """Handle F.grid_sample, which reads x at the places in `grid`.

    Entries of the result are as large as those of x; training changes them through x and through the places.
    """
    return op.same(x) if grid.is_constant else op.product(x, op.pointwise(grid))


@register_rule("torchvision::roi_align", "torchvision::ps_roi_align")
def roi_align(op: Op, x: Value, boxes: Value, *_: object) -> Value:
    """Handle torchvision's roi_align, which reads x at places inside of each box, as grid_sample does, and averages.

    `boxes` are what a detector proposes; a detached tensor, or targets alone, is constant.
    """
    return grid_sample(op, x, boxes)


@register_rule(
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
)  # fmt: skip
def pool_module(op: Op, module: nn.Module, x: Value, *_: object) -> Value | tuple[Value, ...]:
    """Handle a call of a pooling, resizing or padding module: entries and their change stay as large as they are."""
    return pool(op, x)

"""Rules of convolutions of any rank, transposed or grouped, and of pooling over finite (spatial) dims."""

from __future__ import annotations

import torch.nn as nn

from abcfx.rules.extents import Number
from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.values import Value


@register_rule("conv1d", "conv2d", "conv3d", "convolution")
def conv(op: Op, x: Value, weight: Value, bias: Value | None = None, *rest: object, **options: object) -> Value:
    """Handle F.conv1d to F.conv3d: add a layer that sums over all but dim 0 of a weight (out, in / groups, *kernel)."""
    position = 5 if plain_name(op.at.target) == "convolution" else 3  # after stride, padding, dilation, transposed, ...
    groups = options.get("groups", rest[position] if len(rest) > position else 1)
    key = "groups" if "groups" in op.at.kwargs else 3 + position
    return _grouped(op, x, weight, bias, None if groups == 1 else op.scalar(key))


def _grouped(op: Op, x: Value, weight: Value, bias: Value | None, groups: Number | None) -> Value:
    """Add a convolution, perhaps with groups, as a layer.

    The gradient of an input channel sums over the output channels of its own group alone.

    Args:
        op: the op in whose place the node stands.
        x: the input.
        weight: the weight (out, in / groups, *kernel).
        bias: the bias, if any.
        groups: number of groups of channels; None for 1.
    """
    out = weight.dim(0)
    back = None if groups is None or out is None else (Number(((out, 1.0),)).times(groups.power(-1.0)),)
    return op.layer(x, weight, range(1, weight.ndim or 2), [0], bias, fan_back=back)


@register_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(op: Op, x: Value, weight: Value, bias: Value | None = None, *_: object, **__: object) -> Value:
    """Handle F.conv_transpose1d to 3d: add a layer that sums over all but dim 1 of a weight (in, out / groups,
    *kernel).
    """
    return op.layer(x, weight, fan_in=[0, *range(2, weight.ndim or 2)], fan_out=[1], bias=bias)


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_module(op: Op, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Value, *_: object, **__: object) -> Value:
    """Handle a call of nn.Conv1d to nn.Conv3d: add its weight (out, in / groups, *kernel) and bias as a layer."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    groups = None if module.groups == 1 else op.attribute("groups")
    return _grouped(op, x, weight, op.parameter(module, "bias"), groups)


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def conv_transpose_module(op: Op, module: nn.Module, x: Value, *_: object, **__: object) -> Value:
    """Handle a call of nn.ConvTranspose1d to nn.ConvTranspose3d: add its weight and bias as a layer."""
    weight = op.parameter(module, "weight")
    assert weight is not None
    return conv_transpose(op, x, weight, op.parameter(module, "bias"))


@register_rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "boolean_dispatch", "interpolate", "upsample", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "grid_sample",
    "grid_sampler", "pixel_shuffle", "pixel_unshuffle", "lp_pool2d",
)  # fmt: skip
def pool(op: Op, x: Value, *_: object, **__: object) -> Value:
    """Handle pooling and resizing over spatial dims, which do not grow with width.

    Entries keep their size and their change in training.
    """
    return op.same(x)


@register_rule(
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
def pool_module(op: Op, module: nn.Module, x: Value, *_: object) -> Value:
    """Handle a call of a pooling, resizing or padding module: entries keep their size and their change in training."""
    return op.same(x)

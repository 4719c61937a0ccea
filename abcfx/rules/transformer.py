"""Rules of torch's own transformer blocks, where the graph keeps them whole."""

from __future__ import annotations

from typing import Any

import torch.nn as nn

from abcfx.rules.attention import attend_with
from abcfx.rules.norm import norm_module
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value


def _feed_forward(op: Op, module: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, x: Value) -> Value:
    for linear in (module.linear1, module.linear2):
        weight = op.parameter(linear, "weight")
        assert weight is not None
        x = op.layer(x, weight, [-1], [-2], op.parameter(linear, "bias"), inner=True)
        if linear is module.linear1:
            x = op.nonlinear(x)
    return x


def _block(op: Op, module: Any, x: Value, memory: Value | None, path: str) -> Value:
    """Self-attention, attention to `memory` in a decoder, feed-forward; each with a skip connection and a norm."""

    def itself(y: Value) -> Value:
        return attend_with(op, module.self_attn, y, y, y, None, f"{path}self_attn.")

    def across(y: Value) -> Value:
        assert memory is not None
        return attend_with(op, module.multihead_attn, y, memory, memory, None, f"{path}multihead_attn.")

    parts = [(itself, module.norm1), (lambda y: _feed_forward(op, module, y), module.norm2)]
    if memory is not None:
        parts = [parts[0], (across, module.norm2), (parts[1][0], module.norm3)]
    for part, norm in parts:
        if module.norm_first:
            x = op.merge([x, part(norm_module(op, norm, x))])
        else:
            x = norm_module(op, norm, op.merge([x, part(x)]))
    return x


@register_rule(nn.TransformerEncoderLayer)
def encoder_layer(op: Op, module: nn.TransformerEncoderLayer, x: Value, *_: Any, **__: Any) -> Value:
    return _block(op, module, x, None, "")


@register_rule(nn.TransformerDecoderLayer)
def decoder_layer(op: Op, module: nn.TransformerDecoderLayer, x: Value, memory: Value, *_: Any, **__: Any) -> Value:
    return _block(op, module, x, memory, "")


@register_rule(nn.TransformerEncoder)
def encoder(op: Op, module: nn.TransformerEncoder, x: Value, *_: Any, **__: Any) -> Value:
    return _stack(op, module, x, None)


@register_rule(nn.TransformerDecoder)
def decoder(op: Op, module: nn.TransformerDecoder, x: Value, memory: Value, *_: Any, **__: Any) -> Value:
    return _stack(op, module, x, memory)


def _stack(op: Op, module: Any, x: Value, memory: Value | None, path: str = "") -> Value:
    for i, layer in enumerate(module.layers):
        x = _block(op, layer, x, memory, f"{path}layers.{i}.")
    return x if module.norm is None else norm_module(op, module.norm, x)


@register_rule(nn.Transformer)
def transformer(op: Op, module: nn.Transformer, src: Value, tgt: Value, *_: Any, **__: Any) -> Value:
    return _stack(op, module.decoder, tgt, _stack(op, module.encoder, src, None, "encoder."), "decoder.")

"""Rules of torch's own transformer blocks, where the graph keeps them whole."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn as nn

from abcfx.rules.attention import attend_with
from abcfx.rules.norm import norm_module
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value

Block = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer


def _feed_forward(op: Op, module: Block, x: Value) -> Value:
    """Add the feed-forward part of a transformer block, two layers around an activation function; return its output."""
    for linear in (module.linear1, module.linear2):
        weight = op.parameter(linear, "weight")
        assert weight is not None
        x = op.layer(x, weight, [-1], [-2], op.parameter(linear, "bias"), inner=True)
        if linear is module.linear1:
            x = op.nonlinear(x)
    return x


def _block(op: Op, module: Block, x: Value, memory: Value | None, path: str) -> Value:
    """Add a transformer block (self-attention, attention to `memory`, feed-forward, skips, norms); return its output.

    Args:
        op: the op of the traced graph for which nodes are added to the layer DAG, a graph of layers and ops.
        module: an encoder or decoder block of torch.
        x: the input.
        memory: for a decoder, the output of the encoder; None for an encoder.
        path: the block's path, with a dot at its end, inside the module that the graph calls; "" if it is this module.
    """

    def attend(y: Value, attention: nn.MultiheadAttention, name: str, other: Value | None = None) -> Value:
        """Add attention of y to `other` (y itself if None) to the layer DAG, with the block's submodule `name`.

        The layer DAG is a graph of the model's layers and ops.
        """
        seen = y if other is None else other
        return attend_with(op, attention, y, seen, seen, None, f"{path}{name}.")

    parts: list[tuple[Callable[[Value], Value], nn.Module]]
    if isinstance(module, nn.TransformerDecoderLayer):
        parts = [
            (lambda y: attend(y, module.self_attn, "self_attn"), module.norm1),
            (lambda y: attend(y, module.multihead_attn, "multihead_attn", memory), module.norm2),
            (lambda y: _feed_forward(op, module, y), module.norm3),
        ]
    else:
        parts = [
            (lambda y: attend(y, module.self_attn, "self_attn"), module.norm1),
            (lambda y: _feed_forward(op, module, y), module.norm2),
        ]
    for part, norm in parts:
        if module.norm_first:
            x = op.merge([x, part(norm_module(op, norm, x))])
        else:
            x = norm_module(op, norm, op.merge([x, part(x)]))
    return x


@register_rule(nn.TransformerEncoderLayer)
def encoder_layer(op: Op, module: nn.TransformerEncoderLayer, x: Value, *_: object) -> Value:
    """Handle a call of nn.TransformerEncoderLayer: self-attention and feed-forward, each with a skip and a norm.

    The output is of order 1 after a last norm, else as large as the residual stream.
    """
    return _block(op, module, x, None, "")


@register_rule(nn.TransformerDecoderLayer)
def decoder_layer(op: Op, module: nn.TransformerDecoderLayer, x: Value, memory: Value, *_: object) -> Value:
    """Handle a call of nn.TransformerDecoderLayer: self-attention, attention to `memory`, and feed-forward.

    Each has a skip and a norm. The output is of order 1 after a last norm, else as large as the residual stream.
    """
    return _block(op, module, x, memory, "")


@register_rule(nn.TransformerEncoder)
def encoder(op: Op, module: nn.TransformerEncoder, x: Value, *_: object) -> Value:
    """Handle a call of nn.TransformerEncoder: its blocks, run one after the other, and the norm at their end."""
    return _stack(op, module, x, None)


@register_rule(nn.TransformerDecoder)
def decoder(op: Op, module: nn.TransformerDecoder, x: Value, memory: Value, *_: object) -> Value:
    """Handle a call of nn.TransformerDecoder: blocks that all read `memory`, and the norm at their end."""
    return _stack(op, module, x, memory)


def _stack(
    op: Op, module: nn.TransformerEncoder | nn.TransformerDecoder, x: Value, memory: Value | None, path: str = ""
) -> Value:
    """Add all blocks of a transformer encoder or decoder and the norm at their end, if any; return the output.

    Args:
        op: the op of the traced graph for which nodes are added to the layer DAG, a graph of layers and ops.
        module: the encoder or decoder.
        x: the input.
        memory: for a decoder, the output of the encoder.
        path: the module's path, with a dot at its end, inside the module that the graph calls; "" if it is this module.
    """
    for i, layer in enumerate(module.layers):
        x = _block(op, layer, x, memory, f"{path}layers.{i}.")
    return x if module.norm is None else norm_module(op, module.norm, x)


@register_rule(nn.Transformer)
def transformer(op: Op, module: nn.Transformer, src: Value, tgt: Value, *_: object) -> Value:
    """Handle a call of nn.Transformer: the encoder on `src`, then the decoder on `tgt` with the encoder's output."""
    return _stack(op, module.decoder, tgt, _stack(op, module.encoder, src, None, "encoder."), "decoder.")

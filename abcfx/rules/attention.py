"""Rules of fused attention: two products of activations around a softmax over keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn

from abcfx.rules.extents import Extent, Number
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value


def _attend(
    op: Op, query: Value, key: Value, value: Value, head: Extent | None, scale: Number | None, mask: object
) -> Value:
    """Add attention, softmax(scale * query key + mask) value, to the layer DAG (graph of the model's layers and ops).

    Args:
        op: the op of the traced graph for which nodes are added.
        query: abstract tensor (a record of what is known of a tensor) of the queries.
        key: that of the keys.
        value: that of the values.
        head: the dim that query times key is summed over, or a number such as its size; None where it is not known.
        scale: the number that logits are multiplied by; None for none.
        mask: a tensor that is added to the logits; other masks count for nothing.

    Returns:
        The abstract tensor of the result, whose entries are as large as those of `value`.
    """
    if op.is_weight(query) and not op.is_weight(key):  # learned queries: their weights are what the keys meet
        logits = op.layer(key, query, fan_in=[-1], fan_out=[], inner=True)
    elif op.is_weight(key) and not op.is_weight(query):  # learned keys, as of a memory
        logits = op.layer(query, key, fan_in=[-1], fan_out=[-2], inner=True)
    else:
        logits = op.product(query, key, () if head is None else (head,))
    if scale is not None:
        logits = op.scale(logits, scale)
    if isinstance(mask, Value):
        logits = op.merge([logits, mask])
    weights = op.softmax_over_tokens(logits)
    if op.is_weight(value) and not op.is_weight(weights):
        return op.layer(weights, value, fan_in=[-2], fan_out=[-1], inner=True)
    return op.product(weights, value, broadcast=(() if head is None else (head,), ()))


@register_rule("scaled_dot_product_attention")
def scaled_dot_product_attention(
    op: Op,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: object = None,
    enable_gqa: bool = False,
) -> Value:
    """Handle F.scaled_dot_product_attention: query times key, summed over head_dim, then a softmax, then times value.

    The logits are multiplied by `scale` or, if it is None, by 1 / sqrt(head_dim). The entries of the result are as
    large as those of `value`, since the attention weights of a query sum to 1 over tokens.
    """
    head = query.dim(-1)
    if scale is None:
        factor = None if head is None else Number(((head, -0.5),))
    else:
        factor = scale if isinstance(scale, Number) else op.scalar(7, "scale")
    return _attend(op, query, key, value, head, factor, attn_mask)


@register_rule(nn.MultiheadAttention)
def multi_head_attention(
    op: Op,
    module: nn.MultiheadAttention,
    query: Value,
    key: Value,
    value: Value,
    key_padding_mask: object = None,
    need_weights: bool = True,
    attn_mask: object = None,
    *_: object,
) -> tuple[Value, Value]:
    """Handle a call of nn.MultiheadAttention: four layers (query, key, value and output projection) around attention.

    Returns the output, which has entries as large as the output projection's result, and the attention weights, of
    order 1.
    """
    out = attend_with(op, module, query, key, value, attn_mask)
    return out, op.pointwise(out)


def attend_with(
    op: Op, module: nn.MultiheadAttention, query: Value, key: Value, value: Value, mask: object, path: str = ""
) -> Value:
    """Add multi-head attention (its projections, attention, and output layer) to the layer DAG and return its output.

    Args:
        op: the op of the traced graph for which nodes are added to the layer DAG, a graph of layers and ops.
        module: holds the weights.
        query: the tensor that queries are made of.
        key: the tensor that keys are made of.
        value: the tensor that values are made of.
        mask: a tensor added to the logits; other masks count for nothing.
        path: where `module` is a part of the module that the graph calls, its path there with a dot, such as
            "self_attn.".
    """
    fused = op.parameter(module, "in_proj_weight")
    bias = op.parameter(module, "in_proj_bias")
    if fused is not None and query == key == value:
        q = k = v = op.layer(query, fused, [-1], [-2], bias, inner=True, pieces=3)
    else:
        separate = [op.parameter(module, f"{name}_proj_weight") for name in "qkv"]
        weights = [fused] * 3 if fused is not None else separate
        q, k, v = (
            op.layer(x, weight, [-1], [-2], bias, inner=True)
            for x, weight in zip((query, key, value), weights, strict=True)
            if weight is not None
        )
    extra = [op.parameter(module, name) for name in ("bias_k", "bias_v")]
    k, v = (op.merge([x, e]) if e is not None else x for x, e in zip((k, v), extra, strict=True))
    head = op.attribute(f"{path}head_dim")
    out = _attend(op, q, k, v, head, head.power(-0.5), mask)
    weight = op.parameter(module.out_proj, "weight")
    assert weight is not None
    return op.layer(out, weight, [-1], [-2], op.parameter(module.out_proj, "bias"), inner=True)


@register_rule("multi_head_attention_forward")
def multi_head_attention_forward(
    op: Op,
    query: Value,
    key: Value,
    value: Value,
    embed_dim: object,
    num_heads: object,
    in_proj_weight: Value | None,
    in_proj_bias: Value | None,
    bias_k: Value | None,
    bias_v: Value | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Value,
    out_proj_bias: Value | None,
    training: bool = True,
    key_padding_mask: object = None,
    need_weights: bool = True,
    attn_mask: object = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Value | None = None,
    k_proj_weight: Value | None = None,
    v_proj_weight: Value | None = None,
    *_: object,
) -> tuple[Value, Value]:
    """Handle F.multi_head_attention_forward, by which nn.MultiheadAttention computes: four layers around attention.

    Returns the output, which has entries as large as the output projection's result, and the attention weights, of
    order 1.
    """
    separate = [weight for weight in (q_proj_weight, k_proj_weight, v_proj_weight) if weight is not None]
    weights: Sequence[Value | None] = separate or [in_proj_weight] * 3
    q, k, v = (
        op.layer(x, weight, [-1], [-2], in_proj_bias, inner=True)
        for x, weight in zip((query, key, value), weights, strict=True)
        if weight is not None
    )
    k, v = (op.merge([x, e]) if e is not None else x for x, e in ((k, bias_k), (v, bias_v)))
    width = query.dim(-1)
    head = None if width is None else Number(((width, 1.0),)).times(op.scalar(4).power(-1.0))
    out = _attend(op, q, k, v, head, None if head is None else head.power(-0.5), attn_mask)
    return op.layer(out, out_proj_weight, [-1], [-2], out_proj_bias, inner=True), op.pointwise(out)

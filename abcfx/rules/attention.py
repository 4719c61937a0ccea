"""Rules of fused attention: two products of activations around a softmax over keys."""

from __future__ import annotations

from typing import Any

from abcfx.rules.kinds import Number
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value


@register_rule("scaled_dot_product_attention")
def scaled_dot_product_attention(
    op: Op,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Value:
    head = query.dim(-1)
    logits = op.product(query, key, () if head is None else (head,))
    if isinstance(scale, Number):
        logits = op.scale(logits, scale)
    elif scale is not None:
        logits = op.scale(logits, op.scalar("scale"))
    elif head is not None:
        logits = op.scale(logits, Number(((head, -0.5),)))
    if isinstance(attn_mask, Value):
        logits = op.merge([logits, attn_mask])
    return op.product(op.pointwise(logits), value)

"""Rules of ops that run many expert matrices at once."""

from __future__ import annotations

from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value


@register_rule("grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(op: Op, x: Value, weight: Value, offs: object = None, bias: Value | None = None) -> Value:
    """Handle grouped_mm, which multiplies each token of x (tokens, in) by the matrix of its expert: a layer.

    The weight is (experts, in, out): the layer sums over `in`, and its result is (tokens, out).
    """
    return op.layer(x, weight, fan_in=[-2], fan_out=[-1], bias=bias, over=())  # which token is where follows the router

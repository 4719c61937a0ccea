"""Rules of losses, which turn outputs into one number or one for each example."""

from __future__ import annotations

from abcfx.rules.norm import cosine_similarity, distance
from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value

_SUM = 2  # how aten ops spell reduction="sum"


@register_rule(
    "cross_entropy", "cross_entropy_loss", "nll_loss", "nll_loss_nd", "ctc_loss", "margin_ranking_loss",
    "multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss",
)  # fmt: skip
def loss(op: Op, x: Value, target: object, *others: object, log_target: bool = False) -> Value:
    """Handle a loss such as cross entropy: a number as large as the entries of its largest input, logits or targets."""
    moving = [v for v in others if isinstance(v, Value) and not v.is_constant]
    return op.nonlinear(op.merge([v for v in (x, target, *moving) if isinstance(v, Value)]))


@register_rule(
    "binary_cross_entropy_with_logits", "binary_cross_entropy", "kl_div", "poisson_nll_loss", "gaussian_nll_loss",
    "soft_margin_loss", "hinge_embedding_loss",
)  # fmt: skip
def loss_of_entries(op: Op, x: Value, target: object, *others: object, log_target: bool = False) -> Value:
    """Handle a loss that has a term for each entry, such as binary cross entropy: as large as its largest input.

    With reduction="sum", or "batchmean", it is a sum over all entries: n times as large, for n of them.
    """
    terms = loss(op, x, target, *others)
    integers = [
        each for each in others if isinstance(each, int) and not isinstance(each, bool)
    ]  # how aten ops spell it
    is_sum = "sum" in others or "batchmean" in others or _SUM in integers
    return op.reduce(terms, None, mean=False, dims_of=x) if is_sum else terms


@register_rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def regression_loss(op: Op, x: Value, target: object, *options: object) -> Value:
    """Handle a regression loss such as F.mse_loss: a number per entry, as large as entries of x or target.

    `reduction` says whether the mean (the default) or sum over all dims is taken of it, or neither.
    """
    both = op.nonlinear(op.merge([v for v in (x, target) if isinstance(v, Value)]))
    if "none" in options or (options[:1] == (0,)):
        return both
    return op.reduce(both, None, mean="sum" not in options and options[:1] != (_SUM,), dims_of=x)


@register_rule("triplet_margin_loss")
def triplet_margin_loss(op: Op, anchor: Value, positive: Value, negative: Value, *_: object) -> Value:
    """Handle F.triplet_margin_loss: as large as the larger of the distances of anchor to positive and to negative."""
    return op.nonlinear(op.merge([distance(op, anchor, positive), distance(op, anchor, negative)]))


@register_rule("cosine_embedding_loss")
def cosine_embedding_loss(op: Op, x: Value, y: Value, target: Value, *_: object) -> Value:
    """Handle F.cosine_embedding_loss, a function of the cosine of x and y over their last dim, and as large as it."""
    return op.nonlinear(cosine_similarity(op, x, y, -1))


@register_rule("linear_cross_entropy")
def linear_cross_entropy(op: Op, x: Value, weight: Value, target: Value, bias: Value | None = None) -> Value:
    """Handle F.linear_cross_entropy: a layer, x @ weight.T + bias, and a loss as large as entries of its output."""
    return op.nonlinear(op.layer(x, weight, fan_in=[-1], fan_out=[-2], bias=bias, inner=True))

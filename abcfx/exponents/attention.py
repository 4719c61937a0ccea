"""Attention logits: how the model itself scales them, and the factor that is missing for 1 / head_dim.

Query and key become correlated in training, so that their product sums head_dim aligned terms. With a head_dim of d
where the base has d0, logits stay stable with a scale of d0^-1/2 (d / d0)^-1, not with d^-1/2. With a head_dim that
stays they need a scale that stays: one of width^-1/2 would make them die out.

Source: Yang et al. 2022 (arXiv 2203.03466), definition 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from abcfx.dag.queries import attention_products
from abcfx.errors import InvalidInputError
from abcfx.exponents.fixed import FixedExponents
from abcfx.rules.kinds import NumberFactor, Product
from abcfx.support.location import location

TOLERANCE = 1e-6


@dataclass(frozen=True)
class AttentionLogits:
    """A product of queries and keys in front of a softmax, with its exponents of the width ratio m.

    Attributes:
        node: name of the product in the layer DAG.
        growth: head_dim grows as m^growth.
        scale: the model's own factor on the logits, and on queries and keys, is ~ m^-scale.
        missing: a further factor m^-missing makes the change of the logits O(1); missing < 0 where the model's own
            factor is too small.
    """

    node: str
    growth: float
    scale: float
    missing: float


def find_attention(fixed: FixedExponents) -> tuple[AttentionLogits, ...]:
    """Find the products of queries and keys in a model, and the factors that their logits need beside the model's own.

    Args:
        fixed: the exponents of the model's layers, without any factor on attention.

    Raises:
        InvalidInputError: head_dim grows, and the model's own factor on the logits is known only when it runs.
    """
    found = []
    for node, after in attention_products(fixed.dag).items():
        kind = fixed.dag.kind(node)
        assert isinstance(kind, Product)
        if not all(map(fixed.changes, kind.inputs)):
            continue
        e = fixed.growth(*kind.contracted)
        if e > TOLERANCE:
            _refuse_unread(fixed, node, after)
        on_the_way = sum(_scale_of(fixed, n, before) for n, before in pairwise([*after, node]))
        scale = sum(map(fixed.trained_size, kind.inputs)) + on_the_way
        missing = e - scale if abs(e - scale) > TOLERANCE else 0.0
        found.append(AttentionLogits(node, e, scale, missing))
    return tuple(found)


def _scale_of(fixed: FixedExponents, node: str, before: str) -> float:
    """Return x, where a DAG node multiplies attention logits by a number or a tensor that is ~ m^-x (m: width ratio).

    A temperature is such a tensor, perhaps times 1 / sqrt(head_dim). `before` is the node that computes the logits.
    """
    kind = fixed.dag.kind(node)
    if isinstance(kind, NumberFactor):
        return kind.shift(fixed)
    if isinstance(kind, Product) and before in kind.inputs:
        return fixed.trained_size(kind.inputs[1 - kind.inputs.index(before)])
    return 0.0


def _refuse_unread(fixed: FixedExponents, node: str, after: list[str]) -> None:
    """Raise an error if a model scales logits, queries or keys by a value that is known only when it runs.

    Args:
        fixed: the exponents decided before the linear program, with the layer DAG, a graph of the model's layers.
        node: the product of queries and keys.
        after: the nodes between the product and its softmax.

    Raises:
        InvalidInputError: names the place of that value.
    """
    before = [n for n in fixed.dag.kind(node).inputs if n is not None]
    for n in (*after, *before):
        kind = fixed.dag.kind(n)
        if isinstance(kind, NumberFactor) and not fixed.widths.is_known(kind.factor):
            raise InvalidInputError(
                f"The scale of attention could not be found: {location(fixed.dag.node(n).fx_node)}\n"
                f"  multiplies the logits, whose head_dim grows, by a tensor that is not known before the model runs.\n"
                f"  To fix: make it a Python number, or\n"
                f"  transform(..., parametrization=Parametrization(attention='keep'))."
            )


def describe(found: tuple[AttentionLogits, ...]) -> tuple[str, ...]:
    """Return notes for the report that say by which factor the attention logits in `found` are multiplied, and why."""
    if not found:
        return ()
    grown = [each for each in found if each.growth > TOLERANCE or each.missing]
    if not grown:
        return (f"attention: head_dim is the same in base and target, so {_products(found)} keep their scale",)
    notes = []
    alike: dict[tuple[float, float, float], list[AttentionLogits]] = {}
    for each in grown:
        alike.setdefault((round(each.missing, 6), round(each.scale, 6), round(each.growth, 6)), []).append(each)
    for (missing, scale, growth), some in alike.items():
        dims = f"head_dim grows as m^{growth:g}" if growth > TOLERANCE else "head_dim is the same in base and target"
        own = f"the model's own scale is m^{-scale + 0.0:g}, {dims}"
        if missing:
            terms = ", and q k sums aligned terms" if growth > TOLERANCE else ""
            notes.append(f"attention: {_products(some)} are multiplied by m^{-missing:g}: {own}{terms}")
        else:
            notes.append(f"attention: {_products(some)} keep their scale: {own}")
    return tuple(notes)


def _products(found: Sequence[AttentionLogits]) -> str:
    """Return text such as "the logits of 2 products (attn, attn_1)" for a note in the report."""
    shown = ", ".join(each.node for each in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return f"the logits of {len(found)} product{'s' * (len(found) > 1)} ({shown})"

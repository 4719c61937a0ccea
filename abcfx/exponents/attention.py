"""Which products are attention logits, how the model itself scales them, and what is missing for 1 / head_dim.

Query and key become correlated in training, so that their product sums head_dim aligned terms: where head_dim grows,
logits stay stable at d0^-1/2 (d / d0)^-1, not at d^-1/2 (Yang et al. 2022, arXiv 2203.03466, definition 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from abcfx.dag.queries import attention_products
from abcfx.errors import InvalidInputError
from abcfx.exponents.fixed import FixedExponents
from abcfx.rules.kinds import NumberFactor, Product
from abcfx.support.location import location

TOLERANCE = 1e-6


@dataclass(frozen=True)
class AttentionLogits:
    """A product of queries and keys in front of a softmax; exponents of m.

    `growth`: of head_dim. `scale`: the model's own factor on its logits is ~ m^-scale. `missing`: a factor m^-missing
    makes the logits' change O(1).
    """

    node: str
    growth: float
    scale: float
    missing: float


def find_attention(setting: FixedExponents) -> tuple[AttentionLogits, ...]:
    """Every attention product of a model, as its layers stand (without any factor on attention)."""
    found = []
    for node, after in attention_products(setting.dag).items():
        kind = setting.dag.kind(node)
        assert isinstance(kind, Product)
        if not all(map(setting.changes, kind.inputs)):
            continue
        e = setting.growth(*kind.contracted)
        if e > TOLERANCE:
            _refuse_unread(setting, node, after)
        on_the_way = sum(each.shift(setting) for n in after if isinstance(each := setting.dag.kind(n), NumberFactor))
        scale = setting.size(node) + e / 2 + on_the_way
        missing = e - scale if e > TOLERANCE and e - scale > TOLERANCE else 0.0
        found.append(AttentionLogits(node, e, scale, missing))
    return tuple(found)


def _refuse_unread(setting: FixedExponents, node: str, after: list[str]) -> None:
    """A factor on the logits, or on what is multiplied to them, whose value is not known before the model runs."""
    before = [n for n in setting.dag.kind(node).inputs if n is not None]
    for n in (*after, *before):
        kind = setting.dag.kind(n)
        if isinstance(kind, NumberFactor) and not setting.widths.is_known(kind.factor):
            raise InvalidInputError(
                f"The scale of attention could not be found: {location(setting.dag.node(n).fx_node)}\n"
                f"  multiplies the logits, whose head_dim grows, by a tensor that is not known before the model runs.\n"
                f"  To fix: make it a Python number, or\n"
                f"  transform(..., parametrization=Parametrization(attention='keep'))."
            )


def describe(found: tuple[AttentionLogits, ...]) -> tuple[str, ...]:
    """What was done about attention, and why, for the report."""
    if not found:
        return ()
    grown = [each for each in found if each.growth > TOLERANCE]
    if not grown:
        return (f"attention: head_dim is the same in base and target, so {_products(found)} keep their scale",)
    notes = []
    for missing in dict.fromkeys(round(each.missing, 6) for each in grown):
        some = tuple(each for each in grown if round(each.missing, 6) == missing)
        own = f"the model's own scale is m^-{some[0].scale:g}, head_dim grows as m^{some[0].growth:g}"
        if missing:
            notes.append(
                f"attention: {_products(some)} are multiplied by m^-{missing:g}: {own}, and q k sums aligned terms"
            )
        else:
            notes.append(f"attention: {_products(some)} keep their scale: {own}")
    return tuple(notes)


def _products(found: tuple[AttentionLogits, ...]) -> str:
    shown = ", ".join(each.node for each in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return f"the logits of {len(found)} product{'s' * (len(found) > 1)} ({shown})"

"""Constraints as reports tell them: what keeps each learning-rate exponent from being smaller, and shadow prices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from abcfx.exponents.dag_program import Binding, BindingKind
from abcfx.lp.names import RowName
from abcfx.lp.rows import ALIGNMENTS
from abcfx.outcome import Outcome
from abcfx.report.names import collapse_names

# why c is not smaller, and so the rate not larger; by the tag in the column `binds`
TAGS = {
    "alpha": "with a larger rate, its update times its input (dW x) would change its output more at larger widths",
    "u": "with a larger rate, its update times the change of its input (dW dx) would change its output more at larger "
    "widths",
    "gradient": "with a larger rate, it would send back larger gradients than the layers before it are scaled for",
    "rule": "not part of the linear program: its rate is the largest that the tensor that it acts on allows",
    "given": "you gave c in `exponents`",
    "free": "nothing: it reaches no output of the model, so c is kept within fixed bounds",
    "omega": "holds layers before it: its initial weight times the change of its input (W dx) changes its output",
}
PRICED = ("alpha", "omega", "u", "gradient")


class Price(NamedTuple):
    """Rows of the linear program that are of one kind and have one shadow price (what a constraint costs).

    Attributes:
        tag: what the rows bound: a change of an output by dW x ("alpha"), dW dx ("u") or W dx ("omega"), or a
            "gradient".
        price: how much the sum of all c (learning rates m^-c; m, the width ratio) falls per unit by which such a row is
            relaxed.
        nodes: names of the DAG nodes whose rows they are; names that differ in numbers only are collapsed into one.
    """

    tag: str
    price: float
    nodes: tuple[str, ...]


def tag_of(name: RowName) -> str:
    """Return the kind of a constraint as reports name it: "alpha", "u", "omega", "gradient", or another kind's name.

    For a layer y = W x the first three bound the change of y by dW x, dW dx and W dx.
    """
    return "gradient" if name.kind.bounds_gradient else name.kind.value


def binding_tags(binding: Binding) -> tuple[str, ...]:
    """Return in words, for a column of a table, what keeps a parameter's learning rate from being larger.

    The words are kinds of constraints ("alpha", "u", "gradient"); or "rule" (it is in no linear program), "given" (by
    the user) or "free" (nothing does).
    """
    if binding.kind is not BindingKind.ROWS:
        return (binding.kind.value,)
    return tuple(dict.fromkeys(map(tag_of, binding.rows)))


def used_tags(outcome: Outcome) -> dict[str, str]:
    """Return the words in the report's column `binds` (what keeps a learning rate down), and their meanings."""
    found = dict.fromkeys(tag for plan in outcome.plan.values() for tag in binding_tags(plan.binding))
    found |= dict.fromkeys(price.tag for price in bottlenecks(outcome))
    return {tag: TAGS.get(tag, tag) for tag in found}


def group_prices(prices: Mapping[Hashable, float]) -> list[Price]:
    """Group shadow prices of constraints by kind and price: alignments of updates first, then the highest price.

    Args:
        prices: shadow price by name of the row; names of anything but rows are skipped.
    """
    nodes: dict[tuple[str, float], dict[str, None]] = {}
    for name, price in prices.items():
        if isinstance(name, RowName):
            nodes.setdefault((tag_of(name), round(abs(price), 6)), {})[name.node] = None
    found = [
        Price(tag, price, tuple(part.shown for part in collapse_names(which))) for (tag, price), which in nodes.items()
    ]
    return sorted(found, key=lambda each: (each.tag not in ALIGNMENTS, -each.price))


def bottlenecks(outcome: Outcome) -> list[Price]:
    """Return shadow prices of constraints with alignments or gradients: how much each keeps learning rates down.

    Those with alignments (how strongly updates line up with inputs) come first, then the highest price.
    """
    return [price for price in group_prices(outcome.solution.shadow_prices) if price.tag in PRICED]

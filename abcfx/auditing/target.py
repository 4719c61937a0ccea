"""The right exponents of a model in its user's own terms: those of the plan, with the model's own multipliers kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from abcfx.auditing.own_numbers import own_multipliers
from abcfx.auditing.state import AuditState
from abcfx.dag.queries import attention_products
from abcfx.exponents.attention import find_attention
from abcfx.exponents.dag_program import DagProgram
from abcfx.exponents.fixed import FixedExponents, ParameterExponents
from abcfx.theory.parametrizations import Alignments

TOLERANCE = 0.03  # of exponents of width that are compared


def right_state(fixed: FixedExponents, alignment: Mapping[str, Alignments], drawn: Mapping[str, float]) -> AuditState:
    """Return the plan for a model in its user's own terms: the multipliers in its forward stay, init and rates follow.

    By the symmetry between multiplier, init and rate every plan can be written so. What is left as a multiplier is what
    one weight with two uses needs, and attention.

    Args:
        fixed: roles of parameters, and the exponents that a plan for the model would have.
        alignment: how strongly updates line up with inputs, of each layer node.
        drawn: exponent b of the model's own init m^-b, by parameter. Where a number stands between two layers, it says
            to which of them the number belongs.
    """
    multipliers = own_multipliers(fixed, drawn)
    own = {name: _in_own_terms(each, multipliers[name]) for name, each in fixed.parameters.items()}
    absorbed = FixedExponents(fixed.dag, fixed.widths, own, fixed.families)
    missing = {each.node: each.missing for each in find_attention(absorbed) if each.missing}
    solved = DagProgram(absorbed.with_attention(missing), alignment).solve()
    a = {node: value for each in own.values() for node, value in each.a.items()}
    a |= dict.fromkeys(attention_products(fixed.dag), 0.0) | missing
    b = {name: each.b for name, each in own.items()}
    c = {name: value for name, value in solved.c.items() if own[name].learns}
    return AuditState(absorbed, alignment, b, c, a)


def _in_own_terms(decided: ParameterExponents, own: float) -> ParameterExponents:
    """Return a parameter's planned exponents with the multiplier of its first use moved into its init.

    Args:
        decided: its exponents.
        own: the model's own forward multiplies it by m^-own (m, the width ratio).
    """
    lead = next(iter(decided.a.values()), 0.0)
    left = {node: a - lead for node, a in decided.a.items()}
    return replace(decided, a=left, b=decided.b + lead + decided.own - own, segments={})

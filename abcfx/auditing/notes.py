"""Sentences of an audit on the model as a whole: rates of another optimizer, and an eps that does not scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from abcfx.auditing.audit_rows import EPS_FAILS, EPS_WEAK, eps_share
from abcfx.auditing.comparison import Comparison
from abcfx.auditing.faults import faults
from abcfx.auditing.state import AuditState
from abcfx.auditing.target import right_state
from abcfx.exponents.fixed import FixedExponents
from abcfx.theory.optimizers import FAMILIES, OptimizerFamily

_OTHERS = ("adamw", "sgd", "muon")


def audit_notes(known: Comparison) -> tuple[str, ...]:
    """Return sentences on the model as a whole."""
    return (*_other_optimizer(known), *_eps(known))


def _other_optimizer(known: Comparison) -> Iterator[str]:
    """Yield a note if the rates, wrong as they are, would be right for another optimizer."""
    if len(known.guilty) < 2:
        return
    updates = {known.planned.families[name].update for name in known.state.c}
    for name in _OTHERS:
        if FAMILIES[name].update not in updates and not faults(*_under(known, FAMILIES[name]), known.zeros):
            yield f"the rates are those of {name}: for its updates init, multipliers and rates would all be right"


def _under(known: Comparison, family: OptimizerFamily) -> tuple[AuditState, AuditState]:
    """Return what is there, and what would be right, if another optimizer trained all parameters."""
    planned, drawn = known.planned, known.state.b
    families = dict.fromkeys(planned.parameters, family)
    other = FixedExponents(planned.dag, planned.widths, planned.parameters, families)
    right = right_state(other, known.state.alignment, drawn)
    return replace(known.state, frame=right.frame), right


def _eps(known: Comparison) -> Iterator[str]:
    """Yield a note if eps does not scale with the gradients, and is small enough at the larger width all the same."""
    shares = {name: each for name in known.rates if (each := eps_share(known, name)) is not None}
    if not shares:
        return
    largest = max(shares, key=lambda name: shares[name])
    share, grown = shares[largest]
    if 0.0 < share < EPS_WEAK:
        reach = known.width * (EPS_FAILS / share) ** (1 / grown)
        yield (
            f"eps does not shrink as the gradients do: at width {known.width} it is at most {share:.1g} of them "
            f"({largest}), and would reach {EPS_FAILS:g} at width {float(f'{reach:.1g}'):,.0f}"
        )
    elif share == 0.0:
        yield "eps does not shrink as the gradients do; how large these are could not be measured"

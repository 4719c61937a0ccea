"""Makes the rows of an audit: what each parameter does as the width grows, why, and what puts it right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from abcfx.auditing.audit_result import AuditRow, Exponents
from abcfx.auditing.comparison import Comparison
from abcfx.auditing.faults import Fault, FaultKind
from abcfx.auditing.fixes import Fix, power
from abcfx.auditing.target import TOLERANCE
from abcfx.dag.queries import attention_products
from abcfx.exponents.recursion import Course
from abcfx.lp.names import RowKind
from abcfx.report.names import listed
from abcfx.rules import Layer
from abcfx.support.verdict import Verdict

EPS_FAILS, EPS_WEAK = 0.1, 0.01  # eps over the RMS of the gradient that it is added to
_TERMS = {RowKind.ALPHA: "dW x", RowKind.U: "dW dx", RowKind.OMEGA: "W dx", RowKind.UPDATE: "its update"}


def audit_rows(known: Comparison) -> tuple[AuditRow, ...]:
    """Return a row for each parameter and attention, and further ones where eps or weight decay are not right.

    Args:
        known: all that is known of the model at both widths.
    """
    names = list(known.planned.parameters)
    rows = [_scaling(known, name) for name in names]
    rows += _attention(known)
    rows += [row for name in names for row in (*_eps(known, name), *_decay(known, name))]
    return tuple(rows)


# -- init, multiplier and rate


def _scaling(known: Comparison, name: str) -> AuditRow:
    """Return the row on a parameter's init, multiplier and learning rate."""
    decided, exponents = known.planned.parameters[name], exponents_of(known, name)
    row = AuditRow(name=name, verdict=Verdict.PASS, role=decided.role, exponents=exponents)
    if decided.frozen or not known.planned.dag.uses().get(name):
        told = "requires_grad is False" if decided.frozen else "no output of the model depends on it"
        return replace(row, verdict=Verdict.SKIP, kind="not trained", reason=told)
    if name not in known.rates:
        told = "it requires a gradient, and is in no group of the optimizer at both widths, or has a rate of zero"
        fix = f"give {name!r} to the optimizer, or set requires_grad to False"
        return replace(row, verdict=Verdict.FAIL, kind="does not learn", reason=told, fix=fix)
    if name not in known.guilty:
        return replace(row, reason=_why_right(known, name))
    fault, change = known.fault_of(name), known.change(name)
    kind = FaultKind.LAZY if fault is None else fault.kind
    verdict = Verdict.WEAK if kind is FaultKind.SLOW else Verdict.FAIL
    reason = _why_wrong(known, name, fault)
    return replace(
        row, verdict=verdict, kind=kind.value, reason=reason, fix=change.sentence(known.width), change=change
    )


def exponents_of(known: Comparison, name: str) -> Exponents:
    """Return what was read off for a parameter, and what it leads to."""
    state, course, dag = known.state, known.state.course, known.planned.dag
    node = next(iter(dag.uses().get(name, ())), None)
    own, rates = known.own_init.get(name), known.rates.get(name)
    terms = {} if node is None else course.terms_of(node)
    return Exponents(
        a=known.multiplier(name),
        b=None if name in known.zeros else state.b.get(name),
        c=state.c.get(name),
        b_error=0.0 if own is None else own.error,
        right_b=known.right.b.get(name),
        right_c=known.right.c.get(name),
        s=None if node is None else _finite(state.fixed.size(node)),
        r=None if node is None else _finite(course.r(node)),
        alpha=_finite(terms.get(RowKind.ALPHA, terms.get(RowKind.UPDATE))),
        u=_finite(terms.get(RowKind.U)),
        omega=_finite(terms.get(RowKind.OMEGA)),
        g=_finite(course.values.get(("g", name))),
        eps=None if rates is None else rates.eps,
        decay=None if rates is None else rates.decay,
    )


def _finite(value: float | None) -> float | None:
    """Return a number rounded, without a minus before zero; None for what is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, 4) + 0.0


def _why_right(known: Comparison, name: str) -> str:
    """Say why a parameter is right, in exponents of the width ratio m."""
    state, right, decided = known.state, known.right, known.planned.parameters[name]
    is_matrix = any(isinstance(known.planned.dag.kind(node), Layer) for node in decided.a)
    parts = []
    if name in known.zeros:
        parts.append("init zero")
    elif is_matrix:
        parts.append(f"init {_law(state.b[name])}")
    if is_matrix and abs(a := known.multiplier(name)) > TOLERANCE:
        parts.append(f"multiplier {power(-a)}")
    parts.append(f"lr {_law(state.c[name])}")
    lead = next(iter(decided.a.values()), 0.0)
    moved = known.multiplier(name) - lead - decided.own
    is_plan = abs(state.b[name] - right.b[name]) <= TOLERANCE or name in known.zeros
    if is_matrix and not is_plan:
        parts.append(f"stable, though a plan has init {_law(right.b[name])} here")
    elif is_matrix and abs(moved) > TOLERANCE:
        parts.append(f"the plan's (a, b, c) moved by {round(-moved, 2) + 0.0:g} along the symmetry")
    blown = [n for n in known.planned.dag.uses()[name] if n in known.state.course.unstable(TOLERANCE)]
    if blown:
        parts.append(f"that its output blows up follows from {listed(known.guilty_names)}")
    return ", ".join(parts)


def _law(exponent: float) -> str:
    """Return how a number follows the width ratio m: "constant", or a power m^-exponent."""
    return "constant" if abs(exponent) <= TOLERANCE else power(-exponent)


def _why_wrong(known: Comparison, name: str, fault: Fault | None) -> str:
    """Say what a guilty parameter leads to, and which of its exponents is not what it should be.

    Args:
        known: all that is known of the model at both widths.
        name: the parameter.
        fault: the worst that it leads to, if all others are right.
    """
    state, right = known.state, known.right
    what = (
        "together with the others it keeps the model from learning" if fault is None else _happens(known, name, fault)
    )
    numbers = []
    if name not in known.zeros and abs(state.b[name] - right.b[name]) > TOLERANCE:
        with_multiplier = f" for its multiplier {power(-a)}" if abs(a := known.multiplier(name)) > TOLERANCE else ""
        numbers.append(f"init is {_law(state.b[name])}, right{with_multiplier} is {_law(right.b[name])}")
    if name in right.c and abs(state.c[name] - right.c[name]) > TOLERANCE:
        numbers.append(f"lr is {_law(state.c[name])}, right is {_law(right.c[name])}")
    return "; ".join([what, *numbers])


def _happens(known: Comparison, name: str, fault: Fault) -> str:
    """Say what happens in a model of which one parameter alone is wrong."""
    grown = fault.exponent
    if fault.kind is FaultKind.BLOWS_UP_AT_INIT:
        return f"at init its output grows like {power(grown)}"
    if fault.kind is FaultKind.VANISHES_AT_INIT:
        return f"at init its output shrinks like {power(grown)}"
    if fault.kind is FaultKind.BLOWS_UP:
        first = known.first_alike(name)
        term = _worst_term(known, first, known.alone(first).course)
        if term is None:
            return f"it makes what other layers learn grow like {power(grown)}"
        return f"{term[0]} grows like {power(term[1])}"
    if fault.kind is FaultKind.LAZY:
        return f"what it learns shrinks like {power(grown)}"
    return f"its updates shrink like {power(grown)}, while its output goes on changing with its input"


def _worst_term(known: Comparison, name: str, course: Course) -> tuple[str, float] | None:
    """Return the part of a parameter's output that grows fastest in training, with its exponent; None if none grows."""
    for limits in (course.least, {node: need for (kind, node), need in course.needs.items() if kind == "r"}):
        grown = [
            (limits.get(node, 0.0) - value, _TERMS[kind])
            for node in known.planned.dag.uses()[name]
            for kind, value in course.terms_of(node).items()
            if kind in _TERMS and limits.get(node, 0.0) - value > TOLERANCE
        ]
        if grown:
            exponent, term = max(grown, key=lambda pair: pair[0])
            return term, exponent
    return None


# -- attention


def _attention(known: Comparison) -> Iterator[AuditRow]:
    """Yield a row for each attention whose head_dim grows, and for each whose logits are scaled wrongly."""
    dag = known.planned.dag
    for node, after in attention_products(dag).items():
        kind, missing = dag.kind(node), known.right.a.get(node, 0.0) - known.state.a.get(node, 0.0)
        grown = known.planned.growth(*getattr(kind, "contracted", ()))
        if node not in known.guilty and grown <= TOLERANCE:
            continue
        last = after[-1] if after else node
        exponents = Exponents(s=_finite(known.state.fixed.size(last)), r=_finite(known.state.course.r(last)))
        row = AuditRow(name=dag.node(node).path or node, verdict=Verdict.PASS, role="attention", exponents=exponents)
        if node not in known.guilty:
            yield replace(row, reason=f"head_dim grows like {power(grown)}, and the logits are divided by as much")
            continue
        fault = known.fault_of(node)
        grows = missing > 0
        told = f"head_dim grows like {power(grown)}: the logits change like {power(missing)}"
        if grown <= TOLERANCE:
            told = f"head_dim stays, and the logits are scaled like {power(missing)}"
        change: Fix = known.change_of_attention(node)
        kind_of = fault.kind if fault else FaultKind.BLOWS_UP if grows else FaultKind.LAZY
        yield replace(
            row, verdict=Verdict.FAIL, kind=kind_of.value, reason=told, fix=change.sentence(known.width), change=change
        )


# -- eps and weight decay


def eps_share(known: Comparison, name: str) -> tuple[float, float] | None:
    """Return (share, exponent): eps over the parameter's gradient at the larger width, which grows like m^exponent.

    None where eps scales as the gradient does or faster, and where there is none.
    """
    rates = known.rates.get(name)
    g = known.right.course.values.get(("g", name))
    if rates is None or rates.eps is None or g is None or g - rates.eps <= TOLERANCE:
        return None
    size, eps = known.gradients.get(name), rates.large.numbers.eps
    return (eps / size if size and eps else 0.0), g - rates.eps


def _eps(known: Comparison, name: str) -> Iterator[AuditRow]:
    """Yield a row if the eps of a parameter is not small against its gradient, and becomes larger with width."""
    found = eps_share(known, name)
    if found is None or found[0] < EPS_WEAK or name in known.guilty:
        return
    share, grown = found
    verdict = Verdict.FAIL if share >= EPS_FAILS else Verdict.WEAK
    told = f"eps is {share:.2g} of its gradient at width {known.width}, and grows against it like {power(grown)}"
    change = Fix({}, eps=known.width_ratio**-grown)
    yield AuditRow(
        name=name,
        verdict=verdict,
        topic="eps",
        kind="eps takes over",
        role=known.planned.parameters[name].role,
        reason=told,
        fix=change.sentence(known.width),
        exponents=exponents_of(known, name),
        change=change,
    )


def _decay(known: Comparison, name: str) -> Iterator[AuditRow]:
    """Yield a row if the weight decay of a parameter does not scale as it should."""
    rates, role = known.rates.get(name), known.planned.parameters[name].role
    if rates is None or name in known.guilty:
        return
    small, large = rates.small.numbers.weight_decay, rates.large.numbers.weight_decay
    row = AuditRow(name=name, verdict=Verdict.WEAK, topic="weight decay", role=role)
    if bool(small) != bool(large):
        told = f"weight_decay is {small or 0:g} at the smaller width and {large or 0:g} at the larger"
        fix = "the same choice of decayed parameters at every width"
        yield replace(row, verdict=Verdict.FAIL, kind="decays at one width only", reason=told, fix=fix)
        return
    right, change = known.right_decay(name), Fix({}, weight_decay=known.change(name).weight_decay)
    if right is None or rates.decay is None or change.weight_decay == 1.0:
        return
    way = "shrinks" if right > rates.decay else "grows"
    told = f"what weight decay does in one step {way} like {power(rates.decay - right)}"
    yield replace(
        row,
        kind="decays ever less" if way == "shrinks" else "decays ever more",
        reason=told,
        fix=change.sentence(known.width) + ", or audit(..., decay='coupled') if that is meant",
        exponents=exponents_of(known, name),
        change=change,
    )

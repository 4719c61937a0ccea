"""What is wrong in a state of a model's exponents, and the fewest parameters whose change makes all of it right."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from abcfx.auditing.state import AuditState
from abcfx.auditing.target import TOLERANCE
from abcfx.dag.queries import attention_products
from abcfx.exponents.recursion import Course
from abcfx.lp.names import RowKind
from abcfx.rules import Layer

MOST_TOGETHER = 2  # sets of more suspects than this are found by leaving out one after another


class FaultKind(str, Enum):
    """The ways in which a parametrization can be wrong; the values are the words that reports use."""

    BLOWS_UP_AT_INIT = "blows up at init"
    VANISHES_AT_INIT = "vanishes at init"
    BLOWS_UP = "blows up"
    LAZY = "learns ever less"
    SLOW = "faster possible"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a state of a model's exponents.

    Attributes:
        kind: what happens as the width grows.
        name: the node of the layer DAG where it happens, or the parameter whose own updates are too small.
        exponent: what should stay the same grows like m^exponent, or shrinks if that is negative (m, the width ratio).
    """

    kind: FaultKind
    name: str
    exponent: float


def faults(state: AuditState, right: AuditState, zeros: Collection[str]) -> list[Fault]:
    """Return everything that is wrong in a state of a model's exponents.

    Args:
        state: the exponents that are judged.
        right: the exponents that the model should have, which set what a size at init should be.
        zeros: parameters that start as zeros, whose size at init says nothing.
    """
    found = [*_at_init(state, right, zeros), *_in_training(state, right, zeros)]
    return sorted(found, key=lambda fault: -abs(fault.exponent))


def _at_init(state: AuditState, right: AuditState, zeros: Collection[str]) -> Iterator[Fault]:
    """Yield each layer whose output, without its bias, grows or shrinks with width at init, and should not."""
    dag = state.frame.dag
    for node, layer in dag.layers():
        decided = state.frame.parameters[layer.parameter]
        if (
            layer.parameter in zeros
            or decided.normalised
            or decided.void
            or decided.role not in ("embedding", "hidden")
        ):
            continue
        if math.isinf(state.fixed.size(layer.inputs[0])):
            continue
        excess = _plain_size(state, node, layer) - _plain_size(right, node, layer)
        narrowing = max(0.0, state.frame.growth(*layer.fan_in) - state.frame.growth(*layer.fan_out)) / 2
        if excess < -TOLERANCE:
            yield Fault(FaultKind.BLOWS_UP_AT_INIT, node, -excess)
        elif excess > TOLERANCE + narrowing:
            yield Fault(FaultKind.VANISHES_AT_INIT, node, -excess)


def _plain_size(state: AuditState, node: str, layer: Layer) -> float:
    """Return s of the output W x of a layer at init, which is ~ m^-s, without its bias (m, the width ratio)."""
    fixed = state.fixed
    return fixed.a(node) + fixed.init(node) + fixed.size(layer.inputs[0]) - fixed.growth(*layer.fan_in) / 2


def _in_training(state: AuditState, right: AuditState, zeros: Collection[str]) -> Iterator[Fault]:
    """Yield what changes ever more with width, or ever less, once the model trains."""
    dag, course, best = state.frame.dag, state.course, right.course
    for node in course.unstable(TOLERANCE):
        yield Fault(FaultKind.BLOWS_UP, node, course.least[node] - course.r(node))
    watched = list(dag.outputs) + [after[-1] if after else node for node, after in attention_products(dag).items()]
    for node in watched:
        late = course.r(node) - max(best.r(node), state.course.least.get(node, -math.inf))
        if TOLERANCE < late < math.inf:
            yield Fault(FaultKind.LAZY, node, -late)
    for name, slack in state.slack.items():
        spare = slack - max(0.0, right.slack.get(name, 0.0))
        if TOLERANCE < spare < math.inf:
            limits = [course.least.get(node, 0.0) + TOLERANCE for node in dag.uses()[name]]
            carried = [_carried(course, node) for node in dag.uses()[name]]
            is_carried = name not in zeros and any(r < limit for r, limit in zip(carried, limits, strict=True))
            yield Fault(FaultKind.SLOW if is_carried else FaultKind.LAZY, name, -spare)


def _carried(course: Course, node: str) -> float:
    """Return r of the part of a layer's output that changes with its input alone, W dx; infinite for a vector."""
    return course.terms_of(node).get(RowKind.OMEGA, math.inf)


def deviations(state: AuditState, right: AuditState) -> dict[str, tuple[float, float, float]]:
    """Return (a, b, c) of each parameter and attention product where they differ: what is right minus what is there.

    Args:
        state: the exponents that are judged.
        right: the exponents that the model should have.
    """
    found = {}
    for name, decided in state.frame.parameters.items():
        a = max((right.a.get(n, 0.0) - state.a.get(n, 0.0) for n in decided.a), key=abs, default=0.0)
        b = right.b[name] - state.b[name]
        c = right.c[name] - state.c[name] if name in state.c and name in right.c else 0.0
        found[name] = (a, b, c)
    for node in attention_products(state.frame.dag):
        found[node] = (right.a.get(node, 0.0) - state.a.get(node, 0.0), 0.0, 0.0)
    return {name: each for name, each in found.items() if max(map(abs, each)) > TOLERANCE}


def guilty(state: AuditState, right: AuditState, zeros: Collection[str]) -> list[str]:
    """Return the fewest parameters and attention products whose change to what is right makes everything right.

    Alike ones of several blocks count as one. Single ones are tried first, then pairs; more are found by leaving out
    one after another of all that differ, those that differ least first.

    Args:
        state: the exponents that are judged.
        right: the exponents that the model should have.
        zeros: parameters that start as zeros.
    """
    if not faults(state, right, zeros):
        return []
    suspects = alike(deviations(state, right))

    def is_right_with(chosen: Sequence[tuple[str, ...]]) -> bool:
        """Whether nothing is wrong any more once these are as they should be."""
        mended = state
        for name in itertools.chain.from_iterable(chosen):
            mended = mended.with_parameter(name, right)
        return not faults(mended, right, zeros)

    for count in range(1, min(MOST_TOGETHER, len(suspects)) + 1):
        if len(suspects) ** count > 300:
            break
        for chosen in itertools.combinations(suspects, count):
            if is_right_with(chosen):
                return [name for names in chosen for name in names]
    kept = list(suspects)
    for each in reversed(suspects):
        without = [other for other in kept if other is not each]
        if is_right_with(without):
            kept = without
    return [name for names in kept for name in names]


def alike(differing: dict[str, tuple[float, float, float]]) -> list[tuple[str, ...]]:
    """Return names in groups of those that differ in numbers only and deviate alike, the largest deviation first."""
    groups: dict[Hashable, list[str]] = {}
    for name, each in differing.items():
        groups.setdefault((re.sub(r"\d+", "*", name), *(round(x, 2) for x in each)), []).append(name)
    ordered = sorted(groups.values(), key=lambda names: -sum(map(abs, differing[names[0]])))
    return [tuple(names) for names in ordered]

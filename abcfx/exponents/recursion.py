"""The recursion of a layer DAG: what given learning rates lead to, without a solver, and how much larger each could be.

Notation: m is the width ratio. A tensor has entries ~ m^-s at init, changes in training by ~ m^-r, and has a gradient
~ m^-G; a weight has a gradient ~ m^-g and the learning rate m^-c.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from abcfx.exponents.fixed import FixedExponents
from abcfx.lp.names import RowKind, RowLabel
from abcfx.rules import Bound, Kind, Layer, Vector
from abcfx.rules.kinds import Merge, NumberFactor, Product
from abcfx.theory.parametrizations import Alignments

Variable = tuple[str, str]


@dataclass(frozen=True)
class Term:
    """One bound on an exponent, with its value at given learning rates.

    Attributes:
        out: the variable that it bounds from above: ("r", node), ("G", node) or ("g", parameter).
        bound: the bound: its label, the variables in it, and a constant.
        value: its right side.
    """

    out: Variable
    bound: Bound
    value: float


@dataclass(frozen=True)
class Course:
    """What given learning rates lead to: every exponent of a model, and the bounds that decide it.

    Attributes:
        values: the exponent of each variable: ("r", node), ("G", node), ("g", parameter) and ("c", parameter).
        terms: all bounds, in the order in which they were evaluated: those of gradients from the outputs back, then
            those of changes from the inputs on.
        least: the least r that keeps each node stable, by node.
        needs: the least value of each variable at which every node behind it stays stable.
    """

    values: Mapping[Variable, float]
    terms: tuple[Term, ...] = field(repr=False)
    least: Mapping[str, float] = field(repr=False)
    needs: Mapping[Variable, float] = field(repr=False)

    def r(self, node: str) -> float:
        """Return r of a node, whose output changes by ~ m^-r (m, the width ratio); infinite if nothing changes it."""
        return self.values.get(("r", node), math.inf)

    def terms_of(self, node: str) -> dict[RowKind, float]:
        """Return for each kind of bound on r of a node the least of their values."""
        found: dict[RowKind, float] = {}
        for term in self.terms:
            if term.out == ("r", node):
                kind = term.bound.label.kind
                found[kind] = min(found.get(kind, term.value), term.value)
        return found

    def unstable(self, tolerance: float) -> list[str]:
        """Return the nodes whose change grows with width where it may not: r lies below the least that is allowed."""
        return [node for node, least in self.least.items() if self.r(node) < least - tolerance]

    def slack(self) -> dict[str, float]:
        """Return for each parameter by how much its c could be smaller, all else as it is, with every node stable.

        It is negative for a learning rate that is too large, and infinite for a parameter that reaches no output.
        """
        found: dict[str, float] = {}
        for term in self.terms:
            for kind, name in term.bound.inputs:
                if kind == "c":
                    room = term.value - self.needs.get(term.out, -math.inf)
                    found[name] = min(found.get(name, room), room)
        return found


def follow(fixed: FixedExponents, c: Mapping[str, float], alignment: Mapping[str, Alignments]) -> Course:
    """Follow a model's exponents through training at given learning rates: gradients back, then changes forward.

    Every exponent is the least of its bounds, which are those of the linear program.

    Args:
        fixed: the exponents of multipliers and inits, with the layer DAG.
        c: exponent of the learning rate m^-c of each parameter that learns, vectors included (m, the width ratio).
        alignment: how strongly updates line up with inputs, as exponents (alpha, omega, u), of each layer node.
    """
    every = fixed.with_vectors()
    values: dict[Variable, float] = {("c", name): value for name, value in c.items()}
    terms: list[Term] = []

    def add(out: Variable, bound: Bound, node: str) -> None:
        """Evaluate a bound on a variable; keep it and its value."""
        value = bound.constant
        if bound.alignment:
            value -= bound.weight * float(getattr(alignment[node], bound.alignment))
        for variable in bound.inputs:
            value += values.get(variable, math.inf)
        terms.append(Term(out, bound._replace(constant=value), value))
        values[out] = min(values.get(out, value), value)

    for node in reversed(every.dag.order):
        if node in every.dag.outputs:
            add(("G", node), Bound(RowLabel(RowKind.LOSS), (), 0.0), node)
        if ("G", node) in values:
            for out, bound in _gradients(every, node):
                add(out, bound, node)
    for node in every.dag.order:
        for bound in _changes(every, node, c):
            add(("r", node), bound, node)
    least = {node: each for node, each in least_changes(every).items() if ("r", node) in values}
    return Course(values, tuple(terms), least, _needs(terms, values, least))


def _gradients(fixed: FixedExponents, node: str) -> Iterator[tuple[Variable, Bound]]:
    """Yield the bounds that a node sets on the gradients of its inputs, and on that of its own parameter."""
    kind = fixed.dag.kind(node)
    for source, bound in dict.fromkeys(kind.gradients(node, fixed)):
        yield ("G", source), bound
    if isinstance(kind, Layer):
        yield ("g", kind.gradient_name(node)), kind.parameter_gradient(node, fixed)
    elif isinstance(kind, Vector):
        yield ("g", kind.parameter), Bound(RowLabel(RowKind.WEIGHT_GRADIENT), (("G", node),), 0.0)


def _changes(fixed: FixedExponents, node: str, c: Mapping[str, float]) -> Iterator[Bound]:
    """Yield the bounds on r of a node (change ~ m^-r; m, the width ratio); those of a vector are its own rate's.

    Args:
        fixed: the exponents, with vectors counted among what changes.
        node: the node.
        c: exponents of the learning rates; a parameter that is not in it does not learn.
    """
    kind = fixed.dag.kind(node)
    if isinstance(kind, Vector):
        if kind.parameter in c:
            rate, update = ("c", kind.parameter), fixed.family(kind.parameter).update
            inputs = (rate, ("g", kind.parameter)) if update == "gradient" else (rate,)
            size = fixed.b(kind.parameter) if update == "relative" else 0.0
            yield Bound(RowLabel(RowKind.UPDATE), inputs, size)
    elif fixed.changes(node):
        yield from dict.fromkeys(kind.changes(node, fixed))


def _needs(terms: list[Term], values: Mapping[Variable, float], least: Mapping[str, float]) -> dict[Variable, float]:
    """Return the least value of each variable at which every node behind it stays stable, all others as they are.

    Args:
        terms: all bounds, in the order in which they were evaluated.
        values: the value of each variable.
        least: the least r that is allowed, by node.
    """
    needs: dict[Variable, float] = {("r", node): value for node, value in least.items()}
    for term in reversed(terms):
        need = needs.get(term.out, -math.inf)
        if need == -math.inf or not math.isfinite(term.value):
            continue
        for variable in term.bound.inputs:
            times = term.bound.inputs.count(variable)
            own = values[variable] - (term.value - need) / times
            needs[variable] = max(needs.get(variable, own), own)
    return needs


def least_changes(fixed: FixedExponents) -> dict[str, float]:
    """Return the least r with which each node is stable, whose output changes by ~ m^-r (m, the width ratio).

    A tensor that grows at init may change as much, since a norm may follow it; an output of the model may not. There is
    no limit where numbers that the model multiplies by come before anything else, unless they stand for the multiplier
    of a readout behind them: they are not there to shrink what is in front.
    """
    return {
        node: 0.0 if node in fixed.dag.outputs else min(0.0, fixed.size(node))
        for node in fixed.dag.order
        if fixed.changes(node) and (_feeds_multiplier(fixed, node) or not _is_scaled(fixed, node))
    }


def _feeds_multiplier(fixed: FixedExponents, node: str) -> bool:
    """Whether only numbers read a layer's output that stand for the multiplier of the readout which reads them.

    Numbers in front of a function such as tanh do not: they decide what it does.
    """
    if not isinstance(fixed.dag.kind(node), Layer) or not isinstance(_reader(fixed, node), NumberFactor):
        return False
    while isinstance(reader := _reader(fixed, node), NumberFactor):
        (node,) = fixed.dag.successors(node)
        if fixed.dag.node(node).is_bent:
            return False
    return isinstance(reader, Layer) and fixed.parameters[reader.parameter].own != 0.0


def _reader(fixed: FixedExponents, node: str) -> Kind | None:
    """Return the kind of the one node that reads a node's output; None if several do, or it is an output."""
    readers = fixed.dag.successors(node)
    return None if node in fixed.dag.outputs or len(readers) != 1 else fixed.dag.kind(readers[0])


def _is_scaled(fixed: FixedExponents, node: str) -> bool:
    """Whether all nodes that read a DAG node's output multiply it by numbers, so that it need not be stable itself.

    Sums and products entry by entry may stand in between, as a temperature does that multiplies attention logits before
    1 / sqrt(head_dim); so may a product with a tensor that was itself multiplied by a number. A function such as tanh
    may not: what blows up in front of it is not undone by a number that shrinks behind it.
    """
    followers = fixed.dag.successors(node)
    if not followers or node in fixed.dag.outputs or fixed.dag.node(node).is_bent:
        return False

    def scales(n: str) -> bool:
        """Whether a node that reads the output multiplies it by a number, or is linear in it and scaled behind."""
        kind = fixed.dag.kind(n)
        if isinstance(kind, Product) and not kind.contracted:
            others = [x for x in kind.inputs if x is not None and x != node]
            with_number = [x for x in others if isinstance(fixed.dag.kind(x), NumberFactor)]
            return any(fixed.size(x) > 0 for x in with_number) or _is_scaled(fixed, n)
        return isinstance(kind, NumberFactor) or (isinstance(kind, Merge) and _is_scaled(fixed, n))

    return all(map(scales, followers))

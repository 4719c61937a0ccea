"""Predicts from the solved exponents which slopes over width the statistics of every layer may have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import linear_regression

from abcfx.checks.recorder import LOGITS, LOOKUP, PRODUCT, Use
from abcfx.checks.slopes import CHANGE, INIT, INPUT, UPDATE, Interval
from abcfx.dag.queries import attention_products
from abcfx.errors import InfeasibleError, InvalidInputError
from abcfx.exponents.attention import find_attention
from abcfx.exponents.dag_program import DagProgram, SolvedDag
from abcfx.exponents.fixed import FixedExponents
from abcfx.lp.names import RowKind
from abcfx.outcome import Outcome
from abcfx.rules import Bound, Layer
from abcfx.rules.kinds import NumberFactor, Product
from abcfx.theory.parametrizations import Alignments, alignment_preset
from abcfx.transformed import Transformed

Intervals = Mapping[tuple[Use, str], Interval]
Predicted = Iterator[tuple[tuple[Use, str], Interval]]


def expected_slopes(result: Transformed) -> Intervals:
    """Predict the interval of each slope, by (use of a parameter, statistic).

    * `init`, rms(W0) rms(x) sqrt(fan_in), the rms of W0 x while the two are independent: minus its size exponent.
    * `update`, rms(dW x): minus the bound that the layer's own update puts on r, with full alignment, since a probe of
      few tokens lines up with the updates that it makes. The exponents are solved anew without rates that the user
      fixed and with attention scaled, so that a wrong rate or scale is not taken for the right one.
    * `change`, rms(W x - W0 x0): from the change that no alignment predicts up to the largest stable one.
    * `input`, rms(x) with the layer's multiplier: minus the size exponent of the product of both.

    A parameter that is used in several places gets the smallest interval that holds all of them.
    """
    predictor = _predictor(result)
    found: dict[tuple[Use, str], Interval] = {}
    for node, layer in predictor.fixed.dag.layers():
        for key, interval in predictor.of_layer(node, layer):
            found[key] = interval.joined(found.get(key, interval))
    for index, (node, after) in enumerate(attention_products(predictor.fixed.dag).items()):
        for key, interval in predictor.of_attention(index, node, after[-1] if after else node):
            found[key] = interval.joined(found.get(key, interval))
    return found


@dataclass(frozen=True)
class _Predictor:
    """Slopes that follow from one assignment of exponents.

    Attributes:
        fixed: exponents a and b, without any rate that the user fixed.
        full: full alignment of every layer node.
        solved: exponents with full alignment.
        cautious: exponents with the alignment that the user asked for.
        fast: r of every node with full alignment: how fast it may change.
        slow: r of every node with no alignment.
    """

    fixed: FixedExponents
    full: Mapping[str, Alignments]
    solved: SolvedDag
    cautious: SolvedDag
    fast: Mapping[str, float]
    slow: Mapping[str, float]

    def of_layer(self, node: str, layer: Layer) -> Predicted:
        """Yield the intervals of a layer that uses a parameter as a table or as a matrix."""
        fixed = self.fixed
        use = Use(layer.parameter, PRODUCT if layer.fan_in else LOOKUP)
        after = 0.0 if layer.fan_in else _numbers_after(fixed, node)
        size = replace(layer, vectors=()).size(node, fixed) + after
        if math.isfinite(size) and not layer.normalised:
            yield (use, INIT), _interval(-size, -size)
            entering = fixed.a(node) + fixed.size(layer.inputs[0])
            yield (use, INPUT), _interval(-entering, -entering)
        if fixed.changes(node):
            yield (use, CHANGE), self._change(node, after)
        if fixed.learns(layer.parameter):
            rate = self._update(self.solved, node, layer) + after
            cautious = self._update(self.cautious, node, layer) + after
            yield (use, UPDATE), _interval(min(-rate, -cautious), -rate)

    def of_attention(self, index: int, node: str, logits: str) -> Predicted:
        """Yield the intervals of attention logits: `node` multiplies queries and keys, `logits` is what it becomes."""
        use, growth = Use("", LOGITS, index), _head_growth(self.fixed, node)
        if growth:  # else biases that are added to them may depend on the number of heads, as in ALiBi
            size = self.fixed.size(logits)
            yield (use, INIT), _interval(-size, -size)
        if self.fixed.changes(logits):
            yield (use, CHANGE), self._change(logits, 0.0)
            yield (use, CHANGE), _interval(-self.fast[logits] - growth / 2, -self.fast[logits])

    def _change(self, node: str, after: float) -> Interval:
        high = max(-self.fast[node], -min(0.0, self.fixed.size(node)))
        return _interval(min(-self.slow[node], high) - after, high - after)

    def _update(self, solved: SolvedDag, node: str, layer: Layer) -> float:
        """Return the bound on r that the layer's own update sets, with full alignment."""
        bound = next(bound for bound in layer.change(node, self.fixed) if bound.label.kind is RowKind.ALPHA)
        return _value(bound, solved, {}, self.full[node])


def _predictor(result: Transformed) -> _Predictor:
    outcome = result.outcome
    fixed = _without_user_rates(outcome.fixed)
    full = _full_alignment(fixed)
    solved = _solve(fixed, full, outcome.solution)
    cautious = _solve(fixed, outcome.alignments, outcome.solution)
    none = dict.fromkeys(full, Alignments(0.5, 0.5, 0.5))
    return _Predictor(fixed, full, solved, cautious, fast=solved.r, slow=_changes(fixed, solved, none))


def _interval(low: float, high: float) -> Interval:
    return Interval(low + 0.0, high + 0.0)  # no minus before zero


def _numbers_after(fixed: FixedExponents, node: str) -> float:
    """Return the exponent of the numbers by which the model multiplies a looked-up row before anything else."""
    total = 0.0
    while True:
        after = [n for n in fixed.dag.successors(node) if isinstance(fixed.dag.kind(n), NumberFactor)]
        if len(after) != 1 or not isinstance(factor := fixed.dag.kind(after[0]), NumberFactor):
            return total
        node = after[0]
        total += factor.shift(fixed)


def _head_growth(fixed: FixedExponents, node: str) -> float:
    """Return the growth of head_dim, over which queries and keys need not be aligned yet after a few steps."""
    kind = fixed.dag.kind(node)
    return fixed.growth(*kind.contracted) if isinstance(kind, Product) else 0.0


def shortfall(rows: int, fan_in: Sequence[int], log_widths: Sequence[float]) -> float:
    """Return by how much the slope of rms(dW x) stays below its limit on a probe of few rows; at most 1/2.

    dW is a sum of as many outer products as x has rows. A row of x lines up with its own product, one of `rows`, and
    adds to the others as noise: for n = fan_in, rms(dW x) is ~ n sqrt(1 + rows / n), not ~ n.
    """
    bend = [math.log2(1 + rows / n) / 2 for n in fan_in]
    return min(0.5, max(0.0, -linear_regression(log_widths, bend).slope))


def logits_names(outcome: Outcome) -> list[str]:
    """Return the module path of every attention, in the order in which they run."""
    dag = outcome.fixed.dag
    return [dag.node(node).path or node for node in attention_products(dag)]


def _without_user_rates(fixed: FixedExponents) -> FixedExponents:
    """Return the exponents without rates that the user fixed, and with the scale that attention logits lack."""
    parameters = {name: replace(each, c=None) for name, each in fixed.parameters.items()}
    free = FixedExponents(fixed.dag, fixed.widths, parameters, fixed.families)
    with suppress(InvalidInputError):  # a scale that cannot be read, and stays
        free = free.with_attention({each.node: each.missing for each in find_attention(free) if each.missing})
    return free


def _solve(fixed: FixedExponents, alignment: Mapping[str, Alignments], otherwise: SolvedDag) -> SolvedDag:
    try:
        return DagProgram(fixed, alignment).solve()
    except InfeasibleError:  # a and b given by the user, which only the rates given with them fit
        return otherwise


def _full_alignment(fixed: FixedExponents) -> dict[str, Alignments]:
    inner, readout = alignment_preset("full")
    return {
        node: readout if fixed.parameters[layer.parameter].role == "readout" else inner
        for node, layer in fixed.dag.layers()
    }


def _value(bound: Bound, solved: SolvedDag, r: Mapping[str, float], alignment: Alignments | None) -> float:
    """Return the exponent that a bound evaluates to."""
    value = bound.constant
    if bound.alignment and alignment is not None:
        value -= bound.weight * float(getattr(alignment, bound.alignment))
    for kind, name in bound.inputs:
        if kind == "r":
            value += r[name]
        elif kind == "c":
            value += solved.c[name]
        else:
            value += float(solved.solution.levels[kind, name])
    return value


def _changes(fixed: FixedExponents, solved: SolvedDag, alignment: Mapping[str, Alignments]) -> dict[str, float]:
    """Return r of every node by exact recursion, as the minimum of its bounds."""
    r: dict[str, float] = {}
    for node in fixed.dag.order:
        if fixed.changes(node):
            bounds = fixed.dag.kind(node).changes(node, fixed)
            r[node] = min(_value(bound, solved, r, alignment.get(node)) for bound in bounds)
    return r
